"""Adapters made for measuring: random weights in PEFT's own format, so that no training is needed."""

import json
from pathlib import Path

import safetensors.torch
import torch

from adapters.base_model import BaseModelFiles
from adapters.manifest import PEFT_CONFIG, PEFT_WEIGHTS
from adapters.verify import BaseLayout

QUERY_VALUE = ("query", "value")
ALL_LINEAR = None
"""Every linear module but the head's, whatever the architecture calls them."""

Targets = tuple[str, ...] | None

_SMALLEST_ID, _LARGEST_ID = 1000, 29_000
"""Of whole words, in the default's vocabulary."""


def token_ids(rows: int, tokens: int) -> torch.Tensor:
    """Drawn token ids [rows, tokens], int64, the same every time."""
    return torch.randint(_SMALLEST_ID, _LARGEST_ID, (rows, tokens), generator=torch.Generator().manual_seed(rows))


def make_adapter(
    directory: Path, base: BaseModelFiles, layout: BaseLayout, *, rank: int, targets: Targets, seed: int
) -> Path:
    """Write a two-label adapter as plain PEFT would have saved it: LoRA on `targets`, the head's own modules whole."""
    generator = torch.Generator().manual_seed(seed)
    directory.mkdir(parents=True)
    adapted, left = targeted(layout, targets)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base.id,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in adapted}),
        "exclude_modules": left,
        "modules_to_save": sorted({"classifier", "score", *(key.split(".")[0] for key in layout.fresh)}),
        "bias": "none",
    }
    (directory / PEFT_CONFIG).write_text(json.dumps(config))
    tensors = {}
    for name, (d_in, d_out) in adapted.items():
        key = f"base_model.model.{name}.lora"
        tensors[f"{key}_A.weight"] = torch.randn(rank, d_in, generator=generator) / d_in**0.5
        tensors[f"{key}_B.weight"] = torch.randn(d_out, rank, generator=generator) * 0.05
    for key in sorted(layout.fresh):
        shape = layout.parameters[key]
        shape = (2, *shape[1:]) if key.startswith(f"{layout.output}.") else shape
        tensors[f"base_model.model.{key}"] = torch.randn(shape, generator=generator) * (0.1 if len(shape) > 1 else 0)
    safetensors.torch.save_file(tensors, directory / PEFT_WEIGHTS)
    return directory


def targeted(layout: BaseLayout, targets: Targets) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """The linear modules that get a LoRA, and those of the same last names that are left out: the head's."""
    head = {layout.output, *(key.rpartition(".")[0] for key in layout.fresh)}
    chosen = {
        name: dims for name, dims in layout.linears.items() if targets is None or name.rpartition(".")[2] in targets
    }
    adapted = {name: dims for name, dims in chosen.items() if name not in head and "pooler" not in name.split(".")}
    return adapted, sorted(chosen.keys() - adapted.keys() - head)
