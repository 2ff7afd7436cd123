"""`tonearm score`: bulk scoring from the shell."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from adapters.base_model import DEFAULT_BASE_MODEL
from adapters.store import SHIPPED, Registry
from scoring.worker import Format, OnError, Task


def score(
    source: Annotated[
        str,
        typer.Argument(
            help="File, directory or glob of .parquet, .jsonl, .csv; s3://… and the like too.", metavar="INPUT"
        ),
    ],
    adapter: Annotated[str, typer.Option(help="name, name@3 or name@alias; several with commas between them.")],
    output: Annotated[str, typer.Option(help="Directory for the parts; s3://… and the like too.", metavar="DIR")],
    text: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    format_: Annotated[Format, typer.Option("--format", help="Of the parts.")] = Format.PARQUET,
    scores: Annotated[bool, typer.Option("--scores", help="A column for the score of every label, too.")] = False,
    windows: Annotated[
        bool, typer.Option("--windows", help="Read a text that is too long whole, in windows, rather than cut it.")
    ] = False,
    on_error: Annotated[
        OnError, typer.Option(help="At a row that cannot be scored: end, or write why into the column `error`.")
    ] = OnError.FAIL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with an encoder of its own.", show_default="one a core")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores of a worker.")] = 1,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster, e.g. auto; none starts one here.")] = None,
    registry: Annotated[
        Path,
        typer.Option(
            envvar="TONEARM_ADAPTERS_DIR", help="Registry, where every worker finds it.", show_default="shipped"
        ),
    ] = SHIPPED,
    base_model: Annotated[
        str, typer.Option(envvar="TONEARM_BASE_MODEL", help="Hub id[@revision] or directory of the base.")
    ] = DEFAULT_BASE_MODEL,
) -> None:
    """Label every row of a table of texts, of any size, on one machine or a Ray cluster.

    Columns of the input are kept; each adapter adds its label, score and whether the text was cut. A run that was cut
    off is gone on with when the same command is given again: every row is in the output exactly once.
    """
    from rich.console import Console
    from rich.table import Table

    from scoring.score import score as score_input

    store = Registry(registry)
    exact = {}
    for reference in filter(None, (part.strip() for part in adapter.split(","))):
        found = store.resolve(reference)
        # Two versions of one name need more than the name.
        exact[reference.replace("@", "_") if found.name in exact else found.name] = str(found)
    if not exact:
        raise typer.BadParameter("expected the name of an adapter", param_hint="--adapter")
    task = Task(
        base_model=base_model,
        registry=str(store.root),
        adapters=tuple(exact.items()),
        text=text,
        output=output,
        format=format_,
        windows=windows,
        all_scores=scores,
        on_error=on_error,
        threads=threads,
    )
    console, began = Console(), time.perf_counter()
    count = workers or max(1, (os.cpu_count() or 1) // threads)
    done = score_input(source, task, workers=count, cluster=address, console=console)
    took_s = time.perf_counter() - began
    table = Table("adapter", "label", "rows", "share", title=f"{done.rows:,} rows in {done.units} parts in {output}")
    for prefix, labels in done.labels.items():
        for label, rows in sorted(labels.items(), key=lambda pair: -pair[1]):
            table.add_row(exact[prefix], label, f"{rows:,}", f"{rows / max(done.rows, 1):.1%}")
    console.print(table)
    if done.failed:
        console.print(f"{done.failed:,} rows could not be scored; their column `error` says why", style="yellow")
    fresh = "" if done.resumed == 0 else f" ({done.resumed} units were there)"
    console.print(f"{took_s:.1f} s{fresh}", highlight=False)
