"""A labelled text, and how it is shown in messages."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text and where it stands, for messages."""

    where: str
    text: str
    labels: tuple[str, ...]
    """One, or for a multi-label task any number, sorted."""


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
