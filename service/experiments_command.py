"""`tonearm experiments`: what runs, how it stands, and how much feedback a question needs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from client import Client, ExperimentResult

app = typer.Typer(help="List experiments, read their verdicts, plan one.", no_args_is_help=True)

Url = Annotated[str, typer.Option(envvar="TONEARM_URL", help="Where the service listens.")]
Key = Annotated[str | None, typer.Option(envvar="TONEARM_API_KEY", help="A caller's key.", show_envvar=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer as it is.")]

_URL = "http://127.0.0.1:8000"
console = Console()


@contextmanager
def _service(url: str, key: str | None) -> Iterator["Client"]:
    """A client whose errors end the command with one line."""
    from client import Client, TonearmClientError

    try:
        with Client(url, api_key=key or None) as client:
            yield client
    except TonearmClientError as error:
        typer.echo(f"tonearm experiments: {error}", err=True)
        raise typer.Exit(1) from None


@app.command("list")
def list_experiments(url: Url = _URL, key: Key = None) -> None:
    """The experiments in force, their arms and their shares of the units."""
    with _service(url, key) as client:
        found = client.experiments()
    table = Table("experiment", "arm", "adapter", "share")
    for experiment in found.experiments:
        for at, arm in enumerate(experiment.arms):
            table.add_row("" if at else experiment.name, arm.name, arm.adapter, f"{arm.share:.1%}")
    console.print(table)
    if found.error:
        console.print(f"[red]the file as it is now is not in force:[/] {escape(found.error)}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    url: Url = _URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """An experiment's numbers and verdict. Look as often as you like: the intervals hold at every look."""
    with _service(url, key) as client:
        found = client.experiment(name)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), ensure_ascii=False, indent=2))
        return
    _print_arms(found)
    _print_differences(found)
    for warning in found.warnings:
        console.print(f"[red]{escape(warning)}[/]")


@app.command()
def plan(
    accuracy: Annotated[float, typer.Option(help="Of the first arm, as you expect it, 0 to 1.")],
    difference: Annotated[float, typer.Option(help="Smallest one that you want to see, e.g. 0.02.")],
    power: Annotated[float, typer.Option(min=0.5, max=0.999, help="Chance of seeing it.")] = 0.8,
) -> None:
    """Labelled units that each of two equal arms needs."""
    from service.analysis import half_width, required_units

    try:
        fixed = required_units(accuracy, difference, power=power)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console.print(f"[bold]{fixed:,}[/] labelled units an arm, for one look that is settled before")
    wider = half_width(1.0, 2 * fixed) / 1.96
    console.print(f"about [bold]{int(fixed * wider**2):,}[/] for a verdict that holds at every look (an estimate)")


def _print_arms(found: "ExperimentResult") -> None:
    table = Table(
        "arm", "adapter", "share", "texts", "units", "labelled", "accuracy", "macro-F1", "ECE", "ms", title=found.name
    )
    for arm in found.arms:
        figures = (
            "-" if value is None else f"{value:.3f}" for value in (arm.accuracy, arm.macro_f1, arm.calibration_error)
        )
        took = "-" if arm.mean_took_ms is None else f"{arm.mean_took_ms:.1f}"
        counts = (f"{arm.texts:,}", f"{arm.units:,}", f"{arm.labelled:,} ({arm.coverage:.0%})")
        table.add_row(arm.name, arm.adapter, f"{arm.share:.1%}", *counts, *figures, took)
    console.print(table)


def _print_differences(found: "ExperimentResult") -> None:
    if not found.differences:
        console.print(
            "no difference yet: each arm needs 30 labelled units" if not found.void else "no difference: void"
        )
        return
    first = found.arms[0].name
    table = Table("arm", f"accuracy less {first}'s", "95 % at every look", "95 % at one look", "verdict")
    for each in found.differences:
        colour = {"better": "green", "worse": "red"}.get(each.verdict, "yellow")
        bounds = (f"{interval.low:+.3f} to {interval.high:+.3f}" for interval in (each.anytime, each.fixed))
        table.add_row(each.arm, f"{each.accuracy:+.3f}", *bounds, f"[{colour}]{each.verdict}[/]")
    console.print(table)
