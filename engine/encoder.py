"""Loads the base model with a classification head on it, and says what an adapter must fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from adapters.base_model import BaseModelFiles
from adapters.errors import BaseModelError
from adapters.verify import BaseLayout

_PLACEHOLDER_CLASSES = 61
"""Classes of the head that the bank replaces: a number by which its last linear module is found again."""

_MAX_TOKENS_WITHOUT_LIMIT = 4096
"""For bases whose configuration names no longest input."""


@dataclass(frozen=True)
class Encoder:
    """The base model, in eval mode, with the head that a bank will replace."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    layout: BaseLayout


def load_encoder(base: BaseModelFiles, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Encoder:
    """Load a base for serving.

    Raises:
        BaseModelError: the files are no classifier-capable model that `transformers` reads without remote code.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.directory, trust_remote_code=False)
        config = AutoConfig.from_pretrained(base.directory, trust_remote_code=False)
        loaded: tuple[Any, dict[str, Any]] = AutoModelForSequenceClassification.from_pretrained(
            base.directory,
            num_labels=_PLACEHOLDER_CLASSES,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            # A base that was fine-tuned before brings a head of its own size: it is replaced, never used.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base model {base.id!r} cannot be loaded from {base.directory}: {error}") from error
    model, info = loaded
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Decoders find the last real token by it; without it they refuse batches.
    model.config.pad_token_id = tokenizer.pad_token_id
    layout = BaseLayout(
        id=base.id,
        sha256=base.sha256,
        linears={name: _dims(module) for name, module in model.named_modules() if _is_linear(module)},
        parameters={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        fresh=fresh_parameters(info),
        output=_output(model, base),
        max_tokens=longest_input(config, tokenizer),
    )
    return Encoder(model.to(device).eval().requires_grad_(False), tokenizer, layout)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _dims(module: nn.Module) -> tuple[int, int]:
    """(D_in, D_out); `Conv1D` (GPT-2) holds its weight transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0], weight.shape[1]


def _output(model: nn.Module, base: BaseModelFiles) -> str:
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == _PLACEHOLDER_CLASSES
    ]
    if not names:
        raise BaseModelError(f"base model {base.id!r} ({type(model).__name__}) has no linear classification head")
    return str(names[-1])


def fresh_parameters(loading: Mapping[str, Any]) -> frozenset[str]:
    """Parameters that a base's own weights do not hold, from what `from_pretrained` says of its loading.

    transformers names a mismatch by its key alone or by (key, shape found, shape wanted).
    """
    mismatched = (key[0] if isinstance(key, tuple) else key for key in loading["mismatched_keys"])
    return frozenset(loading["missing_keys"]) | {str(key) for key in mismatched}


def longest_input(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a base reads at most, special tokens included."""
    limits = [int(tokenizer.model_max_length)]
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        # RoBERTa counts positions from padding_idx + 1, so two of them are never a token's.
        offset = (config.pad_token_id or 0) + 1 if config.model_type in _POSITIONS_AFTER_PADDING else 0
        limits.append(int(positions) - offset)
    limit = min(limits)
    return limit if limit < 10**6 else _MAX_TOKENS_WITHOUT_LIMIT


_POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "data2vec-text"}
