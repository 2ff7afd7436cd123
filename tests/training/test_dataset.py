"""Every format gives the same rows, and a bad row is named by file and line."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from adapters.errors import DataError
from training.checks import finding_sentences
from training.dataset import Dataset, load_dataset
from training.recipe import DataSettings

ROWS = [("good,\n\u2028really", "pos"), ("bad", "neg"), ("so so", "pos")]
GOOD = '{"text": "fine", "label": "pos"}'
OTHER = '{"text": "poor", "label": "neg"}'


def _write(directory: Path, ending: str) -> str:
    path = directory / f"rows.{ending}"
    records = [{"text": text, "label": label} for text, label in ROWS]
    if ending == "jsonl":
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    elif ending == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(records)
    else:
        datasets.Dataset.from_list(records).to_parquet(path)
    return str(path)


def _load(train: Path | str, validation: Path | str | None = None, **fields: Any) -> Dataset:
    return load_dataset(DataSettings(name="made", train=str(train), validation=str(validation or train), **fields))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_formats(tmp_path: Path, ending: str) -> None:
    dataset = _load(_write(tmp_path, ending))
    assert dataset.labels == ("neg", "pos")
    assert dataset.train.texts == tuple(text for text, _ in ROWS)
    assert dataset.train.targets == ((1,), (0,), (1,))
    lines = "".join(json.dumps([text, label], ensure_ascii=False) + "\n" for text, label in ROWS)
    assert dataset.sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_hub_with_class_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` reads a local folder as it reads a hub id."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "validation"):
        table = datasets.Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": 0}], features=features)
        table.to_parquet(folder / f"{split}.parquet")
    dataset = _load("train", "validation", hub=str(folder))
    assert dataset.labels == ("neg", "pos")
    assert dataset.train.targets == ((1,), (0,))
    with pytest.raises(DataError, match="split nothing cannot be had"):
        _load("nothing", "validation", hub=str(folder))


def test_hub_with_lists_of_class_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = datasets.Sequence(datasets.ClassLabel(names=["joy", "fear"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = [{"text": "a", "label": [0, 1]}, {"text": "b", "label": []}]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(folder / f"{split}.parquet")
    settings = DataSettings(name="set", hub=str(folder), train="train", validation="validation")
    assert load_dataset(settings, multi_label=True).train.targets == ((0, 1), ())


def test_labels_in_numbers_order_by_name_or_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "t", "label": {label}}}\n' for label in (10, 2, 1)))
    assert _load(path).labels == ("1", "2", "10")
    named = _load(path, label_names={1: "one", 2: "two", "10": "ten"})
    assert named.labels == ("one", "ten", "two")
    assert _load(path, labels=("10", "2", "1")).train.targets == ((0,), (1,), (2,))


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        ([GOOD, "{not json"], 2, "is no JSON"),
        ([GOOD, "", '["text", "label"]'], 3, "no JSON object"),
        ([GOOD, OTHER, '{"text": "x"}'], 3, "no column 'label', found text"),
        (['{"text": 3, "label": "pos"}'], 1, "text is 3, expected text"),
        ([OTHER, '{"text": "  ", "label": "pos"}'], 2, "expected text"),
        ([GOOD, '{"text": "x", "label": null}'], 2, "label is None"),
        ([GOOD, '{"text": "x", "label": 1.5}'], 2, "label is 1.5"),
        ([GOOD, '{"text": "x", "label": true}'], 2, "label is True"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, lines: list[str], line: int, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        _load(path)
    assert f"rows.jsonl line {line}: " in str(caught.value)
    assert message in str(caught.value)


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"text": "\xff", "label": "neg"}\n')
    with pytest.raises(DataError, match="line 2"):
        _load(path)


def test_csv_lines_count_line_breaks_in_quotes(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"two\nlines",pos\nx,neg,more\n')
    with pytest.raises(DataError, match=r"rows\.csv line 4: there are more values"):
        _load(path)


def test_labels_of_validation_must_be_known(tmp_path: Path) -> None:
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    train.write_text(f"{GOOD}\n{OTHER}\n")
    validation.write_text(f'{GOOD}\n{{"text": "x", "label": "odd"}}\n')
    with pytest.raises(DataError, match=r"validation\.jsonl line 2: label is 'odd', expected one of neg, pos"):
        _load(train, validation)


@pytest.mark.parametrize(("content", "message"), [("", "holds no rows"), (GOOD + "\n", "the one label 'pos'")])
def test_too_little(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        _load(path)


@pytest.mark.parametrize(("name", "message"), [("absent.jsonl", "is not there"), ("rows.txt", "ends in '.txt'")])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load(tmp_path / name)


def _lines(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


TROUBLED = [
    ("A fine film", "pos"),
    ("a  fine FILM", "pos"),
    ("a dull film", "neg"),
    ("A dull film", "pos"),
    ("measured on", "neg"),
    ("left alone", "neg"),
]


def test_what_is_to_be_said_of_the_rows_is_said(tmp_path: Path) -> None:
    train = _lines(tmp_path / "train.jsonl", TROUBLED)
    validation = _lines(tmp_path / "validation.jsonl", [("Measured on", "neg"), ("new", "pos")])
    dataset = _load(train, validation)
    assert {finding.what: finding.rows for finding in dataset.findings} == {
        "duplicates": 1,
        "conflicts": 2,
        "leakage": 1,
    }
    assert len(dataset.train) == len(TROUBLED)
    said = finding_sentences(dataset.findings, examples=True)
    assert said[0] == "1 training rows repeat another's text and label (kept), e.g. 'a  fine FILM'"
    assert not any("FILM" in sentence for sentence in finding_sentences(dataset.findings, examples=False))
    clean = _load(train, validation, duplicates="drop", conflicts="drop", leakage="drop")
    assert clean.train.texts == ("A fine film", "left alone")
    assert clean.sha256 != dataset.sha256
    for what, line in (("duplicates", 2), ("conflicts", 3), ("leakage", 5)):
        with pytest.raises(DataError, match=f"train.jsonl line {line}: .*rows in all"):
            _load(train, validation, **{what: "error"})
    with pytest.raises(DataError, match="none is left"):
        _load(train, train, leakage="drop")


def test_validation_is_set_aside_the_same_way_every_time(tmp_path: Path) -> None:
    rows = [(f"text {at}", "pos" if at % 4 else "neg") for at in range(200)] + [("text 1", "pos")]
    forward, backward = _lines(tmp_path / "a.jsonl", rows), _lines(tmp_path / "b.jsonl", rows[::-1])
    first, second = (
        load_dataset(DataSettings(name="made", train=str(path), validation_share=0.2)) for path in (forward, backward)
    )
    assert set(first.validation.texts) == set(second.validation.texts)
    assert not set(first.validation.texts) & set(first.train.texts)
    assert first.validation.targets.count((0,)) == 10 and 30 <= first.validation.targets.count((1,)) <= 31
    with pytest.raises(ValueError, match="leave one of them out"):
        DataSettings(name="made", train="a", validation="b", validation_share=0.2)
