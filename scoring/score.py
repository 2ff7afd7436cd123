"""Scoring a whole input on Ray Data: units to workers, one file each, until none is missing.

    input -> units -> (those that an earlier run did) -> workers -> parts -> _done.json

A unit's part has the unit's number in its name, so a row is in the output once however often a unit is tried; a run
that was cut off does the units that are missing.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapters.base_model import find_base_model
from adapters.errors import DataError, SettingsError
from adapters.manifest import weights_sha256
from adapters.store import Registry
from scoring.units import Source, Unit, cut, find_input
from scoring.worker import UNITS, Done, Scorer, Task, write_whole

PLAN, DONE = "_plan.json", "_done.json"
"""What the output is the output of, and what came of it; the second one's presence is the end."""

ROWS_AT_ONCE = 2048
_OBJECT_STORE_BYTES = 128 * 2**20
"""Only units and summaries go through it: rows are read and written by the workers."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a whole output holds.

    Attributes:
        resumed: units that an earlier run had done.
        labels: how often each was given, by the columns' prefix.
        failed: rows whose `error` says why they have no labels.
    """

    output: str
    rows: int
    units: int
    resumed: int
    labels: dict[str, dict[str, int]]
    failed: int


def score(
    address: str,
    task: Task,
    *,
    workers: int,
    cluster: str | None,
    console: Console,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Scored:
    """Score every row of an input.

    Args:
        address: a file, a directory or a glob.
        workers: processes, each with an encoder of its own.
        cluster: of a Ray cluster, e.g. `auto`; None starts one here for this run.

    Raises:
        DataError: the input is wrong, or a row is and the task says to fail.
        SettingsError: the output is of something else, or Ray is not there.
    """
    source = find_input(address)
    _begin(source, task, rows_at_once)
    units = list(cut(source, rows_at_once))
    done = _done_before(task)
    resumed = len(done)
    if done:
        console.print(f"{resumed} of {len(units)} units were done before", highlight=False)
    missing = [unit for unit in units if unit.number not in done]
    for found in _run(source, missing, task, min(workers, max(len(missing), 1)), cluster, console):
        if found.problem is not None:
            raise DataError(found.problem)
        done[found.unit] = found
    scored = _total(task, done.values(), len(units), resumed)
    write_whole(task.output, DONE, (json.dumps(asdict(scored), indent=2) + "\n").encode())
    return scored


def _begin(source: Source, task: Task, rows_at_once: int) -> None:
    """Note what the output will be of, or see that it is of the same.

    Raises:
        SettingsError: it is of something else, or holds files that are not ours.
    """
    registry = Registry(Path(task.registry))
    weights = {exact: weights_sha256(registry.directory(registry.resolve(exact))) for _, exact in task.adapters}
    decisive = asdict(task)
    for anywhere in ("registry", "threads", "output", "base_model"):
        # Where things lie, and how fast: not what comes of it.
        del decisive[anywhere]
    plan = {
        "input": dict(source.files),
        "rows_at_once": rows_at_once,
        "base": find_base_model(task.base_model).sha256,
        "weights": weights,
        **decisive,
    }
    plan = json.loads(json.dumps(plan))
    there = _read(task.output, PLAN)
    if there is None:
        if _names(task.output, ""):
            raise SettingsError("--output", task.output, f"a directory that is not there, is empty, or holds a {PLAN}")
        write_whole(task.output, PLAN, (json.dumps(plan, indent=2) + "\n").encode())
        return
    for key, value in plan.items():
        if there.get(key) != value:
            found = _difference(there.get(key), value)
            raise SettingsError("--output", task.output, f"an output of the same {key}: {found}; say another directory")


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in [*new, *old] if old.get(key) != new.get(key))
        return f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
    return f"it was {old!r} and is {new!r}"


def _done_before(task: Task) -> dict[int, Done]:
    found = {}
    for name in _names(task.output, UNITS):
        content = _read(task.output, f"{UNITS}/{name}")
        if content is not None:
            found[content["unit"]] = Done(**content)
    return found


def _run(
    source: Source, units: Sequence[Unit], task: Task, workers: int, cluster: str | None, console: Console
) -> Iterator[Done]:
    """Summaries of the units as they are done, in any order."""
    if not units:
        return
    ray = _start_ray(workers, task.threads, cluster)

    class Worker:
        def __init__(self) -> None:
            self._scorer = Scorer(task, source.filesystem)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            done = [self._scorer.score(Unit(**json.loads(unit))) for unit in batch["unit"]]
            return {"done": [json.dumps(asdict(one)) for one in done]}

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        table = ray.data.from_items(
            [{"unit": json.dumps(asdict(unit))} for unit in units], override_num_blocks=len(units)
        )
        results = table.map_batches(
            Worker,
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=1,
            num_cpus=task.threads,
            num_gpus=_gpus_each(ray, workers),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
            bar = progress.add_task("rows", total=sum(unit.rows for unit in units))
            rows = {unit.number: unit.rows for unit in units}
            for row in results.iter_rows():
                done = Done(**json.loads(row["done"]))
                progress.advance(bar, rows[done.unit])
                yield done
    finally:
        if cluster is None:
            ray.shutdown()


def _gpus_each(ray: Any, workers: int) -> float:
    """As many workers as there are GPUs have one each."""
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= workers else 0.0


def _start_ray(workers: int, threads: int, cluster: str | None) -> Any:
    # It phones home, and starts a page, unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingsError("score", "ray", f"Ray: pip install 'tonearm[score]' ({error})") from error
    options: dict[str, Any] = {"address": cluster} if cluster else {}
    if not cluster:
        options |= {
            "num_cpus": workers * threads,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, configure_logging=True, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError("--address", cluster, f"a Ray cluster that answers ({error})") from error
    # What it has to say of itself is not what was asked for.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray


def _total(task: Task, done: Iterable[Done], units: int, resumed: int) -> Scored:
    labels: dict[str, Counter[str]] = {prefix: Counter() for prefix, _ in task.adapters}
    rows = failed = 0
    for one in done:
        rows, failed = rows + one.rows, failed + one.failed
        for prefix, counts in one.labels.items():
            labels[prefix].update(counts)
    return Scored(task.output, rows, units, resumed, {prefix: dict(found) for prefix, found in labels.items()}, failed)


def _read(directory: str, name: str) -> Any:
    """JSON in the output; None where there is none."""
    from fsspec.core import url_to_fs

    filesystem, root = url_to_fs(directory)
    try:
        return json.loads(filesystem.cat_file(f"{root}/{name}"))
    except FileNotFoundError:
        return None


def _names(directory: str, below: str) -> list[str]:
    from fsspec.core import url_to_fs

    filesystem, root = url_to_fs(directory)
    try:
        found = filesystem.ls(f"{root}/{below}".rstrip("/"), detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = (path.rstrip("/").rpartition("/")[2] for path in found)
    return sorted(name for name in names if name and not name.startswith("."))
