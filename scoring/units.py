"""An input of any size cut into units: some thousand rows each, the same every time.

A unit is what a worker scores at once and writes as one file, so it is also what a run that was cut off need not do
again. Text files are scanned once for where rows begin; a row of CSV may go over lines, inside quotes.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adapters.errors import DataError

FORMATS = (".parquet", ".jsonl", ".csv")


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive rows of one file.

    Attributes:
        number: from 0, over all files.
        path: on the input's file system.
        first: number of the first row in the file, from 1; of JSON Lines the line.
        rows: so many; of JSON Lines lines, of which some may be blank.
        start, end: bytes in the file; of Parquet rows, from 0.
    """

    number: int
    path: str
    first: int
    rows: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Source:
    """An input as it was when it was looked at.

    Attributes:
        files: path and what changes when the file does (size, and time or ETag).
    """

    filesystem: Any
    files: tuple[tuple[str, str], ...]


def find_input(address: str) -> Source:
    """
    Args:
        address: a file, a directory or a glob, of this machine or any that `fsspec` reads (s3://…).

    Raises:
        DataError: there is nothing, or nothing that can be read.
    """
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(address)
        if any(sign in path for sign in "*?["):
            found = sorted(filesystem.glob(path))
        elif filesystem.isdir(path):
            found = sorted(filesystem.find(path))
        else:
            found = [path]
        infos = {one: filesystem.info(one) for one in found}
    except FileNotFoundError as error:
        raise DataError(f"{address} is not there, expected a file, a directory or a glob") from error
    except (ImportError, ValueError, OSError) as error:
        raise DataError(f"{address} cannot be read: {error}") from error
    files = tuple(
        (one, f"{info['size']} {info.get('mtime') or info.get('ETag') or info.get('etag') or ''}".strip())
        for one, info in infos.items()
        if info["type"] == "file" and one.endswith(FORMATS) and not one.rpartition("/")[2].startswith(("_", "."))
    )
    if not files:
        raise DataError(f"{address} holds no file that ends in one of {', '.join(FORMATS)}")
    return Source(filesystem, files)


def cut(source: Source, rows_at_once: int) -> Iterator[Unit]:
    """Units of every file, in the order of the files.

    Raises:
        DataError: a Parquet file cannot be read.
    """
    number = 0
    for path, _ in source.files:
        cutter = _cut_parquet if path.endswith(".parquet") else _cut_text
        for first, rows, start, end in cutter(source.filesystem, path, rows_at_once):
            yield Unit(number, path, first, rows, start, end)
            number += 1


def read(filesystem: Any, unit: Unit) -> list[tuple[str, dict[str, Any]]]:
    """The unit's rows, each with the place it came from.

    Raises:
        DataError: a row is no row of its format.
    """
    if unit.path.endswith(".parquet"):
        return _read_parquet(filesystem, unit)
    with filesystem.open(unit.path, "rb") as file:
        header = file.readline() if unit.path.endswith(".csv") else b""
        file.seek(unit.start)
        content = file.read(unit.end - unit.start)
    return _read_csv(unit, header, content) if header else _read_jsonl(unit, content)


def _cut_parquet(filesystem: Any, path: str, rows_at_once: int) -> Iterator[tuple[int, int, int, int]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with filesystem.open(path, "rb") as file:
            total = pyarrow.parquet.read_metadata(file).num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: {error}, expected a Parquet file") from error
    for start in range(0, total, rows_at_once):
        end = min(start + rows_at_once, total)
        yield start + 1, end - start, start, end


def _cut_text(filesystem: Any, path: str, rows_at_once: int) -> Iterator[tuple[int, int, int, int]]:
    quoted = path.endswith(".csv")
    with filesystem.open(path, "rb") as file:
        at = len(file.readline()) if quoted else 0
        start, first, rows, inside = at, 1, 0, False
        for line in file:
            at += len(line)
            if quoted and line.count(b'"') % 2:
                inside = not inside
            if inside:
                continue
            rows += 1
            if rows == rows_at_once:
                yield first, rows, start, at
                start, first, rows = at, first + rows, 0
        if at > start:
            yield first, max(rows, 1), start, at


def _read_parquet(filesystem: Any, unit: Unit) -> list[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet

    rows: list[dict[str, Any]] = []
    with filesystem.open(unit.path, "rb") as opened:
        file = pyarrow.parquet.ParquetFile(opened)
        before = 0
        for group in range(file.num_row_groups):
            length = file.metadata.row_group(group).num_rows
            start, end = max(unit.start - before, 0), min(unit.end - before, length)
            if start < end:
                rows += file.read_row_group(group).slice(start, end - start).to_pylist()
            before += length
    return [(f"{unit.path} row {number}", row) for number, row in enumerate(rows, unit.first)]


def _read_jsonl(unit: Unit, content: bytes) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for number, line in enumerate(content.split(b"\n"), unit.first):
        if not line.strip():
            continue
        where = f"{unit.path} line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"{where}: no JSON in UTF-8 ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: {str(row)[:60]!r} is no JSON object")
        found.append((where, row))
    return found


def _read_csv(unit: Unit, header: bytes, content: bytes) -> list[tuple[str, dict[str, Any]]]:
    try:
        columns = next(csv.reader([header.decode("utf-8-sig")]))
        rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True))
    except (ValueError, csv.Error, StopIteration) as error:
        raise DataError(f"{unit.path} rows from {unit.first}: {error}, expected CSV in UTF-8") from error
    found = []
    for number, row in enumerate(rows, unit.first):
        where = f"{unit.path} row {number}"
        if len(row) != len(columns):
            raise DataError(f"{where}: {len(row)} values for the {len(columns)} columns")
        found.append((where, dict(zip(columns, row, strict=True))))
    return found
