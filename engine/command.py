"""`tonearm adapters`: look at a registry and change it. Stands in this room because verifying needs the engine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn, track
from rich.table import Table

from adapters.base_model import DEFAULT_BASE_MODEL, BaseModelFiles, find_base_model
from adapters.errors import InvalidReference, TonearmError, VerificationError
from adapters.manifest import MANIFEST, read_manifest
from adapters.pull import DEFAULT_MAX_WEIGHTS_MB, default_name, fetched, find_remote_adapter, refused
from adapters.push import push as send
from adapters.reference import NAME, AdapterId
from adapters.store import SHIPPED, Registry

app = typer.Typer(help="List, verify, publish, pull, push and remove adapters of a registry.", no_args_is_help=True)

RegistryDirectory = Annotated[
    Path,
    typer.Option("--registry", envvar="TONEARM_ADAPTERS_DIR", help="The registry directory.", show_default="shipped"),
]
BaseModel = Annotated[
    str, typer.Option("--base-model", envvar="TONEARM_BASE_MODEL", help="Hub id[@revision] or directory of the base.")
]
console = Console()


@app.command("list")
def list_adapters(registry: RegistryDirectory = SHIPPED) -> None:
    """Every version of every adapter, with its labels and what was measured when it was trained."""
    store = Registry(registry)
    table = Table("adapter", "aliases", "labels", "rank", "max tokens", "accuracy (95 %)", "trained on")
    for adapter in store.ids():
        aliases = ", ".join(
            alias for alias, version in store.aliases(adapter.name).items() if version == adapter.version
        )
        directory = store.directory(adapter)
        if not (directory / MANIFEST).exists():
            table.add_row(str(adapter), aliases, "no manifest: made by plain PEFT", "", "", "", "")
            continue
        try:
            manifest = read_manifest(directory)
        except VerificationError as error:
            table.add_row(str(adapter), aliases, f"[red]{escape(error.reason)}[/]", "", "", "", "")
            continue
        accuracy = manifest.metrics.get("accuracy")
        shown = f"{accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f})" if accuracy else ""
        trained = f"{manifest.training.name} ({manifest.training.examples:,})" if manifest.training else ""
        table.add_row(
            str(adapter),
            aliases,
            ", ".join(manifest.labels),
            str(manifest.lora.rank),
            str(manifest.max_tokens),
            shown,
            trained,
        )
    console.print(table)


@app.command()
def verify(
    references: Annotated[list[str] | None, typer.Argument(help="name, name@3 or name@alias; none means all.")] = None,
    registry: RegistryDirectory = SHIPPED,
    base_model: BaseModel = DEFAULT_BASE_MODEL,
) -> None:
    """Run every check that the service runs before it serves an adapter; exit status 1 if one fails."""
    from engine.engine import Engine

    store = Registry(registry)
    wanted = [store.resolve(reference) for reference in references] if references else list(store.ids())
    engine = Engine(find_base_model(base_model), capacity=1)
    table = Table("adapter", "verdict")
    failed = 0
    for adapter in track(wanted, "verifying", console=Console(stderr=True), transient=True):
        try:
            read = engine.verify(store.directory(adapter), adapter)
        except VerificationError as error:
            failed += 1
            table.add_row(str(adapter), f"[red]refused[/] {escape(error.reason)}")
        else:
            golden = f"{len(read.golden)} golden texts agree" if read.golden else "no manifest, so no golden texts"
            table.add_row(str(adapter), f"[green]serves[/] {golden}")
    console.print(table)
    if failed:
        raise typer.Exit(1)


@app.command()
def publish(
    directory: Annotated[
        Path, typer.Argument(help="A directory written by `tonearm train` or PEFT's save_pretrained.")
    ],
    name: Annotated[str, typer.Option(help="The name to publish under; a running service serves it within seconds.")],
    registry: RegistryDirectory = SHIPPED,
    base_model: BaseModel = DEFAULT_BASE_MODEL,
) -> None:
    """Verify a directory and put it into the registry as the next version of NAME, atomically."""
    store = Registry(registry)
    adapter = _verify_and_publish(directory, name, store, find_base_model(base_model))
    console.print(f"published [bold]{adapter}[/] in {store.root}")


@app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="hf://org/name[@revision][/folder], s3://bucket/prefix, or a directory's URL that fsspec reads."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="The name to publish under.", show_default="the last part of SOURCE")
    ] = None,
    registry: RegistryDirectory = SHIPPED,
    base_model: BaseModel = DEFAULT_BASE_MODEL,
    max_mb: Annotated[int, typer.Option(min=1, help="Largest weights file taken, in MiB.")] = DEFAULT_MAX_WEIGHTS_MB,
) -> None:
    """Download an adapter, verify it and put it into the registry as the next version of NAME, atomically.

    HF_TOKEN and HF_ENDPOINT, AWS_PROFILE and AWS_ENDPOINT_URL are honoured. Pickles are never fetched.
    """
    name = default_name(source) if name is None else name
    if not NAME.fullmatch(name):
        raise InvalidReference(name)
    store = Registry(registry)
    remote = find_remote_adapter(source, max_weights_mb=max_mb)
    base = find_base_model(base_model)
    with _transfer_progress() as progress:
        bar = progress.add_task("downloading", total=remote.size_bytes)
        with fetched(remote, store.root, advance=lambda size_bytes: progress.advance(bar, size_bytes)) as directory:
            progress.stop()
            try:
                adapter = _verify_and_publish(directory, name, store, base)
            except VerificationError as error:
                raise refused(remote, error) from error
    console.print(f"published [bold]{adapter}[/] from {escape(remote.shown)} in {store.root}")
    if remote.left_out:
        more = f" and {len(remote.left_out) - 8} more" if len(remote.left_out) > 8 else ""
        console.print(f"left where it is, as no adapter holds it: {escape(', '.join(remote.left_out[:8]))}{more}")


@app.command()
def push(
    reference: Annotated[str, typer.Argument(help="name, name@3 or name@alias.")],
    target: Annotated[
        str, typer.Argument(help="hf://org/name[/folder], s3://bucket/prefix, or a directory's URL that fsspec writes.")
    ],
    registry: RegistryDirectory = SHIPPED,
    private: Annotated[bool, typer.Option("--private", help="Of a hub repository that is made.")] = False,
) -> None:
    """Send an adapter to the hub or a bucket, from where `pull` and PEFT read it.

    HF_TOKEN and HF_ENDPOINT, AWS_PROFILE and AWS_ENDPOINT_URL are honoured.
    """
    store = Registry(registry)
    adapter = store.resolve(reference)
    directory = store.directory(adapter)
    with _transfer_progress() as progress:
        size_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        bar = progress.add_task("uploading", total=size_bytes)
        place = send(directory, adapter, target, private=private, advance=lambda sent: progress.advance(bar, sent))
    console.print(f"pushed [bold]{adapter}[/] to {escape(place)}")


@app.command()
def rm(
    reference: Annotated[str, typer.Argument(help="The exact version, name@3.")],
    registry: RegistryDirectory = SHIPPED,
) -> None:
    """Take one version out of the registry; requests in flight are still answered."""
    store = Registry(registry)
    adapter = store.resolve(reference)
    if reference != str(adapter):
        raise TonearmError(f"rm takes an exact version; {reference!r} means {adapter} now, say that if you mean it")
    store.remove(adapter)
    console.print(f"removed [bold]{adapter}[/]")


@app.command()
def alias(
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    alias: Annotated[str, typer.Argument(help="The alias, e.g. champion; callers then say name@champion.")],
    version: Annotated[int | None, typer.Argument(help="The version it shall mean; none removes the alias.")] = None,
    registry: RegistryDirectory = SHIPPED,
) -> None:
    """Point NAME@ALIAS at a version, or remove the alias."""
    store = Registry(registry)
    if version is None:
        store.remove_alias(name, alias)
        console.print(f"removed [bold]{name}@{alias}[/]")
    else:
        store.set_alias(name, alias, version)
        console.print(f"[bold]{name}@{alias}[/] now means {name}@{version}")


def _verify_and_publish(directory: Path, name: str, store: Registry, base: BaseModelFiles) -> AdapterId:
    from engine.engine import Engine

    engine = Engine(base, capacity=1)
    # Verified first under the name that it carries itself: a version that fails would be the newest of its name.
    named = read_manifest(directory) if (directory / MANIFEST).exists() else None
    engine.verify(directory, AdapterId(named.name, named.version) if named else AdapterId(name, 1))
    return store.publish(directory, name)


def _transfer_progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
