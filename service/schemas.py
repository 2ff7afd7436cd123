"""Bodies of requests and answers, as they stand in the OpenAPI document."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from engine.rows import LongText
from service.analysis import Analysis
from service.problems import MEDIA_TYPE
from service.routing import Experiment


def _encodable(text: str) -> str:
    # JSON can write half a surrogate pair; no tokenizer can read one.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text that is Unicode throughout; character {error.start} is half a surrogate pair"
        ) from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
TextOrTexts = Annotated[
    Annotated[Text, Tag("one")] | Annotated[list[Text], Field(min_length=1), Tag("many")],
    # Chosen by hand, so that an error speaks of the form that was meant and not of both.
    Discriminator(lambda value: "many" if isinstance(value, list) else "one"),
]
TAGS = frozenset({"one", "many"})
"""What pydantic puts into an error's place to say which form it took a text for."""


class ClassifyBody(BaseModel):
    """One text or a list of texts."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"text": "a stirring, funny and finally transporting film"}]},
    )

    text: TextOrTexts
    truncate: bool = Field(True, description="Cut a text that is too long; otherwise it is a 413.")
    long_text: Literal["truncate", "windows"] = Field(
        "truncate", description="windows: read a text that is too long in overlapping windows and pool their logits."
    )
    logits: bool = Field(False, description="Answer with the logits, too.")

    @property
    def on_long_text(self) -> LongText:
        if self.long_text == "windows":
            return "windows"
        return "truncate" if self.truncate else "refuse"

    @property
    def texts(self) -> list[str]:
        return [self.text] if isinstance(self.text, str) else self.text


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    nearest: list[str] | None = Field(None, description="Names like the one asked for; with unknown adapters.")


class ClassifyAnswer(BaseModel):
    """What one adapter says of one text."""

    label: str = Field(description="The label with the highest score.")
    score: float
    scores: dict[str, float]
    logits: dict[str, float] | None = Field(None, description="Only where the request asked for them.")
    adapter: str = Field(description="The exact version that answered.")
    experiment: str | None
    arm: str | None
    tokens: int = Field(description="Tokens read, special tokens included.")
    truncated: bool
    windows: int = Field(description="Passes that the text took; more than one only where windows were asked for.")
    request_id: str


class ItemError(BaseModel):
    """Stands in an answer's place in a list, where that one item could not be answered."""

    error: Problem


Item = ClassifyAnswer | ItemError


class ClassifyResults(BaseModel):
    """For a list of texts: one item a text. For several adapters: one item an adapter. For both: a list of the
    adapters' items for each text."""

    results: list[Item] | list[list[Item]]


class AdapterVersion(BaseModel):
    """One version and how it stands."""

    version: int
    state: Literal["resident", "registered", "failed"]
    pinned: bool = Field(description="It never makes room for others.")
    reason: str | None = Field(description="Why it is refused, where it failed.")
    verified: bool = Field(description="It has a manifest and everything in it was checked.")
    labels: list[str] | None = Field(description="null where there is no manifest and it is not resident.")
    description: str | None
    metrics: Mapping[str, Any] = Field(description="From the manifest, with 95 % intervals.")


class AdapterState(BaseModel):
    """How a version stands after an administrator's order."""

    adapter: str
    state: Literal["resident", "registered", "failed"]
    reason: str | None = Field(description="Why it is refused, where it failed.")
    pinned: bool = Field(description="It never makes room for others.")


class AdapterEntry(BaseModel):
    name: str
    aliases: dict[str, int]
    versions: list[AdapterVersion] = Field(description="Newest first.")


class AdapterList(BaseModel):
    base_model: str
    default_adapter: str
    adapters: list[AdapterEntry]


class ArmEntry(BaseModel):
    name: str
    adapter: str
    share: float = Field(description="Share of the units, 0 to 1.")


class ExperimentEntry(BaseModel):
    name: str
    salt: str
    arms: list[ArmEntry]


class ArmResult(ArmEntry):
    """An arm and its numbers so far; null without feedback."""

    texts: int = Field(description="Answered.")
    units: int = Field(description="By how many units.")
    labelled: int = Field(description="Of the texts, those with feedback.")
    coverage: float = Field(description="The same as a share.")
    accuracy: float | None
    macro_f1: float | None
    calibration_error: float | None = Field(description="Expected calibration error over ten bins.")
    mean_took_ms: float | None


class Bounds(BaseModel):
    low: float
    high: float


class DifferenceResult(BaseModel):
    """An arm's accuracy less the first arm's."""

    arm: str
    accuracy: float
    anytime: Bounds = Field(description="95 %, at all looks at once: what the verdict goes by.")
    fixed: Bounds = Field(description="95 % for one look settled before; not to stop by.")
    verdict: Literal["better", "worse", "undecided"]


class ExperimentResult(BaseModel):
    name: str
    salt: str
    arms: list[ArmResult]
    differences: list[DifferenceResult] = Field(description="None while an arm has fewer than 30 labelled units.")
    sample_ratio_p: float | None = Field(description="Of the units' split against the weights; below 0.001 it is void.")
    void: bool
    warnings: list[str]

    @classmethod
    def of(cls, experiment: Experiment, analysis: Analysis) -> Self:
        shares = [(arm.adapter, arm.weight / experiment.total_weight) for arm in experiment.arms]
        return cls(
            name=experiment.name,
            salt=experiment.salt,
            arms=[
                ArmResult(adapter=adapter, share=share, **asdict(arm))
                for arm, (adapter, share) in zip(analysis.arms, shares, strict=True)
            ],
            differences=[DifferenceResult(**asdict(difference)) for difference in analysis.differences],
            sample_ratio_p=analysis.sample_ratio_p,
            void=analysis.void,
            warnings=list(analysis.warnings),
        )


class ExperimentList(BaseModel):
    experiments: list[ExperimentEntry]
    error: str | None = Field(description="What is wrong with the file as it is now; the last good one is in force.")


class Probe(BaseModel):
    """What a probe found."""

    status: Literal["ok", "dead"]
    detail: str | None = None


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these problems."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


_MEANINGS = {
    400: "A malformed header.",
    401: "No key, or an unknown one.",
    403: "The key is a caller's, and this is an administrator's.",
    404: "Unknown adapter; the nearest names are given.",
    409: "The adapter is registered but must not be served; the reason is given.",
    413: "The text is too long, there are too many, or the body is too large.",
    422: "A bad body; the field, its value and what was expected are given.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "An internal error.",
    503: "Not ready, or draining.",
    504: "No answer in time.",
}
