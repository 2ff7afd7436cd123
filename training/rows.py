"""A labelled text."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text and where it stands, for messages."""

    where: str
    text: str
    label: str
