"""Transfer and seeds: what is started from is exactly what was published, and what it brings is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from rich.console import Console

from adapters.errors import SettingsError
from adapters.manifest import PEFT_WEIGHTS, read_manifest
from adapters.reference import AdapterId
from adapters.store import Registry
from tests.training.conftest import MakeRecipe
from training.model import add_adapter
from training.recipe import Recipe
from training.train import prepare, train, untrained_base


def _train(recipe: Recipe, root: Path, console: Console) -> AdapterId:
    return train(recipe, registry=root / "registry", runs=root / "runs", console=console)


def _report(root: Path, adapter: AdapterId) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (Registry(root / "registry").directory(adapter) / "report" / "metrics.json").read_text()
    )
    return found


@pytest.fixture
def tiny(make_recipe: MakeRecipe, tiny_bases: dict[str, Path]) -> Any:
    def make(**fields: Any) -> Recipe:
        return make_recipe(**({"base_model": str(tiny_bases["distilbert"]), "lora": {"rank": 2}} | fields))

    return make


def test_the_head_first_then_lora_over_seeds(tiny: Any, tmp_path: Path, console: Console) -> None:
    recipe = tiny(transfer={"epochs": 2, "compare": True}, training={"epochs": 2, "seeds": 3, "seed": 5})
    published = _train(recipe, tmp_path, console)
    store = Registry(tmp_path / "registry")
    assert store.names() == ["tiny", "tiny-head"]
    assert read_manifest(store.directory(AdapterId("tiny-head", 1))).lora.rank == 0
    found = _report(tmp_path, published)
    assert [seed["seed"] for seed in found["seeds"]] == [5, 6, 7]
    assert found["transfer"]["adapter"] == "tiny-head@1"
    # The start gives what the head gave: the LoRA that is put on it begins as nothing.
    head = _report(tmp_path, AdapterId("tiny-head", 1))["tuned"]
    assert found["transfer"]["before_training"]["loss"] == pytest.approx(head["loss"], abs=1e-5)
    assert len(found["transfer"]["seeds_without"]) == 3
    assert found["tuned"]["accuracy"]["value"] == max(seed["accuracy"] for seed in found["seeds"])
    said = console.file.getvalue()  # type: ignore[attr-defined]
    gains = [
        a["accuracy"] - b["accuracy"] for a, b in zip(found["seeds"], found["transfer"]["seeds_without"], strict=True)
    ]
    assert f"brings {sum(gains) / 3:+.4f} accuracy in the mean" in said and "95 % interval over the seeds" in said
    card = (store.directory(published) / "README.md").read_text()
    assert "| after tiny-head@1 |" in card and "Over 3 seeds" in card

    # The same again: the first stage is taken as it is, the second trained anew.
    again = _train(recipe, tmp_path, console)
    assert (str(again), store.versions("tiny-head")) == ("tiny@2", (1,))
    assert "tiny-head@1 is what tiny-head would train" in console.file.getvalue()  # type: ignore[attr-defined]
    weights = [(store.directory(adapter) / PEFT_WEIGHTS).read_bytes() for adapter in (published, again)]
    assert weights[0] == weights[1]


def test_a_first_task_of_other_labels(
    tiny: Any, tiny_bases: dict[str, Path], slices: Path, tmp_path: Path, console: Console
) -> None:
    """Its LoRA is taken over, its head is not."""
    rows = [json.loads(line) for line in (slices / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["label"] = {"negative": "bad", "neutral": "so-so", "positive": "good"}[row["label"]]
    (tmp_path / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = {
        "name": "first",
        "base_model": str(tiny_bases["distilbert"]),
        "data": {"name": "first", "train": "first.jsonl"},
        "max_tokens": 32,
        "lora": {"rank": 2},
        "training": {"epochs": 1, "learning_rate": 5e-3},
    }
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
    recipe = tiny(transfer={"recipe": str(tmp_path / "first.yaml")}, training={"learning_rate": 1e-9})
    second = _train(recipe, tmp_path, console)
    store = Registry(tmp_path / "registry")
    old, new = (
        safetensors.torch.load_file(store.directory(adapter) / PEFT_WEIGHTS)
        for adapter in (AdapterId("first", 1), second)
    )
    assert all(torch.allclose(old[key], new[key], atol=1e-6) for key in old if ".lora_" in key)
    heads = [key for key in old if key.endswith(".classifier.weight")]
    assert heads and not any(torch.allclose(old[key], new[key], atol=1e-3) for key in heads)
    # Another recipe under the first one's name: not what would be trained, so it is trained.
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first | {"max_tokens": 16}))
    _train(recipe, tmp_path, console)
    assert store.versions("first") == (1, 2)


def test_a_smaller_lora_of_another_scale_starts_a_larger_one_exactly(
    tiny: Any, tmp_path: Path, console: Console
) -> None:
    first = _train(tiny(lora={"rank": 2, "alpha": 4}, training={"epochs": 2}), tmp_path, console)
    directory = Registry(tmp_path / "registry").directory(first)
    logits = []
    for recipe in (
        tiny(lora={"rank": 2, "alpha": 4}, warm_start_from=str(directory)),
        tiny(lora={"rank": 6, "alpha": 3, "rslora": True}, warm_start_from=str(directory)),
    ):
        prepared = prepare(recipe, tmp_path / "runs")
        model = add_adapter(untrained_base(prepared, recipe), recipe, prepared.dataset.labels).eval()
        rows = [prepared.tokens.validation[at] for at in range(8)]
        with torch.inference_mode():
            logits.append(
                model(**{key: value for key, value in prepared.collate(rows).items() if key != "labels"}).logits
            )
    assert torch.allclose(logits[0], logits[1], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lora": {"rank": 1}}, "fits"),
        ({"lora": {"rank": 2, "targets": ["q_lin"]}}, "none of them"),
        ({"lora": None}, "none of them"),
    ],
)
def test_a_start_that_would_be_lost_in_part_is_refused(
    tiny: Any, tmp_path: Path, console: Console, fields: dict[str, Any], expected: str
) -> None:
    directory = Registry(tmp_path / "registry").directory(_train(tiny(), tmp_path, console))
    with pytest.raises(SettingsError, match=expected) as caught:
        _train(tiny(**fields, name="other", warm_start_from=str(directory)), tmp_path, console)
    assert caught.value.key == "warm_start_from"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"transfer": {}, "warm_start_from": "x"}, "two starts"),
        ({"transfer": {}, "lora": None}, "trains the head alone"),
        ({"quantise": "4bit", "lora": None}, "needs a LoRA"),
    ],
)
def test_stages_that_contradict_each_other(tiny: Any, fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        tiny(**fields)


def test_lora_plus_teaches_b_faster(tiny: Any, tmp_path: Path, console: Console) -> None:
    def moved(ratio: float) -> float:
        recipe = tiny(
            lora={"rank": 2, "learning_rate_ratio": ratio}, name=f"r{ratio:g}", training={"learning_rate": 1e-4}
        )
        tensors = safetensors.torch.load_file(
            Registry(tmp_path / "registry").directory(_train(recipe, tmp_path, console)) / PEFT_WEIGHTS
        )
        return max(float(tensor.abs().max()) for key, tensor in tensors.items() if ".lora_B." in key)

    assert moved(16) > 8 * moved(1)
