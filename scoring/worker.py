"""One worker: an engine of its own with the adapters in its bank; a unit in, a file out.

rows -> texts -> engine -> columns -> one file, there whole or not at all
"""

import csv
import io
import json
import os
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from adapters.base_model import find_base_model
from adapters.errors import DataError, TonearmError
from adapters.reference import AdapterId, read_id
from adapters.store import Registry
from scoring.units import Unit, read


class Format(StrEnum):
    """Of the parts."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    CSV = "csv"


class OnError(StrEnum):
    """What to do at a row that cannot be scored."""

    FAIL = "fail"
    NULL = "null"


UNITS = "_units"
"""Directory of the output with a file for each unit that is done."""

_ROWS_AT_ONCE = 256
"""Rows of a call of the engine: enough to sort by length, few enough to keep."""


@dataclass(frozen=True, slots=True)
class Task:
    """What every worker does with every unit.

    Attributes:
        adapters: prefix of the columns -> the exact version.
        windows: read a text that is too long in windows, whole, rather than cut it.
        all_scores: a column for each label's score, too.
        on_error: `fail` ends the run at a row that cannot be scored, `null` writes why into its column `error`.
    """

    base_model: str
    registry: str
    adapters: tuple[tuple[str, str], ...]
    text: str
    output: str
    format: Format
    windows: bool
    all_scores: bool
    on_error: OnError
    threads: int

    def part(self, unit: Unit) -> str:
        """Name of the file that a unit's rows go to."""
        return f"part-{unit.number:06d}.{self.format}"


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a unit.

    Attributes:
        labels: how often each was given, by column prefix.
        failed: rows whose `error` says why they have no labels.
        problem: why the run has to end; nothing was written then.
    """

    unit: int
    rows: int
    labels: dict[str, dict[str, int]]
    failed: int = 0
    problem: str | None = None


class Scorer:
    """State of a worker; made once in its process, asked once a unit."""

    def __init__(self, task: Task, filesystem: Any) -> None:
        import torch

        from engine.engine import Engine

        torch.set_num_threads(task.threads)
        self._task = task
        self._filesystem = filesystem
        self._ids = {prefix: read_id(exact) for prefix, exact in task.adapters}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._engine = Engine(find_base_model(task.base_model), capacity=len(self._ids), device=device)
        registry = Registry(Path(task.registry))
        self._labels: dict[AdapterId, tuple[str, ...]] = {}
        for adapter in set(self._ids.values()):
            read_adapter = self._engine.read(registry.directory(adapter), adapter)
            self._labels[adapter] = read_adapter.labels
            self._engine.attach(read_adapter)
        self._column_types = self._types()
        self._empty: dict[str, Any] = dict.fromkeys(self._column_types)

    def score(self, unit: Unit) -> Done:
        """Score a unit and write its file. What is wrong with the data becomes a `problem`."""
        try:
            rows = read(self._filesystem, unit)
            scored, failed = self._scored(rows)
        except DataError as error:
            return Done(unit.number, 0, {}, problem=str(error))
        write_whole(self._task.output, self._task.part(unit), encode(scored, self._task.format, self._column_types))
        given = {prefix: [row[f"{prefix}.label"] for row in scored] for prefix in self._ids}
        labels = {prefix: dict(Counter(label for label in found if label)) for prefix, found in given.items()}
        done = Done(unit.number, len(scored), labels, failed)
        # After the part: a unit without this is done again, over the same file.
        write_whole(self._task.output, f"{UNITS}/{unit.number:06d}.json", json.dumps(asdict(done)).encode())
        return done

    def _scored(self, rows: list[tuple[str, dict[str, Any]]]) -> tuple[list[dict[str, Any]], int]:
        from engine.rows import Row

        scored, failed = [], 0
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            problems = [self._problem(where, row) for where, row in part]
            asked = [
                Row(row[self._task.text], adapter, "windows" if self._task.windows else "truncate")
                for (_, row), problem in zip(part, problems, strict=True)
                if problem is None
                for adapter in self._ids.values()
            ]
            answers = iter(self._engine.classify(asked)[0] if asked else ())
            for (where, row), problem in zip(part, problems, strict=True):
                found = [None if problem else next(answers) for _ in self._ids]
                wrong = problem or next((str(one) for one in found if isinstance(one, TonearmError)), None)
                if wrong and self._task.on_error == "fail":
                    raise DataError(f"{where}: {wrong}; --on-error null goes on without such rows")
                failed += wrong is not None
                columns = {} if wrong else self._columns_of(found)
                # In the order of the types, and empty where there is nothing to say.
                scored.append(row | self._empty | columns | ({"error": wrong} if "error" in self._empty else {}))
        return scored, failed

    def _problem(self, where: str, row: dict[str, Any]) -> str | None:
        if self._task.text not in row:
            raise DataError(f"{where}: there is no column {self._task.text!r}, found {', '.join(row) or 'none'}")
        clash = sorted(row.keys() & self._empty.keys())
        if clash:
            raise DataError(f"{where}: the column {clash[0]!r} is one that scoring writes; rename it")
        text = row[self._task.text]
        if not isinstance(text, str):
            return f"{self._task.text} is {str(text)[:60]!r}, expected text"
        return None if text.strip() else f"{self._task.text} is empty, expected text"

    def _types(self) -> dict[str, str]:
        """Every column that is written, with its type in Arrow."""
        types: dict[str, str] = {}
        for prefix, adapter in self._ids.items():
            types |= {f"{prefix}.label": "string", f"{prefix}.score": "float64", f"{prefix}.truncated": "bool_"}
            if self._task.all_scores:
                types |= {f"{prefix}.score.{label}": "float64" for label in self._labels[adapter]}
        return types | ({"error": "string"} if self._task.on_error == "null" else {})

    def _columns_of(self, answers: list[Any]) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for prefix, answer in zip(self._ids, answers, strict=True):
            columns[f"{prefix}.label"] = answer.label
            columns[f"{prefix}.score"] = max(answer.scores)
            columns[f"{prefix}.truncated"] = answer.truncated
            if self._task.all_scores:
                scores = zip(answer.labels, answer.scores, strict=True)
                columns |= {f"{prefix}.score.{label}": score for label, score in scores}
        return columns


def encode(rows: list[dict[str, Any]], output_format: Format, types: dict[str, str]) -> bytes:
    """A part's content."""
    if output_format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode()
    if output_format == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows)
    for name, kind in types.items():
        if name in table.column_names:
            at = table.column_names.index(name)
            table = table.set_column(at, name, table.column(name).cast(getattr(pyarrow, kind)()))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def write_whole(directory: str, name: str, content: bytes) -> None:
    """A file that is there whole or not at all: by a rename on a disk, by its one PUT in an object store."""
    from fsspec.core import url_to_fs

    filesystem, root = url_to_fs(directory)
    if "file" not in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)):
        filesystem.pipe_file(f"{root}/{name}", content)
        return
    target = Path(root) / name
    beside = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
