"""`tonearm experiments`: what runs, how it stands, how much feedback a question needs, and how to end it."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from client import Client, ExperimentResult, Standing

app = typer.Typer(help="List experiments, read their verdicts, plan one, end one.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The experiment.")]
Url = Annotated[str, typer.Option(envvar="TONEARM_URL", help="Where the service listens.")]
Key = Annotated[str | None, typer.Option(envvar="TONEARM_API_KEY", help="A caller's key.", show_envvar=True)]
AdminKey = Annotated[
    str | None, typer.Option("--key", envvar="TONEARM_ADMIN_KEY", help="An administrator's key.", show_envvar=True)
]
Form = Annotated[Literal["table", "json", "csv"], typer.Option("--format", help="How to print it.")]
Reason = Annotated[str, typer.Option(help="Written down, and shown with the results.")]

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
def list_experiments(url: Url = _URL, key: Key = None, form: Form = "table") -> None:
    """The experiments of the file, their arms and their shares of the units."""
    with _service(url, key) as client:
        found = client.experiments()
    if form == "json":
        _print_json(found.model_dump(mode="json"))
        return
    if form == "csv":
        _print_csv(
            {"experiment": each.name, "state": each.state, "arm": arm.name, "adapter": arm.adapter, "share": arm.share}
            for each in found.experiments
            for arm in each.arms
        )
        return
    table = Table("experiment", "state", "takes", "arm", "adapter", "share")
    for experiment in found.experiments:
        takes = [f"{experiment.coverage:g} % of the units"]
        if experiment.layer:
            takes.append(f"layer {experiment.layer}")
        takes += [f"{name}: {'|'.join(values)}" for name, values in experiment.match.items()]
        first = (experiment.name, experiment.state, escape(", ".join(takes)))
        for at, arm in enumerate(experiment.arms):
            table.add_row(*(("", "", "") if at else first), arm.name, arm.adapter, f"{arm.share:.1%}")
        if experiment.shadow:
            table.add_row("", "", "", "[dim]shadow[/]", experiment.shadow, "")
    console.print(table)
    if found.error:
        console.print(f"[red]the file as it is now is not in force:[/] {escape(found.error)}")


@app.command()
def show(name: Name, url: Url = _URL, key: Key = None, form: Form = "table") -> None:
    """An experiment's numbers and verdict. Look as often as you like: the intervals hold at every look."""
    with _service(url, key) as client:
        found = client.experiment(name)
    if form == "json":
        _print_json(found.model_dump(mode="json"))
        return
    if form == "csv":
        _print_csv(_flat(found))
        return
    _print_arms(found)
    _print_differences(found)
    _print_pairs(found)
    _print_decisions(found)
    for warning in found.warnings:
        console.print(f"[red]{escape(warning)}[/]")
    console.print(f"[bold]{escape(found.summary)}[/]")


@app.command()
def plan(
    accuracy: Annotated[float, typer.Option(help="Of the first arm, as you expect it, 0 to 1.")],
    difference: Annotated[float, typer.Option(help="Smallest one that you want to see, e.g. 0.02.")],
    power: Annotated[float, typer.Option(min=0.5, max=0.999, help="Chance of seeing it.")] = 0.8,
    form: Form = "table",
) -> None:
    """Labelled units that each of two equal arms needs. Asks no service; `GET /experiments/{name}/plan` does."""
    from service.analysis import required_units, required_units_anytime

    try:
        fixed = required_units(accuracy, difference, power=power)
        anytime = required_units_anytime(accuracy, difference, power=power)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    line = {"accuracy": accuracy, "difference": difference, "power": power, "fixed": fixed, "anytime": anytime}
    if form == "json":
        _print_json(line)
    elif form == "csv":
        _print_csv([line])
    else:
        console.print(f"[bold]{fixed:,}[/] labelled units an arm, for one look that is settled before")
        console.print(f"[bold]{anytime:,}[/] for a verdict that holds at every look")


@app.command()
def stop(name: Name, reason: Reason, url: Url = _URL, key: AdminKey = None) -> None:
    """Let it take no more requests. Its results stay; another salt in the file begins it anew."""
    with _service(url, key) as client:
        _print_end(client.stop_experiment(name, reason))


@app.command()
def promote(
    name: Name,
    reason: Reason,
    arm: Annotated[str | None, typer.Option(help="Which arm; of two, the second if left out.")] = None,
    alias: Annotated[str | None, typer.Option(help="Of the arm's adapter: moved to its version.")] = None,
    url: Url = _URL,
    key: AdminKey = None,
) -> None:
    """Give all units one arm, and move an alias to its adapter."""
    with _service(url, key) as client:
        _print_end(client.promote_experiment(name, reason, arm=arm, alias=alias))


