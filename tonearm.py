"""The front door: the command `tonearm`, and the clients `tonearm.Client` and `tonearm.AsyncClient`.

Every verb lives in its own room and is imported when it is asked for.
"""

import sys
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

import engine.command
import scoring.command
import service.command
import service.experiments_command
import training.command
from adapters.errors import TonearmError

if TYPE_CHECKING:
    from client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "app", "main"]

app = typer.Typer(
    name="tonearm",
    help="Train text classifiers as LoRA adapters, and serve hundreds of them from one shared encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(training.command.train)
app.command()(service.command.serve)
app.command()(service.command.classify)
app.command()(scoring.command.score)
app.add_typer(engine.command.app, name="adapters")
app.add_typer(service.experiments_command.app, name="experiments")


def __getattr__(name: str) -> Any:
    """`from tonearm import Client`: imported when it is asked for, so that the command starts without it."""
    if name in ("AsyncClient", "Client"):
        import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Run a verb; an error of ours is one line on standard error and exit status 1."""
    try:
        app()
    except TonearmError as error:
        Console(stderr=True).print(f"[bold red]tonearm:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
