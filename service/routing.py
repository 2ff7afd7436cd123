"""Experiments and the pure assignment of units to arms. The hash is written down in docs/experiments-hash.md."""

import hashlib
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from adapters.errors import InvalidReference
from adapters.reference import NAME, parse_reference

Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


def _adapter_reference(value: object) -> object:
    if isinstance(value, str):
        try:
            parse_reference(value)
        except InvalidReference as error:
            raise ValueError(str(error)) from error
    return value


class Arm(BaseModel):
    """One side of an experiment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    adapter: Annotated[str, BeforeValidator(_adapter_reference)]
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Experiment(BaseModel):
    """Arms that share the units between them by weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    salt: Annotated[str, Field(pattern=r"^[^\x00]{0,256}$")]
    """Another salt deals the units anew."""
    arms: Annotated[tuple[Arm, ...], Field(min_length=2, max_length=64)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        twice = repeated(arm.name for arm in self.arms)
        if twice:
            raise ValueError(f"arm names must differ, {twice} occurs twice")
        if self.total_weight <= 0:
            raise ValueError("at least one arm needs a weight above 0")
        return self

    @property
    def total_weight(self) -> float:
        return sum(arm.weight for arm in self.arms)


def unit_fraction(experiment: Experiment, unit: str) -> float:
    """A unit's place in [0, 1], the same in any process and language."""
    key = b"\x00".join(part.encode() for part in (experiment.salt, experiment.name, unit))
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64


def assign(experiment: Experiment, unit: str) -> Arm:
    """The arm of a unit: the first whose cumulative weight, as a share of all, exceeds the unit's fraction."""
    place = unit_fraction(experiment, unit) * experiment.total_weight
    cumulative = 0.0
    chosen = experiment.arms[0]
    for arm in experiment.arms:
        if arm.weight == 0:
            continue
        # Kept for the end: the largest digests round up to a fraction of exactly 1.
        chosen = arm
        cumulative += arm.weight
        if place < cumulative:
            break
    return chosen


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
