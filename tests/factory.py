"""Makes real adapters without training: PEFT on the real base, random but fixed weights, saved by PEFT itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adapters.base_model import BaseModelFiles
from adapters.manifest import BaseReference, GoldenExample, LoraShape, Manifest, write_manifest

TEXTS = (
    "a stirring, funny and finally transporting film",
    "the battery died after two days and nobody answered my mail",
    "meh",
    "The train leaves at nine from platform four, and it was on time for once; I could hardly believe it myself.",
)


@dataclass(frozen=True)
class AdapterShape:
    """What an adapter is to look like; `peft` holds further arguments of `LoraConfig`."""

    labels: Sequence[str] = ("negative", "positive")
    rank: int = 4
    targets: Sequence[str] | str = ("query", "value")
    seed: int = 0
    max_tokens: int = 128
    truncation_side: str = "right"
    peft: dict[str, Any] = field(default_factory=dict)


def peft_model(base: BaseModelFiles, shape: AdapterShape) -> PeftModel:
    """A PEFT model in eval mode whose adapter has random weights, `lora_B` too, so that it changes the answer."""
    torch.manual_seed(shape.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        base.directory, num_labels=len(shape.labels), ignore_mismatched_sizes=True
    )
    targets = shape.targets if isinstance(shape.targets, str) else list(shape.targets)
    arguments: dict[str, Any] = {"r": shape.rank, "lora_alpha": 2 * shape.rank, "target_modules": targets}
    config = LoraConfig(task_type="SEQ_CLS", **(arguments | shape.peft))
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.08)
    config.base_model_name_or_path = base.id
    return wrapped.eval()


def peft_logits(model: PeftModel, base: BaseModelFiles, texts: Sequence[str], shape: AdapterShape) -> torch.Tensor:
    """PEFT's own logits [B, C], one text at a time, so that nothing is padded."""
    tokenizer = AutoTokenizer.from_pretrained(base.directory, truncation_side=shape.truncation_side)
    with torch.inference_mode():
        rows = [
            model(**tokenizer(text, truncation=True, max_length=shape.max_tokens, return_tensors="pt")).logits[0]
            for text in texts
        ]
    return torch.stack(rows)


def save_adapter(
    directory: Path, base: BaseModelFiles, shape: AdapterShape, *, name: str = "made", manifest: bool = True
) -> Path:
    """An adapter directory as PEFT saves it and, unless declined, with a manifest whose golden logits are PEFT's."""
    model = peft_model(base, shape)
    # The vocabulary never changes here, and without this PEFT asks the hub whether it did.
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    if manifest:
        texts = TEXTS[:2]
        logits = peft_logits(model, base, texts, shape)
        golden = tuple(
            GoldenExample(text=text, logits=tuple(row.tolist())) for text, row in zip(texts, logits, strict=True)
        )
        write_manifest(
            directory,
            Manifest(
                name=name,
                version=1,
                created="2026-01-01T00:00:00+00:00",
                base=BaseReference(id=base.id, revision=base.revision, sha256=base.sha256),
                labels=tuple(shape.labels),
                max_tokens=shape.max_tokens,
                truncation_side="left" if shape.truncation_side == "left" else "right",
                lora=LoraShape(rank=shape.rank),
                golden=golden,
                files={},
            ),
        )
    return directory