@app.command()
def export(
    name: Name,
    form: Annotated[Literal["csv", "jsonl"], typer.Option("--format", help="One JSON object a line, or CSV.")] = "csv",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file; standard output if left out.")] = None,
    url: Url = _URL,
    key: Key = None,
) -> None:
    """Every answer with its feedback, oldest first; units are hashed."""
    with _service(url, key) as client:
        content = client.export_experiment(name, form)
    if out is None:
        sys.stdout.write(content)
        return
    out.write_text(content, newline="")
    typer.echo(f"{content.count(chr(10)) - (form == 'csv'):,} rows in {out}", err=True)


def _print_arms(found: "ExperimentResult") -> None:
    table = Table(
        *("arm", "adapter", "share", "texts", "units", "labelled", "accuracy", "95 % at every look", "macro-F1"),
        *("ECE", "errors", "p50 ms", "p99 ms"),
        title=f"{found.name}, {found.state}",
    )
    for arm in found.arms:
        counts = (f"{arm.texts:,}", f"{arm.units:,}", f"{arm.labelled:,} ({arm.coverage:.0%})")
        interval = "-" if arm.accuracy_interval is None else _bounds(arm.accuracy_interval, "")
        scores = (_number(arm.accuracy), interval, _number(arm.macro_f1), _number(arm.calibration_error))
        took = (f"{arm.errors:,}", _number(arm.p50_ms, ".1f"), _number(arm.p99_ms, ".1f"))
        table.add_row(arm.name, arm.adapter, f"{arm.share:.1%}", *counts, *scores, *took)
    console.print(table)


def _print_differences(found: "ExperimentResult") -> None:
    if not found.differences:  # the summary says why
        return
    first = found.arms[0].name
    table = Table("arm", f"accuracy less {first}'s", "95 % at every look", "95 % at one look", "verdict")
    for each in found.differences:
        intervals = (_bounds(interval, "+") for interval in (each.anytime, each.fixed))
        table.add_row(each.arm, f"{each.accuracy:+.3f}", *intervals, _coloured(each.verdict))
    console.print(table)


def _print_pairs(found: "ExperimentResult") -> None:
    pairs = found.pairs
    if pairs is None:
        return
    table = Table(
        *("shadow", "pairs", "same label", "score shift", "labelled", "arm right alone", "shadow right alone"),
        *("McNemar p", "accuracy less the arms'", "95 % at every look", "verdict"),
    )
    table.add_row(
        pairs.adapter,
        f"{pairs.pairs:,}",
        _number(pairs.agreement, ".1%"),
        _number(pairs.mean_shift, "+.3f"),
        *(f"{count:,}" for count in (pairs.labelled, pairs.only_arm, pairs.only_shadow)),
        _number(pairs.mcnemar_p, ".2g"),
        _number(pairs.accuracy, "+.3f"),
        "-" if pairs.anytime is None else _bounds(pairs.anytime, "+"),
        _coloured(pairs.verdict),
    )
    console.print(table)


def _print_decisions(found: "ExperimentResult") -> None:
    table = Table("at", "decision", "shares", "reason")
    for each in found.decisions:
        table.add_row(each.at[:19], each.kind, _shares(each.shares), escape(each.reason))
    if found.decisions:
        console.print(table)
    if found.waiting:
        console.print(f"the promotion waits: {escape(found.waiting)}")


def _print_end(standing: "Standing") -> None:
    last = standing.decisions[-1]
    console.print(f"{standing.name}: [bold]{standing.state}[/], {_shares(last.shares)}; {escape(last.reason)}")


def _flat(found: "ExperimentResult") -> Iterator[dict[str, Any]]:
    """A line an arm, with its difference from the first."""
    differences = {each.arm: each for each in found.differences}
    for arm in found.arms:
        line = arm.model_dump(exclude={"accuracy_interval"})
        difference = differences.get(arm.name)
        line["difference"] = None if difference is None else difference.accuracy
        line["difference_low"] = None if difference is None else difference.anytime.low
        line["difference_high"] = None if difference is None else difference.anytime.high
        line["verdict"] = None if difference is None else difference.verdict
        yield line


def _print_json(content: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))


def _print_csv(lines: Iterable[Mapping[str, Any]]) -> None:
    every: Sequence[Mapping[str, Any]] = list(lines)
    if every:
        writer = csv.DictWriter(sys.stdout, list(every[0]))
        writer.writeheader()
        writer.writerows(every)


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{arm} {share:.1%}" for arm, share in shares.items())


def _bounds(interval: Any, sign: str) -> str:
    return f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}"


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _coloured(verdict: str) -> str:
    return f"[{ {'better': 'green', 'worse': 'red'}.get(verdict, 'yellow') }]{verdict}[/]"
