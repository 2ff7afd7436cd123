"""Inputs cut into units: every row in one of them, in order, whatever the format."""

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from adapters.errors import DataError
from scoring.units import cut, find_input, read

ROWS = [
    {"id": str(number), "text": text}
    for number, text in enumerate(["plain", 'with "quotes"', "two\nlines", "é, ü"] * 7)
]


def _write(path: Path) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=5)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(ROWS)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
@pytest.mark.parametrize("rows_at_once", [1, 3, 8, 1000])
def test_every_row_is_in_one_unit(tmp_path: Path, suffix: str, rows_at_once: int) -> None:
    for name in ("a", "b"):
        _write(tmp_path / f"{name}{suffix}")
    source = find_input(str(tmp_path))
    units = list(cut(source, rows_at_once))
    assert [unit.number for unit in units] == list(range(len(units)))
    found = [row for unit in units for _, row in read(source.filesystem, unit)]
    assert found == ROWS + ROWS
    assert all(unit.rows <= rows_at_once for unit in units)
    places = [where for unit in units for where, _ in read(source.filesystem, unit)]
    assert places[0].endswith(" 1") and places[len(ROWS)].endswith(" 1") and len(set(places)) == len(places)


def test_what_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there, expected a file, a directory or a glob"):
        find_input(str(tmp_path / "absent.csv"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no file that ends in one of \.parquet, \.jsonl, \.csv"):
        find_input(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n\nnonsense\n', "line 3: no JSON in UTF-8"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', "line 2: '\\[1\\]' is no JSON object"),
        ("a.csv", "text,n\nx,1\ny\n", "row 2: 1 values for the 2 columns"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    source = find_input(str(tmp_path / name))
    with pytest.raises(DataError, match=message):
        [read(source.filesystem, unit) for unit in cut(source, 100)]
