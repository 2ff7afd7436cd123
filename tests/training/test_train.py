"""A recipe goes in and a served adapter comes out, on the real base and on tiny ones with their traps."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from peft import PeftModel
from rich.console import Console
from sklearn.utils.class_weight import compute_class_weight
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from adapters.base_model import BaseModelFiles
from adapters.errors import SettingsError, VerificationError
from adapters.manifest import PEFT_CONFIG, PEFT_WEIGHTS, digest_files, file_sha256, read_manifest
from adapters.reference import AdapterId
from adapters.store import Registry
from tests.training.conftest import MakeRecipe, split_of
from training.fit import _loss
from training.golden import MAX_GOLDEN_TOKENS
from training.model import save
from training.recipe import FitSettings
from training.train import train

LABELS = ("negative", "neutral", "positive")


def _train(recipe: Any, root: Path, console: Console) -> Path:
    published = train(recipe, registry=root / "registry", runs=root / "runs", console=console)
    return Registry(root / "registry").directory(published)


@pytest.fixture(scope="module")
def trained(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An adapter of the real base, and what the console showed."""
    console = Console(record=True, width=120, file=(tmp_path_factory.mktemp("log") / "log").open("w"))
    recipe = make_recipe(training={"epochs": 2}, modules_to_save=["pooler"], lora={"rank": 4, "alpha": 8})
    return _train(recipe, tmp_path_factory.mktemp("real"), console), console.export_text()


def test_the_directory_is_whole(trained: tuple[Path, str], base: BaseModelFiles) -> None:
    directory, _ = trained
    manifest = read_manifest(directory)
    assert (manifest.name, manifest.version) == ("tiny", 1)
    assert manifest.base.id == base.id
    assert manifest.base.sha256 == base.sha256
    assert manifest.labels == LABELS
    assert manifest.max_tokens == 32
    assert manifest.lora.rank == 4
    assert manifest.lora.targets == ("dense", "key", "query", "value")
    assert manifest.training is not None
    assert manifest.training.examples == 48
    assert set(manifest.metrics) == {"accuracy", "macro_f1", "base_accuracy", "base_macro_f1"}
    assert manifest.files == digest_files(directory)
    assert set(manifest.files) == {
        "README.md",
        PEFT_CONFIG,
        PEFT_WEIGHTS,
        "report/calibration.png",
        "report/confusion.png",
        "report/curves.png",
        "report/index.html",
        "report/lengths.png",
        "report/metrics.json",
    }
    report = json.loads((directory / "report" / "metrics.json").read_text())
    assert [epoch["number"] for epoch in report["epochs"]] == [1, 2]
    assert report["tuned"]["accuracy"] == manifest.metrics["accuracy"].model_dump()
    assert report["recipe"]["data"]["train"] == "train.jsonl"


def test_nothing_published_says_where_it_was_made(trained: tuple[Path, str]) -> None:
    directory, _ = trained
    made_in = [str(Path(__file__).parents[2]), str(directory.parents[3]), str(Path.home())]
    for path in directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [place for place in made_in if place.encode() in content], path
    assert (
        json.loads((directory / PEFT_CONFIG).read_text())["base_model_name_or_path"] == read_manifest(directory).base.id
    )


def test_golden_logits_are_pefts_own(trained: tuple[Path, str], base: BaseModelFiles) -> None:
    directory, _ = trained
    golden = read_manifest(directory).golden
    assert len(golden) >= 4
    tokenizer = AutoTokenizer.from_pretrained(base.directory)
    model = AutoModelForSequenceClassification.from_pretrained(base.directory, num_labels=3)
    model = PeftModel.from_pretrained(model, str(directory)).eval()
    for example in golden:
        inputs = tokenizer(example.text, return_tensors="pt")
        assert inputs["input_ids"].shape[1] <= MAX_GOLDEN_TOKENS
        with torch.inference_mode():
            assert np.allclose(model(**inputs).logits[0].numpy(), example.logits, atol=1e-5)


def test_the_card_is_for_the_hub(trained: tuple[Path, str]) -> None:
    card = (trained[0] / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nbase_model: sentence-transformers/all-MiniLM-L6-v2\n")
    for needed in ("library_name: peft", "## Results", "report/curves.png", "## Limits", "curl -s", "X-Adapter: tiny"):
        assert needed in card


def test_the_console_is_for_people(trained: tuple[Path, str]) -> None:
    _, log = trained
    for needed in (
        "untrained base: accuracy",
        "epoch 1/2: train loss",
        "the same 24 validation texts",
        "McNemar",
        "published tiny@1",
    ):
        assert needed in log
    assert "━━━━ " not in log, "a bar outside a terminal"


def test_head_only_trains_the_head_alone(make_recipe: MakeRecipe, tmp_path: Path, console: Console) -> None:
    directory = _train(make_recipe(lora=None), tmp_path, console)
    tensors = safetensors.torch.load_file(directory / PEFT_WEIGHTS)
    assert {key.removeprefix("base_model.model.") for key in tensors} == {"classifier.weight", "classifier.bias"}
    manifest = read_manifest(directory)
    assert (manifest.lora.rank, manifest.lora.targets) == (0, ())


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("distilbert", {"pre_classifier", "classifier"}),
        ("no-pooler", {"bert.pooler.dense", "classifier"}),
        ("other-head", {"classifier"}),
    ],
)
def test_what_the_base_lacks_is_saved(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console, name: str, saved: set[str]
) -> None:
    """The run itself checks that another draw of what the base lacks gives the same logits."""
    directory = _train(make_recipe(base_model=str(tiny_bases[name])), tmp_path, console)
    keys = {key.removeprefix("base_model.model.") for key in safetensors.torch.load_file(directory / PEFT_WEIGHTS)}
    assert {key.rpartition(".")[0] for key in keys if ".lora_" not in key} == saved
    assert read_manifest(directory).base.id == name


