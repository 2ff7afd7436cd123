"""The verbs `tonearm serve` and `tonearm classify`. Nothing heavy is imported before a verb runs."""

import inspect
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.errors import TonearmError

if TYPE_CHECKING:
    from client import Item

    Answered = Item | list[Item] | list[list[Item]]

_URL = "http://127.0.0.1:8000"


def _serve(**flags: Any) -> None:
    """Serve the adapters of a registry over HTTP. Every flag is also an environment variable, TONEARM_<NAME>."""
    from service.serve import serve as run
    from service.settings import read_settings

    try:
        raise typer.Exit(run(read_settings(flags)))
    except TonearmError as error:
        typer.echo(f"tonearm serve: {error}", err=True)
        raise typer.Exit(2) from None


def _with_settings_as_flags(command: Callable[..., None]) -> Callable[..., None]:
    """One option a setting, so that the settings stand in one place only. Their texts are validated there, too."""
    try:
        from service.settings import Settings
    except ImportError:
        # Where only the training side is installed, the front door must still open.
        return _not_installed

    parameters = []
    for name, setting in Settings.model_fields.items():
        kind: Any = bool if setting.annotation is bool else str
        option = typer.Option(help=setting.description, show_default=_default(setting.default))
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__ = command.__name__.lstrip("_")
    return command


def _not_installed() -> None:
    """Serve the adapters of a registry over HTTP (not installed)."""
    typer.echo("tonearm serve: not installed here; pip install 'tonearm[serve]'", err=True)
    raise typer.Exit(2)


def _default(value: object) -> str:
    return "none" if value in (None, ()) else str(value)


serve = _with_settings_as_flags(_serve)


def classify(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Read from stdin if left out.")] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="Name, name@3, name@alias; or several.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="The A/B unit.")] = None,
    url: Annotated[str, typer.Option(envvar="TONEARM_URL", help="Where the service listens.")] = _URL,
    key: Annotated[str | None, typer.Option(envvar="TONEARM_API_KEY", help="A caller's key.", show_envvar=True)] = None,
    timeout_s: Annotated[float, typer.Option(help="Longest wait for the answer.")] = 60.0,
    retries: Annotated[int, typer.Option(min=0, help="Tries after the first, where the service is busy or away.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the service's answer as it is.")] = False,
) -> None:
    """Ask a running service what its adapters say of one or more texts."""
    texts = texts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        _fail("no text: give some, or one a line on stdin")
    from client import Client, ConnectionFailed, TonearmClientError

    text = texts[0] if len(texts) == 1 else texts
    by = adapter.split(",") if adapter is not None and "," in adapter else adapter
    try:
        with Client(url, api_key=key or None, timeout_s=timeout_s, retries=retries) as client:
            answer = client.classify(text, adapter=by, unit_id=unit)
    except TonearmClientError as error:
        if isinstance(error, ConnectionFailed) and not error.sent:
            _fail(f"nothing listens at {url}; start the service with `tonearm serve`, or give --url")
        _fail(str(error))
    if as_json:
        plain = _plain(answer)
        typer.echo(json.dumps(plain if isinstance(plain, dict) else {"results": plain}, ensure_ascii=False, indent=2))
    else:
        _print_table(texts, answer)


def _plain(answer: "Answered") -> Any:
    """As it came: with fields that this client does not know, without those that the service left out."""
    if isinstance(answer, list):
        return [_plain(item) for item in answer]
    return answer.model_dump(mode="json", exclude_unset=True)


def _print_table(texts: list[str], answer: "Answered") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from client import ItemError

    table = Table("text", "adapter", "label", "score", box=None, header_style="bold")
    for text, item in _flat(texts, answer):
        if isinstance(item, ItemError):
            table.add_row(escape(text), "", "[red]" + escape(item.error.title), escape(item.error.detail))
            continue
        by = item.adapter + (f" ({item.experiment}/{item.arm})" if item.experiment else "")
        table.add_row(escape(text), by, escape(item.label), f"{item.score:.3f}")
    Console().print(table)


def _flat(texts: list[str], answer: "Answered") -> "list[tuple[str, Item]]":
    """Pairs of a text and an item, for any of the shapes of an answer."""
    if not isinstance(answer, list):
        return [(texts[0], answer)]
    asked = texts * len(answer) if len(texts) == 1 else texts
    rows = [(text, row if isinstance(row, list) else [row]) for text, row in zip(asked, answer, strict=True)]
    return [(text, item) for text, row in rows for item in row]


def _fail(message: str) -> Any:
    typer.echo(f"tonearm classify: {message}", err=True)
    raise typer.Exit(1)
