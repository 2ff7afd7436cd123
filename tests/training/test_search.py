"""A search on a tiny base: it finds, resumes and hands on."""

import csv
import json
from pathlib import Path

from rich.console import Console

from adapters.store import Registry
from tests.training.conftest import MakeRecipe
from training.search import search
from training.train import train


def test_a_search_resumes_and_its_best_is_trained(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console
) -> None:
    recipe = make_recipe(
        base_model=str(tiny_bases["distilbert"]), lora={"rank": 8, "alpha": 16}, training={"epochs": 3}
    )
    registry = tmp_path / "registry"
    first = search(recipe, trials=3, registry=registry, runs=tmp_path, console=console)
    assert (first.trials, first.directory) == (3, tmp_path / "tiny-search")
    again = search(recipe, trials=6, registry=registry, runs=tmp_path, console=console)
    assert again.trials == 6 and again.best >= first.best
    assert "3 trials of an earlier search are kept" in console.file.getvalue()  # type: ignore[attr-defined]
    rows = list(csv.DictReader((again.directory / "trials.csv").open()))
    assert [row["trial"] for row in rows] == [str(at) for at in range(6)]
    best = max(float(row["accuracy"]) for row in rows if row["state"] == "complete")
    assert best == again.best and (again.directory / "trials.png").stat().st_size > 1000
    assert not list(again.directory.glob("trial-*/"))
    assert again.recipe.lora is not None and again.recipe.lora.alpha == 2 * again.recipe.lora.rank
    shorter = recipe.model_copy(update={"max_tokens": 16})
    assert search(shorter, trials=1, registry=registry, runs=tmp_path, console=console).trials == 1
    published = train(again.recipe, registry=registry, runs=tmp_path, console=console, search=again)
    assert str(published) == "tiny@1"
    report = registry / "tiny" / "1" / "report"
    assert json.loads((report / "metrics.json").read_text())["search"]["rows"][0][1] == f"{best:.4f}"
    page = (report / "index.html").read_text()
    assert "6 trials; the best reached" in page and f"{best:.4f}" in page


def test_a_search_starts_from_the_transfer(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console
) -> None:
    recipe = make_recipe(
        base_model=str(tiny_bases["distilbert"]), lora={"rank": 4}, transfer={"epochs": 1}, training={"epochs": 1}
    )
    found = search(recipe, trials=1, registry=tmp_path / "registry", runs=tmp_path, console=console)
    assert Registry(tmp_path / "registry").names() == ["tiny-head"]
    assert found.header == ("trial", "accuracy", "learning_rate", "dropout", "epochs", "ended")
    assert found.recipe.lora is not None and found.recipe.lora.rank == 4 and found.recipe.warm_start_from is None
