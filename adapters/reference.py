"""Adapter references: `movies` (the newest), `movies@3` (that version), `movies@champion` (an alias)."""

import re
from dataclasses import dataclass

from adapters.errors import InvalidReference

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class AdapterId:
    """One exact version of one adapter: what the engine loads and what an answer names."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a caller writes. At most one of `version` and `alias` is set; neither means the newest version."""

    name: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        suffix = self.version if self.version is not None else self.alias
        return self.name if suffix is None else f"{self.name}@{suffix}"


def read_id(text: str) -> AdapterId:
    """The opposite of `str(adapter)`; for text of our own, not of callers'."""
    name, _, version = text.partition("@")
    return AdapterId(name, int(version))


def parse_reference(text: str) -> Reference:
    """Read `name`, `name@3` or `name@alias`.

    Raises:
        InvalidReference: the text has another form.
    """
    name, at, suffix = text.partition("@")
    if not NAME.fullmatch(name) or (at and not suffix):
        raise InvalidReference(text)
    if not at:
        return Reference(name)
    if _VERSION.fullmatch(suffix):
        return Reference(name, version=int(suffix))
    # An alias of digits alone would be taken for a version; NAME alone would allow it.
    if NAME.fullmatch(suffix) and not suffix.isdigit():
        return Reference(name, alias=suffix)
    raise InvalidReference(text)
