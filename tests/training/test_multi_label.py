"""A text with any number of labels, from the file to the service's own engine."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from adapters.base_model import find_base_model
from adapters.errors import DataError
from adapters.manifest import read_manifest
from adapters.store import Registry
from engine.engine import Engine
from engine.rows import Answer, Row
from tests.training.conftest import MakeRecipe
from training.dataset import load_dataset
from training.recipe import DataSettings
from training.train import train


def _settings(path: Path, **fields: object) -> DataSettings:
    return DataSettings.model_validate({"name": "x", "train": str(path), "validation": str(path)} | fields)


def test_lists_and_separated_text(tmp_path: Path) -> None:
    jsonl, csv = tmp_path / "rows.jsonl", tmp_path / "rows.csv"
    rows = [("a", ["food", "price"]), ("b", []), ("c", ["price"])]
    jsonl.write_text("".join(json.dumps({"text": text, "label": labels}) + "\n" for text, labels in rows))
    csv.write_text("text,label\n" + "".join(f"{text},{'; '.join(labels)}\n" for text, labels in rows))
    lists = load_dataset(_settings(jsonl), multi_label=True)
    texts = load_dataset(_settings(csv, label_separator=";"), multi_label=True)
    assert lists.labels == texts.labels == ("food", "price")
    assert lists.train.targets == texts.train.targets == ((0, 1), (), (1,))
    assert lists.sha256 == texts.sha256


@pytest.mark.parametrize(("label", "found"), [('"a,,b"', "'a,,b'"), ("[1.5]", r"\[1.5\]"), ("null", "None")])
def test_labels_that_are_none(tmp_path: Path, label: str, found: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "t", "label": ["a", "b"]}}\n{{"text": "u", "label": {label}}}\n')
    with pytest.raises(DataError, match=rf"line 2: label is {found}, expected a list of labels, or labels with ','"):
        load_dataset(_settings(path), multi_label=True)


def test_a_multi_label_adapter_is_served(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], slices: Path, tmp_path: Path, console: Console
) -> None:
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (slices / f"{split}.jsonl").read_text().splitlines()]
        lines = []
        for row in rows:
            labels = [row["label"]] * (row["label"] != "neutral") + ["long"] * (len(row["text"]) > 50)
            lines.append(json.dumps({"text": row["text"], "label": labels}) + "\n")
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    data = {"name": "tags", "train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "validation.jsonl")}
    base_model = str(tiny_bases["distilbert"])
    recipe = make_recipe(
        base_model=base_model,
        task="multi_label",
        data=data,
        training={"epochs": 3, "class_weights": "balanced", "metric_for_best": "macro_f1", "label_smoothing": 0.05},
    )
    published = train(recipe, registry=tmp_path / "registry", runs=tmp_path / "runs", console=console)
    directory = Registry(tmp_path / "registry").directory(published)
    manifest = read_manifest(directory)
    assert (manifest.task, manifest.labels) == ("multi_label", ("long", "negative", "positive"))
    report = json.loads((directory / "report" / "metrics.json").read_text())
    assert np.array(report["tuned"]["confusion"]).shape == (3, 2, 2)
    assert "a text may have none" in (directory / "README.md").read_text()
    engine = Engine(find_base_model(base_model), capacity=1)
    engine.attach(engine.read(directory, published))
    golden = manifest.golden[0]
    (answer,), _ = engine.classify([Row(golden.text, published)])
    assert isinstance(answer, Answer)
    assert answer.logits == pytest.approx(golden.logits, abs=1e-4)
    expected = 1 / (1 + np.exp(-np.array(golden.logits) / manifest.temperature))
    assert answer.scores == pytest.approx(expected.tolist(), abs=1e-4)
