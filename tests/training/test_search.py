"""A search on a tiny base: it finds, resumes and hands on."""

import csv
from pathlib import Path

from rich.console import Console

from tests.training.conftest import MakeRecipe
from training.search import search
from training.train import train


def test_a_search_resumes_and_its_best_is_trained(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console
) -> None:
    recipe = make_recipe(
        base_model=str(tiny_bases["distilbert"]), lora={"rank": 8, "alpha": 16}, training={"epochs": 3}
    )
    first = search(recipe, trials=3, runs=tmp_path, console=console)
    assert (first.trials, first.directory) == (3, tmp_path / "tiny-search")
    again = search(recipe, trials=6, runs=tmp_path, console=console)
    assert again.trials == 6 and again.best >= first.best
    assert "3 trials of an earlier search are kept" in console.file.getvalue()  # type: ignore[attr-defined]
    rows = list(csv.DictReader((again.directory / "trials.csv").open()))
    assert [row["trial"] for row in rows] == [str(at) for at in range(6)]
    best = max(float(row["accuracy"]) for row in rows if row["state"] == "complete")
    assert best == again.best and (again.directory / "trials.png").stat().st_size > 1000
    assert not list(again.directory.glob("trial-*/"))
    assert again.recipe.lora is not None and again.recipe.lora.alpha == 2 * again.recipe.lora.rank
    other = search(recipe.model_copy(update={"max_tokens": 16}), trials=1, runs=tmp_path, console=console)
    assert other.trials == 1
    published = train(again.recipe, registry=tmp_path / "registry", runs=tmp_path, console=console)
    assert str(published) == "tiny@1"
