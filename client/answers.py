"""What the service answers. Frozen; a field that a newer service adds is kept and can be read by its name."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class Problem(_Answer):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str | None = None
    nearest: tuple[str, ...] | None = None
    """Names like the one asked for; with unknown adapters."""


class Classification(_Answer):
    """What one adapter says of one text.

    Attributes:
        label: the label with the highest score.
        scores: by label, in the adapter's order; they add up to 1.
        adapter: the exact version that answered, `movies@1`.
        experiment, arm: set where the A/B unit chose the adapter.
        tokens: read by the adapter, special tokens included.
        request_id: what `feedback` is given for.
        kept: of a text that was cut, the first character that was read and the one after the last.
        logits: by label; only where they were asked for.
    """

    label: str
    score: float
    scores: dict[str, float]
    adapter: str
    experiment: str | None = None
    arm: str | None = None
    tokens: int
    truncated: bool
    windows: int = 1
    kept: tuple[int, int] | None = None
    request_id: str
    logits: dict[str, float] | None = None


class ItemError(_Answer):
    """Stands in an answer's place in a list, where that one item could not be answered."""

    error: Problem


Item = Classification | ItemError


class AdapterVersion(_Answer):
    """One version and how it stands.

    Attributes:
        state: `resident`, `registered` or `failed`.
        reason: why it is refused, where it failed.
        labels: None where there is no manifest and it is not resident.
    """

    version: int
    state: str
    pinned: bool = False
    reason: str | None = None
    verified: bool
    labels: tuple[str, ...] | None = None
    description: str | None = None
    metrics: Mapping[str, Any] = {}


class AdapterEntry(_Answer):
    """One name, with its versions from the newest."""

    name: str
    aliases: dict[str, int]
    versions: tuple[AdapterVersion, ...]


class AdapterTraining(_Answer):
    """What a manifest says of how an adapter came about; `created` is UTC, ISO 8601, and rank 0 is a head alone."""

    created: str
    task: str
    base: str
    rank: int
    max_tokens: int
    truncation_side: str
    temperature: float
    data: str | None = None
    examples: int | None = None


class AdapterDetail(AdapterVersion):
    """One version, whole.

    Attributes:
        adapter: the exact version, `movies@1`.
        versions: of the name, newest first.
        training: None without a manifest.
        examples: texts to try.
        report: files of the report, at `/adapters/{name}/report/{file}`.
    """

    name: str
    adapter: str
    aliases: Mapping[str, int]
    versions: tuple[int, ...]
    training: AdapterTraining | None = None
    examples: tuple[str, ...] = ()
    report: tuple[str, ...] = ()


class Aliases(_Answer):
    """A name's aliases, each with its version."""

    name: str
    aliases: Mapping[str, int]


class AdapterList(_Answer):
    """The registry as the service sees it; `total` names were found, of which `limit` may have cut some off."""

    base_model: str
    default_adapter: str
    total: int | None = None
    adapters: tuple[AdapterEntry, ...]


class AdapterState(_Answer):
    """How an adapter stands after an administrator's verb; the fields are those of `AdapterVersion`."""

    adapter: str
    state: str
    reason: str | None = None
    pinned: bool = False


class Arm(_Answer):
    """One side of an experiment; `share` of the units is 0 to 1."""

    name: str
    adapter: str
    share: float


class Experiment(_Answer):
    """
    Attributes:
        state: `running`, `stopped`, `promoted` or `taken-back`.
        coverage: percent of the units that take part.
        match: headers of which a request must carry one of the values each.
        shadow: an adapter that reads along, unseen by callers.
        stages: percent of the units that the second arm gets, in steps; None without a promotion.
    """

    name: str
    salt: str
    state: str = "running"
    coverage: float = 100.0
    layer: str | None = None
    match: Mapping[str, tuple[str, ...]] = {}
    shadow: str | None = None
    stages: tuple[float, ...] | None = None
    arms: tuple[Arm, ...]


class ExperimentList(_Answer):
    """Experiments of the service's file; `error` says what is wrong with it as it is now."""

    experiments: tuple[Experiment, ...]
    error: str | None = None


class Decision(_Answer):
    """A change in how an experiment stands, with the shares of the units from then on."""

    at: str
    kind: str
    shares: Mapping[str, float]
    reason: str


class Standing(_Answer):
    """How an experiment stands, and how it came to."""

    name: str
    state: str
    decisions: tuple[Decision, ...]


class Bounds(_Answer):
    low: float
    high: float


class ArmResult(Arm):
    """An arm's numbers so far; None without feedback. The interval holds at every look."""

    texts: int
    units: int
    errors: int
    labelled: int
    labelled_units: int
    coverage: float
    accuracy: float | None
    accuracy_interval: Bounds | None
    macro_f1: float | None
    calibration_error: float | None
    p50_ms: float | None
    p99_ms: float | None


class Difference(_Answer):
    """An arm's accuracy less the first arm's, with 95 % intervals for every look and for a single one."""

    arm: str
    accuracy: float
    anytime: Bounds
    fixed: Bounds
    verdict: str


class Look(_Answer):
    """What might have been said of an experiment at some time; its numbers by arm."""

    at: str
    labelled: Mapping[str, int]
    accuracy: Mapping[str, float | None]
    differences: tuple[Difference, ...]


class History(_Answer):
    """How an experiment's differences came to be, oldest look first; the last is now."""

    name: str
    looks: tuple[Look, ...]


class Plan(_Answer):
    """Labelled units that each of two equal arms needs for a difference to be seen.

    Attributes:
        accuracy: of the first arm.
        fixed: for one look settled before.
        anytime: for looking whenever one likes.
        labelled_units: how many the arms have, by arm.
    """

    accuracy: float
    difference: float
    power: float
    fixed: int
    anytime: int
    labelled_units: Mapping[str, int]


class ShadowResult(_Answer):
    """A shadow beside what was answered; `accuracy` is its own less the answers', on the same labelled texts."""

    adapter: str
    pairs: int
    agreement: float | None
    mean_shift: float | None
    labelled: int
    only_arm: int
    only_shadow: int
    accuracy: float | None
    anytime: Bounds | None
    mcnemar_p: float | None
    verdict: str


class ExperimentResult(Experiment):
    """An experiment's numbers so far, and what they allow to be said; `waiting` is what a promotion waits for."""

    arms: tuple[ArmResult, ...]
    differences: tuple[Difference, ...]
    pairs: ShadowResult | None = None
    summary: str = ""
    sample_ratio_p: float | None
    void: bool
    warnings: tuple[str, ...]
    decisions: tuple[Decision, ...] = ()
    waiting: str | None = None
