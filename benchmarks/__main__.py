"""`python -m benchmarks [bank|bases|residency|padding|load|ab|training|replicas|score]`: every measurement, or one.

Tables go to the terminal, JSON to runs/benchmarks.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help=__doc__, add_completion=False, invoke_without_command=True)

Rounds = Annotated[int, typer.Option(help="Times that every side runs.")]
Data = Annotated[
    Path | None, typer.Option(envvar="TONEARM_DATA", help="Folder with sst2/ and movie_reviews/; none: drawn lengths.")
]


@app.callback()
def everything(context: typer.Context) -> None:
    """Side-by-side measurements; without a name, all of them."""
    if context.invoked_subcommand is None:
        padding()
        bank()
        residency()
        load()


@app.command()
def bank(
    tables: Annotated[
        list[str] | None, typer.Argument(help="small, distinct, popularity, speed, all-linear; none: all of them.")
    ] = None,
    rounds: Rounds = 8,
) -> None:
    """The LoRA bank against the plain base, PEFT and, where it is installed, ONNX Runtime."""
    from benchmarks import bank as measurement

    _check_known(tables, measurement.TABLES)
    measurement.run(rounds, tables or measurement.TABLES)


@app.command()
def bases(
    names: Annotated[
        list[str] | None, typer.Argument(help="Of MiniLM-L6, BERT-base, Qwen2.5-0.5B and so on; none: all encoders.")
    ] = None,
    rounds: Rounds = 3,
) -> None:
    """The bank on bases of other sizes, with random weights: rows a second and memory, on a GPU where there is one."""
    from benchmarks import bases as measurement

    _check_known(names, measurement.BASES)
    measurement.run(rounds, names or measurement.ENCODERS)


@app.command()
def residency(
    registered: Annotated[int, typer.Option(help="Adapters in the registry.", min=10)] = 10_000,
    capacity: Annotated[int, typer.Option(help="Adapters in the bank at once.", min=1)] = 2048,
    rounds: Annotated[int, typer.Option(help="Turns of every side.", min=1)] = 5,
) -> None:
    """Thousands of registered adapters through one worker: throughput, latency, loads, memory."""
    from benchmarks import residency as measurement

    measurement.run(registered, capacity, rounds)


@app.command()
def padding(data: Data = None) -> None:
    """Padding waste of planned micro-batches against arrival order."""
    from benchmarks import padding as measurement

    measurement.run(data)


@app.command()
def load(
    parts: Annotated[
        list[str] | None,
        typer.Argument(help="transport, idle, throughput, latency, overload, rivals; none: all of them."),
    ] = None,
    data: Data = None,
    seconds: Annotated[float, typer.Option(help="Length of a side's turn.", min=1)] = 8.0,
    rounds: Annotated[int, typer.Option(help="Turns of every side.", min=1)] = 4,
    overload_seconds: Annotated[float, typer.Option(help="Length of the overload.", min=5)] = 60.0,
    connections: Annotated[int, typer.Option(help="Requests on their way in closed loops.", min=1)] = 128,
    rival: Annotated[
        Path | None, typer.Option(help="Virtual environment for infinity-emb, kept; none: one for this run.")
    ] = None,
) -> None:
    """The real service over HTTP: transport, throughput, latency, overload; LitServe and infinity-emb beside it."""
    from benchmarks import load as measurement

    _check_known(parts, measurement.PARTS)
    options = measurement.Options(
        data=data,
        turns=measurement.Turns(rounds, seconds, connections),
        overload_s=overload_seconds,
        rival=rival,
    )
    measurement.run(parts or measurement.PARTS, options)


@app.command()
def ab(
    data: Annotated[Path, typer.Option(envvar="TONEARM_DATA", help="Folder with sst2/validation.jsonl.")],
    repeats: Annotated[int, typer.Option(help="Experiments, each with a salt of its own.", min=1)] = 5,
    most: Annotated[int, typer.Option(help="Labels after which an experiment is given up.", min=100)] = 10_000,
) -> None:
    """A labelled set replayed through a live service: how many labels a verdict takes, against theory."""
    from benchmarks import ab as measurement

    if not (data / "sst2" / "validation.jsonl").is_file():
        raise typer.BadParameter(f"{data}: expected a folder with sst2/validation.jsonl")
    measurement.run(data, repeats, most)


@app.command()
def training(
    data: Annotated[Path, typer.Option(envvar="TONEARM_DATA", help="Folder with movie_reviews/.")],
    texts: Annotated[int, typer.Option(help="Texts to train on, once.", min=8)] = 96,
    rounds: Rounds = 3,
) -> None:
    """`tonearm train` against the plain Trainer script of the original experiment: texts a second, peak memory."""
    from benchmarks import training as measurement

    if not (data / "movie_reviews" / "train.jsonl").is_file():
        raise typer.BadParameter(f"{data}: expected a folder with movie_reviews/train.jsonl")
    measurement.run(data, texts, rounds)


@app.command()
def replicas(
    capacity: Annotated[int, typer.Option(help="Adapters in a replica's bank, simulated.", min=1)] = 2048,
    live: Annotated[bool, typer.Option(help="Three real replicas behind nginx, too.")] = True,
    seconds: Annotated[float, typer.Option(help="Length of a side's turn.", min=1)] = 10.0,
    rounds: Annotated[int, typer.Option(help="Turns of every side.", min=1)] = 3,
) -> None:
    """Hit rates of 1 to 16 replicas with up to 100,000 adapters, in turn and by adapter: simulated, and three real."""
    from benchmarks import replicas as measurement

    measurement.run(capacity)
    if live:
        measurement.live(seconds, rounds)


@app.command()
def score(
    data: Data = None,
    rows: Annotated[int, typer.Option(help="Rows of the table.", min=10_000)] = 20_000,
    rounds: Annotated[int, typer.Option(help="Times that every side runs.", min=1)] = 3,
) -> None:
    """`tonearm score` with one and two workers against the plain loop over the same rows: rows a second."""
    from benchmarks import score as measurement

    measurement.run(data, rows, rounds)


def _check_known(given: Collection[str] | None, known: Collection[str]) -> None:
    unknown = set(given or ()) - set(known)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: expected some of {', '.join(known)}")


# The processes of `load` are spawned and import this module again under another name.
if __name__ == "__main__":
    app()
