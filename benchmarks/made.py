"""Adapters made for measuring: random weights in PEFT's own format, so that no training is needed."""

import json
from pathlib import Path

import safetensors.torch
import torch

from adapters.base_model import BaseModelFiles
from adapters.manifest import PEFT_CONFIG, PEFT_WEIGHTS
from adapters.verify import BaseLayout

QUERY_VALUE = ("query", "value")
ALL_LINEAR = ("query", "key", "value", "dense")


def make_adapter(
    directory: Path, base: BaseModelFiles, layout: BaseLayout, *, rank: int, targets: tuple[str, ...], seed: int
) -> Path:
    """Write a two-label adapter as plain PEFT would have saved it."""
    generator = torch.Generator().manual_seed(seed)
    directory.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base.id,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "exclude_modules": ["bert.pooler.dense"],
        "modules_to_save": ["classifier", "score"],
        "bias": "none",
    }
    (directory / PEFT_CONFIG).write_text(json.dumps(config))
    tensors = {}
    for name, (d_in, d_out) in layout.linears.items():
        if name.rpartition(".")[2] in targets and "pooler" not in name:
            key = f"base_model.model.{name}.lora"
            tensors[f"{key}_A.weight"] = torch.randn(rank, d_in, generator=generator) / d_in**0.5
            tensors[f"{key}_B.weight"] = torch.randn(d_out, rank, generator=generator) * 0.05
    hidden = layout.linears[layout.output][0]
    tensors["base_model.model.classifier.weight"] = torch.randn(2, hidden, generator=generator) * 0.1
    tensors["base_model.model.classifier.bias"] = torch.zeros(2)
    safetensors.torch.save_file(tensors, directory / PEFT_WEIGHTS)
    return directory