def test_an_adapter_that_reads_back_different_is_not_published(
    make_recipe: MakeRecipe,
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save_less(model: Any, directory: Path, base_id: str, revision: str | None) -> None:
        save(model, directory, base_id, revision)
        tensors = safetensors.torch.load_file(directory / PEFT_WEIGHTS)
        key = "base_model.model.pre_classifier.weight"
        safetensors.torch.save_file(tensors | {key: torch.zeros_like(tensors[key])}, directory / PEFT_WEIGHTS)

    monkeypatch.setattr("training.publish.save", save_less)
    with pytest.raises(VerificationError, match="reload"):
        _train(make_recipe(base_model=str(tiny_bases["distilbert"])), tmp_path, console)
    assert Registry(tmp_path / "registry").names() == []


def test_the_same_seed_gives_the_same_adapter(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console
) -> None:
    recipe = make_recipe(base_model=str(tiny_bases["distilbert"]), lora={"rank": 2, "dropout": 0.1})
    first, second = (_train(recipe, tmp_path / root, console) / PEFT_WEIGHTS for root in ("first", "second"))
    assert file_sha256(first) == file_sha256(second)


def test_balanced_classes_count_alike(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console
) -> None:
    targets = [0] * 6 + [1] * 3 + [2]
    loss = _loss(split_of([1] * 10, targets), FitSettings(class_weights="balanced"))
    logits, labels = torch.randn(10, 3), torch.tensor(targets)
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=targets), dtype=torch.float32)
    expected = torch.nn.functional.cross_entropy(logits, labels, weights)
    assert float(loss(SimpleNamespace(logits=logits), labels)) == pytest.approx(float(expected))
    # In two batches of one step: each batch's part of the same mean.
    parts = [loss(SimpleNamespace(logits=logits[at]), labels[at], 10) for at in (slice(0, 4), slice(4, 10))]
    assert float(sum(parts)) == pytest.approx(float(expected))
    recipe = make_recipe(base_model=str(tiny_bases["distilbert"]), training={"class_weights": "balanced"})
    metrics = json.loads((_train(recipe, tmp_path, console) / "report" / "metrics.json").read_text())
    assert metrics["recipe"]["training"]["class_weights"] == "balanced"
    assert set(metrics["data"]["train_balance"]) == set(LABELS) and metrics["data"]["train_tokens"]["p100"] <= 32
    assert set(metrics["data"]["findings"]) == {"duplicates", "conflicts", "leakage"}


def test_bf16_is_for_training_only(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console
) -> None:
    """The reload check compares fp32 logits, so it would refuse a model that still computed in bf16."""
    recipe = make_recipe(base_model=str(tiny_bases["distilbert"]), training={"precision": "bf16"})
    tensors = safetensors.torch.load_file(_train(recipe, tmp_path, console) / PEFT_WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_early_stop_versions_and_warm_start(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console
) -> None:
    fields: dict[str, Any] = {"base_model": str(tiny_bases["distilbert"]), "lora": {"rank": 2}}
    training = {"epochs": 6, "learning_rate": 1e-9, "early_stopping_patience": 1}
    first = _train(make_recipe(**fields, training=training), tmp_path, console)
    report = json.loads((first / "report" / "metrics.json").read_text())
    assert len(report["epochs"]) == 2
    assert report["best_epoch"] == 1
    # With next to no learning rate, what the second ends with is what it started from.
    training = {"learning_rate": 1e-9, "seed": 7}
    second = _train(make_recipe(**fields, training=training, warm_start_from=str(first)), tmp_path, console)
    assert read_manifest(second).version == 2
    old, new = (safetensors.torch.load_file(path / PEFT_WEIGHTS) for path in (first, second))
    assert all(torch.allclose(old[key], new[key], atol=1e-6) for key in old)
    assert AdapterId("tiny", 2) in set(Registry(tmp_path / "registry").ids())


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"max_tokens": 100}, "max_tokens"),
        ({"lora": {"targets": ["q_line"]}}, "lora.targets"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save"),
        ({"warm_start_from": "nowhere"}, "warm_start_from"),
    ],
)
def test_what_the_base_does_not_have(
    make_recipe: MakeRecipe,
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    console: Console,
    fields: dict[str, Any],
    key: str,
) -> None:
    with pytest.raises(SettingsError) as caught:
        _train(make_recipe(base_model=str(tiny_bases["distilbert"]), **fields), tmp_path, console)
    assert caught.value.key == key
    assert not (tmp_path / "registry").exists()
