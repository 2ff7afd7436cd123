"""The base with a classification head on it, and PEFT around both."""

import importlib.util
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.base_model import BaseModelFiles
from adapters.errors import BaseModelError, SettingsError
from adapters.manifest import MANIFEST, PEFT_CONFIG, PEFT_WEIGHTS, read_manifest
from adapters.peft_config import DUMMY_TARGETS
from training.recipe import Recipe

HEADS = ("classifier", "score")
"""Module names that PEFT trains in full and saves of its own accord for sequence classification."""


_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
"""What configurations call it: BERT, RoBERTa and DeBERTa; DistilBERT, ModernBERT and decoders."""


@dataclass(frozen=True, slots=True)
class BaseWithHead:
    """A base model ready to be trained on.

    Attributes:
        model: a transformers model for sequence classification, fp32.
        fresh: dotted names of the parameters that the base's weights do not hold: they are random.
    """

    model: Any
    fresh: frozenset[str]


def load_base(
    base: BaseModelFiles,
    labels: tuple[str, ...],
    tokenizer: Any,
    seed: int,
    attention_dropout: float | None = None,
    *,
    quantised: bool = False,
) -> BaseWithHead:
    """Load the base with a head for `labels`; whatever its weights lack is drawn with `seed`.

    Args:
        attention_dropout: in place of the base's own, while training.
        quantised: its linear modules, but for the head, in 4-bit NormalFloat.

    Raises:
        BaseModelError: it cannot be read as a sequence classifier.
        SettingsError: quantised, and the package for it is not there.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

    from engine.encoder import fresh_parameters

    set_seed(seed)
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(
                base.directory,
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                trust_remote_code=False,
            )
            for name in _ATTENTION_DROPOUT:
                if attention_dropout is not None and hasattr(config, name):
                    setattr(config, name, attention_dropout)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                base.directory,
                config=config,
                # A base may come with a head for other labels: it is replaced by a fresh one.
                ignore_mismatched_sizes=True,
                dtype="float32",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **(_four_bit() if quantised else {}),
            )
    except (OSError, ValueError) as error:
        raise BaseModelError(f"base model {base.id} cannot be read as a sequence classifier: {error}") from error
    model.config.pad_token_id = tokenizer.pad_token_id
    return BaseWithHead(model, fresh_parameters(loading))


def _four_bit() -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError("quantise", "4bit", "the package bitsandbytes: pip install 'tonearm[qlora]'")
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        llm_int8_skip_modules=list(HEADS),
    )
    return {"quantization_config": quantisation, "device_map": {"": 0} if torch.cuda.is_available() else "cpu"}


def add_adapter(base: BaseWithHead, recipe: Recipe, labels: Sequence[str]) -> Any:
    """Freeze the base and put the recipe's LoRA (or none) and the trainable head on it.

    Args:
        labels: in the order of the logits; a warm start takes a head over only if it is for these.

    Returns:
        A `peft.PeftModel`; the base's modules are changed in place.

    Raises:
        SettingsError: the recipe names modules that the base does not have.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    named = set(recipe.modules_to_save)
    # What lies in a module that is saved whole is not saved once more.
    lacking = {
        module for module in fresh_modules(base.fresh) if not any(f".{name}." in f".{module}." for name in named)
    }
    saved = sorted(named | lacking)
    names = [name for name, _ in base.model.named_modules()]
    for module in recipe.modules_to_save:
        if not any(name == module or name.endswith(f".{module}") for name in names):
            raise SettingsError("modules_to_save", module, f"modules of {base.model.config.model_type}")
    if recipe.lora is None:
        config = LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=DUMMY_TARGETS, modules_to_save=saved or None)
    else:
        targets = recipe.lora.targets
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=recipe.lora.rank,
            lora_alpha=recipe.lora.alpha,  # type: ignore[arg-type]
            lora_dropout=recipe.lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            use_rslora=recipe.lora.rslora,
            modules_to_save=saved or None,
        )
    try:
        with _quiet():
            model = get_peft_model(base.model, config)
    except ValueError as error:
        targets_text = recipe.lora.targets if recipe.lora else None
        raise SettingsError("lora.targets", targets_text, f"linear modules of the base ({error})") from error
    if recipe.warm_start_from is not None:
        _warm_start(model, Path(recipe.warm_start_from), labels)
    return model


def fresh_modules(fresh: frozenset[str]) -> set[str]:
    """Modules that must be saved because the base does not hold them, beside those that PEFT saves anyway.

    PEFT's defaults miss DistilBERT's `pre_classifier` and a pooler without weights: reloaded, they would be random.
    """
    modules = {key.rpartition(".")[0] for key in fresh}
    return {module for module in modules if not any(part in HEADS for part in module.split("."))}


