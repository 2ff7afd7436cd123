"""`python -m benchmarks [bank|padding]`: every measurement, or one. Tables on the terminal, JSON in runs/benchmarks."""

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


@app.command()
def bank(rounds: Rounds = 15) -> None:
    """The LoRA bank against the plain base, PEFT and, where it is installed, ONNX Runtime."""
    from benchmarks import bank as measurement

    measurement.run(rounds)


@app.command()
def padding(data: Data = None) -> None:
    """Padding waste of planned micro-batches against arrival order."""
    from benchmarks import padding as measurement

    measurement.run(data)


app()
