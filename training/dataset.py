"""Labelled texts from JSON Lines, CSV, Parquet or the hub, checked row by row."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import DataError
from training.checks import Finding, check_rows
from training.recipe import DataSettings
from training.rows import Row, short


@dataclass(frozen=True, slots=True)
class Split:
    """Texts and, for each, the indices of its labels: one, or for a multi-label task any number."""

    texts: tuple[str, ...]
    targets: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is trained on and what is measured on.

    Attributes:
        labels: in the order of the logits.
        sha256: digest of the training rows, in their order: JSON [text, label], one a line; of a multi-label task
            JSON [text, [label, …]].
        validation_sha256: of the validation rows, likewise.
        findings: what was to be said of the training rows.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    sha256: str
    validation_sha256: str
    findings: tuple[Finding, ...] = ()


def load_dataset(settings: DataSettings, *, multi_label: bool = False) -> Dataset:
    """Read both splits.

    Args:
        multi_label: a row's labels are a list, or text with separators in it.

    Raises:
        DataError: a file or a row is unusable; names the file, the line, what was found and what was expected.
    """
    train = list(_rows(settings, settings.train, multi_label))
    if settings.validation is None:
        train, validation = _set_aside(train, settings.validation_share)
    else:
        validation = list(_rows(settings, settings.validation, multi_label))
    for rows, split in ((train, settings.train), (validation, settings.validation or "what is set aside")):
        if not rows:
            raise DataError(f"{split} holds no rows, expected at least one labelled text")
    checked = check_rows(train, validation, settings)
    train = checked.rows
    labels = settings.labels or _discover({label for row in train for label in row.labels})
    if not labels:
        raise DataError(f"{settings.train} holds no label at all, expected at least two")
    if len(labels) < 2:
        raise DataError(f"{settings.train} holds the one label {labels[0]!r}, expected at least two")
    return Dataset(
        settings.hub or settings.name,
        labels,
        _split(train, labels),
        _split(validation, labels),
        _digest(train, multi_label),
        _digest(validation, multi_label),
        checked.findings,
    )


def _digest(rows: Iterable[Row], multi_label: bool) -> str:
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps([row.text, row.labels if multi_label else row.labels[0]], ensure_ascii=False) + "\n"
        digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _set_aside(rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Of each label the rows whose texts have the smallest digests: the same every time, whatever their order."""
    by_label: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        by_label.setdefault(row.labels, set()).add(row.text)
    chosen = set()
    for texts in by_label.values():
        ordered = sorted(texts, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        chosen |= set(ordered[: max(1, round(share * len(ordered)))])
    # By text, so that a text that occurs twice does not stand in both.
    return [row for row in rows if row.text not in chosen], [row for row in rows if row.text in chosen]


def _discover(found: set[str]) -> tuple[str, ...]:
    """Numbers in the order of their value, else by the alphabet."""
    return tuple(sorted(found, key=lambda label: (int(label) if all(map(str.isdecimal, found)) else 0, label)))


def _split(rows: Iterable[Row], labels: tuple[str, ...]) -> Split:
    index = {label: position for position, label in enumerate(labels)}
    texts: list[str] = []
    targets: list[tuple[int, ...]] = []
    for row in rows:
        for label in row.labels:
            if label not in index:
                raise DataError(f"{row.where}: label is {label!r}, expected one of {', '.join(labels)}")
        texts.append(row.text)
        targets.append(tuple(sorted(index[label] for label in row.labels)))
    return Split(tuple(texts), tuple(targets))


def _rows(settings: DataSettings, split: str, multi_label: bool) -> Iterator[Row]:
    names = {str(label): name for label, name in settings.label_names.items()}
    for where, record in _records(settings, split):
        for column in (settings.text, settings.label):
            if column not in record:
                found = ", ".join(map(str, record)) or "none"
                raise DataError(f"{where}: there is no column {column!r}, found {found}")
        text, label = record[settings.text], record[settings.label]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: {settings.text} is {short(text)}, expected text")
        if multi_label:
            chosen = _several(label, settings.label_separator)
            if chosen is None:
                expected = f"a list of labels, or labels with {settings.label_separator!r} between them"
                raise DataError(f"{where}: {settings.label} is {short(label)}, expected {expected}")
            yield Row(where, text, tuple(sorted({names.get(one, one) for one in chosen})))
        elif _is_label(label):
            yield Row(where, text, (names.get(str(label), str(label)),))
        else:
            raise DataError(f"{where}: {settings.label} is {short(label)}, expected a label: text or a whole number")


def _several(value: object, separator: str) -> list[str] | None:
    """The labels of a multi-label row, which may be none; None if they are written wrong."""
    if value == "":
        return []
    found = value.split(separator) if isinstance(value, str) else value
    # An empty name between two separators is a slip.
    if not isinstance(found, list | tuple) or not all(map(_is_label, found)):
        return None
    return [str(one).strip() for one in found]


def _is_label(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and bool(str(value).strip())


def _records(settings: DataSettings, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row as a mapping, with the place it came from."""
    if settings.hub is not None:
        return _hub_records(settings, split)
    path = Path(split)
    readers = {".jsonl": _jsonl_records, ".csv": _csv_records, ".parquet": _parquet_records}
    if path.suffix not in readers:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'!r}, expected one of {', '.join(readers)}")
    if not path.is_file():
        raise DataError(f"{path} is not there, expected a file of labelled texts")
    return readers[path.suffix](path)


def _jsonl_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # Bytes, so that a line that is no UTF-8 is named, and so that only \n ends a line (JSON may hold U+2028).
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path} line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                found = short(line.decode("utf-8", "replace").strip())
                raise DataError(f"{where}: {found} is no JSON in UTF-8 ({error})") from error
            if not isinstance(record, dict):
                raise DataError(f"{where}: {short(record)} is no JSON object with a text and a label")
            yield where, record


def _csv_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for record in reader:
                where = f"{path} line {reader.line_num}"
                if None in record:
                    raise DataError(f"{where}: there are more values than the {len(reader.fieldnames or ())} columns")
                yield where, record
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} line {reader.line_num + 1}: {error}, expected CSV in UTF-8") from error


def _parquet_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # Imported here, as in all of training: the command's --help must not wait for what only a run needs.
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: {error}, expected a Parquet file") from error
    for number, record in enumerate(table.to_pylist(), start=1):
        yield f"{path} row {number}", record


def _hub_records(settings: DataSettings, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    assert settings.hub is not None
    try:
        table = datasets.load_dataset(settings.hub, revision=settings.revision, split=split)
    except (HfHubHTTPError, datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(f"data set {settings.hub} split {split} cannot be had from the hub: {error}") from error
    column = table.features.get(settings.label)
    # Of a multi-label set the column is a list of them.
    names = getattr(getattr(column, "feature", column), "names", None)
    for number, record in enumerate(table, start=1):
        where = f"{settings.hub} {split} row {number}"
        found = record.get(settings.label)
        if names is None or found is None:
            yield where, record
        elif isinstance(found, list):
            yield where, record | {settings.label: [_name(names, index) for index in found]}
        else:
            yield where, record | {settings.label: _name(names, found)}


def _name(names: Sequence[str], index: int) -> str | None:
    """What an index of a ClassLabel column means; -1 marks a row without a label, which is refused as one."""
    return names[index] if 0 <= index < len(names) else None
