"""Small recipes on slices of the sample set, so that a whole run takes seconds."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from transformers import BertConfig, BertForSequenceClassification, BertModel, DistilBertConfig, DistilBertModel

from adapters.base_model import BaseModelFiles
from training.recipe import Recipe, load_recipe
from training.tokenise import TokenisedSplit

SAMPLE = Path(__file__).parents[2] / "training" / "sample"

MakeRecipe = Callable[..., Recipe]


def split_of(lengths: Sequence[int], targets: Any, truncated: int = 0) -> TokenisedSplit:
    """Texts of so many tokens, all of them the text's own number."""
    numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return TokenisedSplit(numbers, np.concatenate(([0], np.cumsum(lengths))), np.asarray(targets), truncated)


@pytest.fixture(scope="session")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with train.jsonl (48 rows) and validation.jsonl (24 rows)."""
    directory = tmp_path_factory.mktemp("slices")
    for split, rows in (("train", 48), ("validation", 24)):
        lines = (SAMPLE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        assert {json.loads(line)["label"] for line in lines[:rows]} == {"negative", "neutral", "positive"}
        (directory / f"{split}.jsonl").write_text("".join(lines[:rows]), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def make_recipe(slices: Path) -> MakeRecipe:
    """A recipe on the slices; keyword arguments are recipe keys, `training` is merged."""

    def make(**fields: Any) -> Recipe:
        training = {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3} | fields.pop("training", {})
        data = {"name": "slices", "train": "train.jsonl", "validation": "validation.jsonl"}
        content = {"name": "tiny", "data": data, "max_tokens": 32, "training": training} | fields
        path = slices / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_recipe(path)

    return make


@pytest.fixture
def console() -> Console:
    """Not a terminal; what it gets is in `console.file`."""
    return Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="session")
def tiny_bases(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models with the real base's tokenizer."""
    torch.manual_seed(0)
    bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    five = BertConfig(**bert, max_position_embeddings=64, num_labels=5, problem_type="multi_label_classification")
    models = {
        "distilbert": DistilBertModel(
            DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64)
        ),
        "no-pooler": BertModel(BertConfig(**bert, max_position_embeddings=64), add_pooling_layer=False),
        "other-head": BertForSequenceClassification(five),
    }
    root = tmp_path_factory.mktemp("bases")
    for name, model in models.items():
        model.save_pretrained(root / name)
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(base.directory / file, root / name)
    return {name: root / name for name in models}