def reload(directory: Path, base: BaseModelFiles, labels: tuple[str, ...], tokenizer: Any, seed: int) -> Any:
    """The adapter in `directory` on a newly loaded base, in eval mode on the CPU.

    Args:
        seed: draws what neither the base nor the adapter holds; a seed other than training's shows what was not saved.
    """
    from peft import PeftModel

    with _quiet():
        model = PeftModel.from_pretrained(load_base(base, labels, tokenizer, seed).model, str(directory))
    return model.eval()


def _warm_start(model: Any, directory: Path, labels: Sequence[str]) -> None:
    """Begin with another adapter: its LoRA, exactly, and its head if that is for the same labels.

    A LoRA of a lower rank is padded with zeros in B (so the rest of A is free to be what it was drawn), one of another
    scale is rescaled.

    Raises:
        SettingsError: there is no adapter, or its LoRA cannot be had in this recipe's shape.
    """
    import safetensors.torch

    if not (directory / PEFT_WEIGHTS).is_file():
        raise SettingsError("warm_start_from", directory.name, f"an adapter directory with {PEFT_WEIGHTS}")
    theirs = safetensors.torch.load_file(directory / PEFT_WEIGHTS)
    ours = trained_state(model)
    same_labels = _labels(directory) in (None, tuple(labels))
    scale = _scale(directory, theirs) / _scale_of(model.peft_config["default"])
    start = {}
    for key, tensor in theirs.items():
        is_head = any(part in HEADS for part in key.split("."))
        if is_head and (not same_labels or key not in ours or ours[key].shape != tensor.shape):
            continue
        if key not in ours:
            expected = f"an adapter of the modules that this recipe trains; {key} is none of them"
            raise SettingsError("warm_start_from", directory.name, expected)
        in_b = ".lora_B." in key
        fitting = tensor * scale if in_b else tensor
        if ".lora_" in key and tensor.shape != ours[key].shape:
            fitting = _widened(fitting, ours[key], in_b=in_b)
        if fitting is None or fitting.shape != ours[key].shape:
            expected = f"an adapter whose {key} fits {list(ours[key].shape)}; it is {list(tensor.shape)}"
            raise SettingsError("warm_start_from", directory.name, expected)
        start[key] = fitting
    if not start:
        raise SettingsError("warm_start_from", directory.name, "an adapter with something that this recipe trains")
    set_trained_state(model, ours | start)


def _widened(tensor: Any, mine: Any, *, in_b: bool) -> Any:
    """A [r, D_in] or B [D_out, r] in a larger rank; None if it is a smaller one or the module is another."""
    rank_axis = 1 if in_b else 0
    rank = tensor.shape[rank_axis]
    if tensor.shape[1 - rank_axis] != mine.shape[1 - rank_axis] or rank > mine.shape[rank_axis]:
        return None
    wide = mine.clone()
    if in_b:
        wide[:, :rank], wide[:, rank:] = tensor, 0
    else:
        wide[:rank] = tensor
    return wide


def _labels(directory: Path) -> tuple[str, ...] | None:
    """Of an adapter with a manifest; None for one made by plain PEFT, which has none."""
    return read_manifest(directory).labels if (directory / MANIFEST).is_file() else None


def _scale(directory: Path, tensors: Mapping[str, Any]) -> float:
    from peft import PeftConfig

    if not any(".lora_B." in key for key in tensors):
        return 1.0
    config = PeftConfig.from_pretrained(str(directory))
    if config.alpha_pattern or config.rank_pattern:
        raise SettingsError("warm_start_from", directory.name, "an adapter with one rank and alpha for all modules")
    return _scale_of(config)


def _scale_of(config: Any) -> float:
    """What PEFT multiplies B A by."""
    return float(config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r))


def trained_state(model: Any) -> dict[str, Any]:
    """Copies of all that the adapter is, by PEFT's names."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: tensor.detach().clone().cpu() for key, tensor in state.items()}


def set_trained_state(model: Any, state: Mapping[str, Any]) -> None:
    """The opposite of `trained_state`."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, dict(state))


def save(model: Any, directory: Path, base_id: str, revision: str | None) -> None:
    """`save_pretrained`, naming the base by its id and not by where it lies here, with lists in a fixed order."""
    # "auto" would ask the hub whether the vocabulary was resized; nothing here resizes it.
    model.save_pretrained(str(directory), save_embedding_layers=False)
    # safetensors makes its file readable by its owner alone; a registry is read by others.
    (directory / PEFT_WEIGHTS).chmod(0o644)
    path = directory / PEFT_CONFIG
    config = json.loads(path.read_text())
    config["base_model_name_or_path"], config["revision"] = base_id, revision
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            # PEFT writes sets in the order of the hash seed.
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def lora_targets(model: Any) -> tuple[str, ...]:
    """Names of the modules that carry LoRA, without their path, sorted."""
    found = {
        match["module"]
        for name, _ in model.named_parameters()
        if (match := re.search(r"(?P<module>[^.]+)\.lora_A\.", name))
    }
    return tuple(sorted(found))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the loader's bar, its table of missing weights (a fresh head is wanted) and notes between libraries."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
