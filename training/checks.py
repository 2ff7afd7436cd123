"""What is wrong with labelled texts that are each well-formed: the same text twice, in both splits, with two labels.

Texts count as the same if they differ in case and spacing alone. What is found is reported; what is done about it the
recipe says.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.errors import DataError
from training.recipe import Choice, DataSettings
from training.rows import Row, short


@dataclass(frozen=True, slots=True)
class Finding:
    """Training rows of which something is to be said.

    Attributes:
        what: `duplicates` (the same text and label again), `conflicts` (the same text with another label), `leakage`
            (the text is a validation text, too).
        rows: so many.
        done: what the recipe had done with them.
        example: one of the texts, cut short; empty where there is none.
    """

    what: str
    rows: int
    done: Choice
    example: str


@dataclass(frozen=True, slots=True)
class Checked:
    """The training rows that are left, and what was found in all of them."""

    rows: list[Row]
    findings: tuple[Finding, ...]


def check_rows(train: Sequence[Row], validation: Sequence[Row], settings: DataSettings) -> Checked:
    """Look at the training rows as the recipe says.

    Raises:
        DataError: something was found that the recipe makes an error of, or nothing would be left.
    """
    keys = [_key(row.text) for row in train]
    labels: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for key, row in zip(keys, train, strict=True):
        labels[key].add(row.labels)
    measured = {_key(row.text) for row in validation}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    found: dict[str, list[int]] = {"duplicates": [], "conflicts": [], "leakage": []}
    for at, (key, row) in enumerate(zip(keys, train, strict=True)):
        if (key, row.labels) in seen:
            found["duplicates"].append(at)
        seen.add((key, row.labels))
        if len(labels[key]) > 1:
            found["conflicts"].append(at)
        if key in measured:
            found["leakage"].append(at)
    choices: dict[str, Choice] = {
        "duplicates": settings.duplicates,
        "conflicts": settings.conflicts,
        "leakage": settings.leakage,
    }
    for what, places in found.items():
        if places and choices[what] == "error":
            first = train[places[0]]
            raise DataError(f"{first.where}: {_WORDS[what]}: {short(first.text)}; {len(places)} rows in all")
    dropped = {at for what, places in found.items() if choices[what] == "drop" for at in places}
    rows = [row for at, row in enumerate(train) if at not in dropped]
    if not rows:
        raise DataError(f"data: of {len(train)} training rows none is left; set {', '.join(found)} to keep")
    return Checked(
        rows,
        tuple(
            Finding(what, len(places), choices[what], short(train[places[0]].text) if places else "")
            for what, places in found.items()
        ),
    )


def finding_sentences(findings: Sequence[Finding], *, examples: bool) -> list[str]:
    """What was found, in words; nothing where nothing was.

    Args:
        examples: with one of the texts each: for who has the data, not for what is published.
    """
    return [
        f"{finding.rows:,} training rows {_WORDS[finding.what]} ({_DONE[finding.done]})"
        + (f", e.g. {finding.example}" if examples else "")
        for finding in findings
        if finding.rows
    ]


def balance(labels: Sequence[str], targets: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """Texts by label, in the order of the logits."""
    counts = Counter(label for target in targets for label in target)
    return {label: counts[at] for at, label in enumerate(labels)}


_WORDS = {
    "duplicates": "repeat another's text and label",
    "conflicts": "have a text that occurs with another label",
    "leakage": "have a text that is measured on, too",
}
_DONE: dict[Choice, str] = {"keep": "kept", "drop": "left out", "error": "an error"}


def _key(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
