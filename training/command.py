"""`tonearm train`: the command line of training."""

import json
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import SettingsError
from adapters.store import SHIPPED


def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe, a YAML file; see training/recipes/.", metavar="RECIPE")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a recipe field, e.g. training.epochs=2 or lora=null; repeat."
        ),
    ] = None,
    registry: Annotated[
        Path,
        typer.Option(envvar="TONEARM_ADAPTERS_DIR", help="Registry that the adapter is published to.", metavar="DIR"),
    ] = SHIPPED,
    output: Annotated[
        Path, typer.Option(help="Directory of runs; each gets its own directory there.", metavar="DIR")
    ] = Path("runs"),
    search: Annotated[
        int, typer.Option(min=0, help="Try so many learning rates, ranks and dropouts first, and train the best.")
    ] = 0,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a recipe, for editors.")] = False,
) -> None:
    """Train an adapter from a recipe, report on it, and publish it.

    The untrained base is measured first, then the recipe's LoRA (or head alone) is trained; the best epoch is kept.
    What was saved is read back and checked as the service would check it before it is published as the next version.
    """
    # Imported here: --help must not wait for them, and a service without training's libraries has none of them.
    from rich.console import Console

    from training.recipe import load_recipe, recipe_schema

    if schema:
        typer.echo(json.dumps(recipe_schema(), indent=2))
        return
    if recipe is None:
        raise typer.BadParameter("expected a recipe, a YAML file; see training/recipes/")
    from training.processes import world_size
    from training.train import train as train_recipe

    loaded, console = load_recipe(recipe, set_ or []), Console()
    if search and world_size() > 1:
        raise SettingsError("--search", search, "one process: trials are one after another")
    if search:
        from training.search import search as search_settings

        found = search_settings(loaded, trials=search, registry=registry, runs=output, console=console)
        train_recipe(found.recipe, registry=registry, runs=output, console=console, search=found)
    else:
        train_recipe(loaded, registry=registry, runs=output, console=console)
