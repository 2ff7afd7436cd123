"""Experiments and the pure assignment of units to them. The hash is written down in docs/experiments-hash.md."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from adapters.errors import InvalidReference
from adapters.reference import NAME, parse_reference

Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


def _adapter_reference(value: object) -> object:
    if isinstance(value, str):
        try:
            parse_reference(value)
        except InvalidReference as error:
            raise ValueError(str(error)) from error
    return value


def _lower_keys(value: object) -> object:
    """Header names know no case; a single value may stand without its list."""
    if not isinstance(value, dict):
        return value
    return {str(key).lower(): [found] if isinstance(found, str) else found for key, found in value.items()}


Adapter = Annotated[str, BeforeValidator(_adapter_reference)]
Match = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[a-z0-9!#$%&'*+.^_`|~-]{1,64}$")],
        Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(min_length=1, max_length=64)],
    ],
    BeforeValidator(_lower_keys),
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(_Part):
    """One side of an experiment."""

    name: Name
    adapter: Adapter
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0


class Layer(_Part):
    """A part of the units that experiments of one layer share between them, so that no unit is in two of them.

    Attributes:
        start, end: from and to which percent of the layer's units, the end not included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: Name
    start: Percent = Field(alias="from")
    end: Percent = Field(alias="to")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"expected from below to, found {self.start:g} and {self.end:g}")
        return self


class Shadow(_Part):
    """An adapter that reads along, unseen by callers.

    Attributes:
        percent: of the experiment's units.
    """

    adapter: Adapter
    percent: Percent = 100.0


class Guardrails(_Part):
    """What the candidate must not do; what is left out is not looked at.

    Attributes:
        error_rate: largest share of its texts that end in an error of the service's own.
        p99_ms: time within which 99 of 100 of its texts are to be answered.
        accuracy: points of accuracy, as a share, that all traffic together may lose.
    """

    error_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    p99_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    accuracy: Annotated[float, Field(gt=0, lt=1)] | None = None


class Promotion(_Part):
    """The second arm takes over from the first, in steps.

    Attributes:
        stages: percent of the units that it has at each, rising to 100.
        hold_s: shortest time at a stage.
        units: fewest units of the candidate at a stage.
        alias: of the candidate's adapter, moved to its version in the end.
    """

    stages: Annotated[tuple[Annotated[Percent, Field(gt=0)], ...], Field(min_length=1, max_length=32)]
    guardrails: Guardrails = Guardrails()
    hold_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 600.0
    units: Annotated[int, Field(ge=1)] = 100
    alias: Name | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(low >= high for low, high in itertools.pairwise(self.stages)) or self.stages[-1] != 100:
            raise ValueError(f"stages must rise to 100, found {', '.join(f'{stage:g}' for stage in self.stages)}")
        return self


class Experiment(_Part):
    """Arms that share units between them by weight.

    Attributes:
        salt: another one deals the units anew, and begins the results anew.
        coverage: percent of the units that take part.
        layer: takes coverage's place where experiments are to exclude each other.
        match: headers, each with the values of which a request must carry one to take part.
    """

    name: Name
    salt: Annotated[str, Field(pattern=r"^[^\x00]{0,256}$")]
    arms: Annotated[tuple[Arm, ...], Field(min_length=1, max_length=64)]
    coverage: Percent = 100.0
    layer: Layer | None = None
    match: Match = Field(default_factory=dict, max_length=16)
    shadow: Shadow | None = None
    promotion: Promotion | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        twice = repeated(arm.name for arm in self.arms)
        if twice:
            raise ValueError(f"arm names must differ, {twice} occurs twice")
        if len(self.arms) == 1 and self.shadow is None:
            raise ValueError("one arm alone has nothing to be compared with: expected two, or a shadow")
        if self.total_weight <= 0:
            raise ValueError("at least one arm needs a weight above 0")
        if self.layer is not None and "coverage" in self.model_fields_set:
            raise ValueError("a layer's from and to say how many units take part: leave out coverage")
        if self.promotion is not None:
            if len(self.arms) != 2:
                raise ValueError(f"a promotion is from the first arm to the second: expected 2, found {len(self.arms)}")
            if any("weight" in arm.model_fields_set for arm in self.arms):
                raise ValueError("a promotion's stages are its arms' weights: leave out weight")
        return self

    @property
    def key(self) -> tuple[str, str]:
        """What its results and decisions belong to."""
        return self.name, self.salt

    @property
    def total_weight(self) -> float:
        return sum(arm.weight for arm in self.arms)

    @property
    def weights(self) -> dict[str, float]:
        """By arm, as a share of all."""
        return {arm.name: arm.weight / self.total_weight for arm in self.arms}

    def weighted(self, weights: Mapping[str, float]) -> "Experiment":
        """The same with other weights, by arm."""
        arms = tuple(arm.model_copy(update={"weight": weights[arm.name]}) for arm in self.arms)
        return self.model_copy(update={"arms": arms})


def fraction(*parts: str) -> float:
    """A place in (0, 1) that only these words decide, the same in any process and language."""
    digest = hashlib.sha256(b"\x00".join(part.encode() for part in parts)).digest()
    # 52 bits and a half: exact in a double, and neither 0 nor 1.
    return ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / 2**52


def assign(experiment: Experiment, unit: str) -> Arm:
    """The arm of a unit, by weighted rendezvous hashing.

    Every arm draws a number for the unit, exponentially distributed at the rate of its weight, and the smallest wins
    (Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005). An arm whose weight grows only takes
    units from others, and one whose weight shrinks only gives some away: no unit moves between the rest.
    """
    salt, name = experiment.salt, experiment.name
    return min(
        (arm for arm in experiment.arms if arm.weight > 0),
        key=lambda arm: -math.log(fraction("arm", salt, name, arm.name, unit)) / arm.weight,
    )


def covers(experiment: Experiment, unit: str) -> bool:
    """Whether a unit is among those that take part."""
    if experiment.layer is not None:
        place = 100 * fraction("layer", experiment.layer.name, unit)
        return experiment.layer.start <= place < experiment.layer.end
    return 100 * fraction("coverage", experiment.salt, experiment.name, unit) < experiment.coverage


def shadows(experiment: Experiment, unit: str) -> bool:
    """Whether the experiment's shadow reads a unit's texts."""
    if experiment.shadow is None:
        return False
    return 100 * fraction("shadow", experiment.salt, experiment.name, unit) < experiment.shadow.percent


def claim(experiments: Sequence[Experiment], headers: Mapping[str, str], unit: str) -> Experiment | None:
    """The experiment that a request takes part in: the first, in the file's order, that wants it.

    Experiments outside layers draw their units independently, so what an earlier one leaves to a later one is a fair
    sample of the units.

    Args:
        headers: by name in lower case.
    """
    for experiment in experiments:
        if all(headers.get(name) in values for name, values in experiment.match.items()) and covers(experiment, unit):
            return experiment
    return None


def layers_overlap(experiments: Sequence[Experiment]) -> str | None:
    """The first two experiments that claim the same units of one layer, in words."""
    placed = sorted(
        (experiment.layer.name, experiment.layer.start, experiment.layer.end, experiment.name)
        for experiment in experiments
        if experiment.layer is not None
    )
    for (layer, _, end, first), (other, start, _, second) in itertools.pairwise(placed):
        if layer == other and start < end:
            return f"{first} and {second} overlap in layer {layer}: the first ends at {end:g}, not below {start:g}"
    return None


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
