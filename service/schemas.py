"""Bodies of requests and answers, as they stand in the OpenAPI document."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from starlette.exceptions import HTTPException

from adapters import errors
from adapters.reference import NAME
from engine.rows import LongText
from service.analysis import Analysis, Look, PairSummary, Verdict
from service.decisions import Decision, Kind, Standing, State
from service.problems import MEDIA_TYPE, http_problem_response, problem
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


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")


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
    kept: tuple[int, int] | None = Field(
        description="Of a text that was cut: the first character (code point) that was read, and where it ended."
    )
    request_id: str


class ItemError(BaseModel):
    """Stands in an answer's place in a list, where that one item could not be answered."""

    error: Problem


Item = ClassifyAnswer | ItemError


class ClassifyResults(BaseModel):
    """For a list of texts: one item a text. For several adapters: one item an adapter. For both: a list of the
    adapters' items for each text."""

    results: list[Item] | list[list[Item]]


AdapterStanding = Literal["resident", "registered", "failed"]


class AdapterVersion(BaseModel):
    """One version and how it stands."""

    version: int
    state: AdapterStanding
    pinned: bool = Field(description="It never makes room for others.")
    reason: str | None = Field(description="Why it is refused, where it failed.")
    verified: bool = Field(description="It has a manifest and everything in it was checked.")
    labels: list[str] | None = Field(description="null where there is no manifest and it is not resident.")
    description: str | None
    metrics: Mapping[str, Any] = Field(description="From the manifest, with 95 % intervals.")


class AdapterState(BaseModel):
    """How a version stands after an administrator's order."""

    adapter: str
    state: AdapterStanding
    reason: str | None = Field(description="Why it is refused, where it failed.")
    pinned: bool = Field(description="It never makes room for others.")


class AdapterEntry(BaseModel):
    name: str
    aliases: dict[str, int]
    versions: list[AdapterVersion] = Field(description="Newest first.")


class AdapterList(BaseModel):
    base_model: str
    default_adapter: str
    total: int = Field(description="Names that were found; fewer are shown where there is a limit.")
    adapters: list[AdapterEntry]


class AdapterTraining(BaseModel):
    """What a manifest says of how an adapter came about."""

    created: str = Field(description="UTC, ISO 8601.")
    task: Literal["single_label", "multi_label"]
    base: str
    rank: int = Field(description="Of its LoRA; 0 is a head alone.")
    max_tokens: int
    truncation_side: Literal["left", "right"]
    temperature: float
    data: str | None = Field(description="What it was trained on, for people.")
    examples: int | None = Field(description="How many of them.")


class AdapterDetail(AdapterVersion):
    """One version, whole."""

    name: str
    adapter: str = Field(description="The exact version.")
    aliases: dict[str, int]
    versions: list[int] = Field(description="Of the name, newest first.")
    training: AdapterTraining | None = Field(description="null without a manifest.")
    examples: list[str] = Field(description="Texts to try, its golden examples.")
    report: list[str] = Field(description="Files of the report, at /adapters/{name}/report/{file}.")


class AliasBody(BaseModel):
    """Where an alias points."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"version": 1}]})

    version: int = Field(ge=1, lt=2**31, description="One that is there.")


class Aliases(BaseModel):
    """A name's aliases, each with its version."""

    name: str
    aliases: dict[str, int]


class ArmEntry(BaseModel):
    name: str
    adapter: str
    share: float = Field(description="Share of the units now, 0 to 1.")


class DecisionEntry(BaseModel):
    """A change in how an experiment stands."""

    at: str = Field(description="UTC, ISO 8601.")
    kind: Kind
    shares: dict[str, float] = Field(description="Of the units, by arm, from then on.")
    reason: str

    @classmethod
    def of(cls, decision: Decision) -> Self:
        return cls(at=_time(decision.at_s), kind=decision.kind, shares=decision.weights, reason=decision.reason)


class Standings(BaseModel):
    """How an experiment stands."""

    name: str
    state: State
    decisions: list[DecisionEntry] = Field(description="Oldest first.")

    @classmethod
    def of(cls, experiment: Experiment, standing: Standing) -> Self:
        return cls(
            name=experiment.name,
            state=standing.state,
            decisions=[DecisionEntry.of(decision) for decision in standing.decisions],
        )


class ExperimentEntry(BaseModel):
    name: str
    salt: str
    state: State
    coverage: float = Field(description="Percent of the units that take part.")
    layer: str | None = Field(description="Experiments of one layer have no unit in common.")
    match: dict[str, list[str]] = Field(description="Headers of which a request must carry one of the values each.")
    shadow: str | None = Field(description="An adapter that reads along, unseen by callers.")
    stages: list[float] | None = Field(description="Percent of the units that the second arm gets, in steps.")
    arms: list[ArmEntry]

    @classmethod
    def of(cls, experiment: Experiment, standing: Standing) -> Self:
        layer, promotion = experiment.layer, experiment.promotion
        return cls(
            name=experiment.name,
            salt=experiment.salt,
            state=standing.state,
            coverage=experiment.coverage if layer is None else layer.end - layer.start,
            layer=None if layer is None else layer.name,
            match={name: list(values) for name, values in experiment.match.items()},
            shadow=None if experiment.shadow is None else experiment.shadow.adapter,
            stages=None if promotion is None else list(promotion.stages),
            arms=[
                ArmEntry(name=arm.name, adapter=arm.adapter, share=experiment.weights[arm.name])
                for arm in experiment.arms
            ],
        )


class Bounds(BaseModel):
    low: float
    high: float


class ArmResult(ArmEntry):
    """An arm and its numbers so far; null without feedback."""

    texts: int = Field(description="Answered.")
    units: int = Field(description="By how many units.")
    errors: int = Field(description="Texts that ended in an error of the service's own.")
    labelled: int = Field(description="Of the texts, those with feedback.")
    labelled_units: int = Field(description="Whose texts those are.")
    coverage: float = Field(description="The same as a share.")
    accuracy: float | None
    accuracy_interval: Bounds | None = Field(description="95 %, at all looks at once.")
    macro_f1: float | None
    calibration_error: float | None = Field(description="Expected calibration error over ten bins.")
    p50_ms: float | None
    p99_ms: float | None


class DifferenceResult(BaseModel):
    """An arm's accuracy less the first arm's."""

    arm: str
    accuracy: float
    anytime: Bounds = Field(description="95 %, at all looks at once: what the verdict goes by.")
    fixed: Bounds = Field(description="95 % for one look settled before; not to stop by.")
    verdict: Verdict


class ShadowResult(BaseModel):
    """A shadow beside what was answered; null where there is nothing to say it from."""

    adapter: str
    pairs: int = Field(description="Texts that both have answered.")
    agreement: float | None = Field(description="Share of them with the same label.")
    mean_shift: float | None = Field(description="Of the highest score, the shadow's less the answer's.")
    labelled: int
    only_arm: int = Field(description="Labelled texts that the answer alone had right.")
    only_shadow: int = Field(description="Labelled texts that the shadow alone had right.")
    accuracy: float | None = Field(description="The shadow's less that of the answers, on the same texts.")
    anytime: Bounds | None = Field(description="95 %, at all looks at once: what the verdict goes by.")
    mcnemar_p: float | None = Field(description="McNemar's exact test: for one look, and independent texts.")
    verdict: Verdict


class ExperimentResult(ExperimentEntry):
    arms: list[ArmResult]  # type: ignore[assignment]
    differences: list[DifferenceResult] = Field(description="None while an arm has fewer than 30 labelled units.")
    pairs: ShadowResult | None = Field(description="null without a shadow.")
    summary: str = Field(description="The verdict in words.")
    sample_ratio_p: float | None = Field(description="Of the units' split against the weights; below 0.001 it is void.")
    void: bool
    warnings: list[str]
    decisions: list[DecisionEntry] = Field(description="Oldest first.")
    waiting: str | None = Field(description="What a promotion waits for.")

    @classmethod
    def result(
        cls,
        experiment: Experiment,
        analysis: Analysis,
        standing: Standing,
        pairs: PairSummary | None,
        waiting: str | None,
    ) -> Self:
        entry = ExperimentEntry.of(experiment, standing).model_dump()
        arms = [ArmResult(**(asdict(arm) | known)) for known, arm in zip(entry.pop("arms"), analysis.arms, strict=True)]
        shadow = experiment.shadow
        return cls(
            **entry,
            arms=arms,
            differences=[DifferenceResult(**asdict(difference)) for difference in analysis.differences],
            pairs=None if pairs is None or shadow is None else ShadowResult(adapter=shadow.adapter, **asdict(pairs)),
            summary=analysis.sentence,
            sample_ratio_p=analysis.sample_ratio_p,
            void=analysis.void,
            warnings=list(analysis.warnings),
            decisions=[DecisionEntry.of(decision) for decision in standing.decisions],
            waiting=waiting,
        )


class LookBack(BaseModel):
    """What might have been said at some time."""

    at: str = Field(description="UTC, ISO 8601: when the last label counted here was given.")
    labelled: dict[str, int] = Field(description="By arm.")
    accuracy: dict[str, float | None] = Field(description="By arm.")
    differences: list[DifferenceResult] = Field(description="None while an arm has fewer than 30 labelled units.")


class Course(BaseModel):
    """How an experiment's differences have come to be what they are."""

    name: str
    looks: list[LookBack] = Field(description="Oldest first, after equal numbers of labels; the last is now.")

    @classmethod
    def of(cls, experiment: Experiment, looks: Sequence[Look]) -> Self:
        names = [arm.name for arm in experiment.arms]
        return cls(
            name=experiment.name,
            looks=[
                LookBack(
                    at=_time(look.at_s),
                    labelled=dict(zip(names, look.labelled, strict=True)),
                    accuracy=dict(zip(names, look.accuracy, strict=True)),
                    differences=[DifferenceResult(**asdict(difference)) for difference in look.differences],
                )
                for look in looks
            ],
        )


class PlanAnswer(BaseModel):
    """Labelled units that each of two equal arms needs for a difference to be seen."""

    accuracy: float = Field(description="Of the first arm.")
    difference: float
    power: float
    fixed: int = Field(description="For one look settled before.")
    anytime: int = Field(description="For a verdict that holds at every look.")
    labelled_units: dict[str, int] = Field(description="What each arm has.")


class EndBody(BaseModel):
    """Why an experiment ends."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"reason": "the labels were wrong"}]}
    )

    reason: Text = Field(min_length=1, max_length=1000, description="Written down, and shown with the results.")


class PromoteBody(EndBody):
    """Why an arm gets all units."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"reason": "better by 0.12", "arm": "treatment", "alias": "production"}]},
    )

    arm: str | None = Field(None, description="Of two arms, the second if left out.")
    alias: str | None = Field(
        None, pattern=f"^{NAME.pattern}$", description="Of the arm's adapter; the promotion's own if left out."
    )


class ExperimentList(BaseModel):
    experiments: list[ExperimentEntry]
    error: str | None = Field(description="What is wrong with the file as it is now; the last good one is in force.")


class Probe(BaseModel):
    """What a probe found."""

    status: Literal["ok", "dead"]
    detail: str | None = None


def answers(examples: Mapping[str, Any], media_type: str = "application/json") -> dict[int | str, dict[str, Any]]:
    """Examples of a route's 200, by what they show."""
    return {200: {"content": {media_type: {"examples": {name: {"value": value} for name, value in examples.items()}}}}}


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these problems."""
    return {status: _problem_answer(status) for status in statuses}


def _problem_answer(status: int) -> dict[str, Any]:
    documents = [_problem_document(error) for error in _PROBLEMS[status]]
    examples = {document["type"].rpartition(":")[2]: {"value": document} for document in documents}
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema(), "examples": examples}}
    answer: dict[str, Any] = {"description": _MEANINGS[status], "content": content}
    if status in (429, 503):
        seconds = {"schema": {"type": "integer", "minimum": 1}}
        answer["headers"] = {"Retry-After": {"description": "Seconds after which to try again.", **seconds}}
    return answer


def _problem_document(error: errors.TonearmError | HTTPException) -> dict[str, Any]:
    if isinstance(error, errors.TonearmError):
        return problem(error, _REQUEST_ID)
    document: dict[str, Any] = json.loads(bytes(http_problem_response(error, _REQUEST_ID).body))
    return document


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

_REQUEST_ID = "5f0c1d7e9a3b4c2d8e6f7a1b2c3d4e5f"

_PROBLEMS: dict[int, list[errors.TonearmError | HTTPException]] = {
    400: [errors.InvalidReference("No Name"), HTTPException(400, "X-Unit-Id is not UTF-8")],
    401: [errors.Unauthorized("send a key: Authorization: Bearer <key>, or X-API-Key")],
    403: [errors.Forbidden("this takes an administrator's key")],
    404: [errors.UnknownAdapter("movis", ["movies"])],
    409: [errors.VerificationError("movies@2", "finite values", "finite numbers in classifier.weight", "NaN")],
    413: [
        errors.TextTooLong(700, 512, "movies@1"),
        errors.TooManyTexts(2000, 1024),
        errors.TooManyTokens(300_000, 262_144),
        HTTPException(413, "the body is larger than 4194304 bytes"),
    ],
    422: [HTTPException(422, "body.text: expected a text or a list of texts, found 3")],
    429: [errors.Overloaded(4090, 4096, 70_000, 262_144, 3)],
    500: [errors.TonearmError("internal"), errors.InferenceFailed("the forward pass failed: RuntimeError")],
    503: [
        errors.NotReady("no inference worker is ready yet; try again in a moment"),
        errors.WorkerLost("the inference worker that held the request died; try again in a moment"),
        errors.BankFull(64),
    ],
    504: [errors.DeadlineExceeded(30)],
}

_ANSWER = {
    "label": "positive",
    "score": 0.98,
    "scores": {"negative": 0.02, "positive": 0.98},
    "adapter": "movies@1",
    "experiment": None,
    "arm": None,
    "tokens": 12,
    "truncated": False,
    "windows": 1,
    "kept": None,
    "request_id": _REQUEST_ID,
}
_ARM_ANSWER = _ANSWER | {"experiment": "movies-2026-12", "arm": "treatment"}
_TONE_ANSWER = _ANSWER | {
    "score": 0.9,
    "scores": {"negative": 0.02, "neutral": 0.08, "positive": 0.9},
    "adapter": "tone@1",
}
_ERROR = {"error": _problem_document(_PROBLEMS[413][0])}

CLASSIFY_EXAMPLES = {
    "one-text": _ANSWER,
    "one-text-with-logits": _ANSWER | {"logits": {"negative": -1.9, "positive": 1.99}},
    "one-text-of-a-unit-in-an-experiment": _ARM_ANSWER,
    "several-texts-one-of-them-too-long": {"results": [_ANSWER, _ERROR]},
    "one-text-for-several-adapters": {"results": [_ANSWER, _TONE_ANSWER]},
    "several-texts-for-several-adapters": {"results": [[_ANSWER, _TONE_ANSWER], [_ERROR, _TONE_ANSWER]]},
}

_VERSION = {
    "version": 1,
    "state": "resident",
    "pinned": False,
    "reason": None,
    "verified": True,
    "labels": ["negative", "positive"],
    "description": "film reviews",
    "metrics": {"accuracy": {"value": 0.881, "low": 0.858, "high": 0.901, "n": 872}},
}
_REFUSED_VERSION = _VERSION | {
    "version": 2,
    "state": "failed",
    "reason": "finite values: expected finite numbers in classifier.weight, found NaN or infinity",
    "verified": False,
}
ADAPTERS_EXAMPLES = {
    "one-adapter-of-two-versions": {
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "default_adapter": "base",
        "total": 1,
        "adapters": [{"name": "movies", "aliases": {"champion": 1}, "versions": [_REFUSED_VERSION, _VERSION]}],
    }
}

ADAPTER_EXAMPLES = {
    "a-version": _VERSION
    | {"name": "movies", "adapter": "movies@1", "aliases": {"champion": 1}, "versions": [2, 1]}
    | {
        "training": {
            "created": "2026-12-01T08:00:00+00:00",
            "task": "single_label",
            "base": "sentence-transformers/all-MiniLM-L6-v2",
            "rank": 16,
            "max_tokens": 128,
            "truncation_side": "right",
            "temperature": 1.13,
            "data": "sst2",
            "examples": 6920,
        },
        "examples": ["a film so sure of its charm that it forgets to have any"],
        "report": ["curves.png", "index.html", "metrics.json"],
    }
}
ALIASES_EXAMPLES = {"moved": {"name": "movies", "aliases": {"champion": 1}}}

_ARMS = [
    {"name": "control", "adapter": "base", "share": 0.5},
    {"name": "treatment", "adapter": "movies", "share": 0.5},
]
_EXPERIMENT = {
    "name": "movies-2026-12",
    "salt": "v1",
    "state": "running",
    "coverage": 100.0,
    "layer": None,
    "match": {},
    "shadow": None,
    "stages": None,
    "arms": _ARMS,
}
_TARGETED = _EXPERIMENT | {
    "name": "tone-in-german",
    "layer": "front-page",
    "coverage": 20.0,
    "match": {"x-country": ["at", "de"]},
    "shadow": "tone@3",
    "stages": [1.0, 10.0, 50.0, 100.0],
}
EXPERIMENTS_EXAMPLES = {
    "several": {"experiments": [_EXPERIMENT, _TARGETED], "error": None},
    "a-bad-edit": {"experiments": [_EXPERIMENT], "error": "cannot be read: No such file or directory"},
    "none": {"experiments": [], "error": None},
}

_DECISIONS = [
    {
        "at": "2026-12-01T08:00:00.000+00:00",
        "kind": "started",
        "shares": {"control": 0.5, "treatment": 0.5},
        "reason": "it is in the file",
    }
]
EXPERIMENT_EXAMPLES = {
    "decided": _EXPERIMENT
    | {
        "arms": [
            _ARMS[0]
            | {
                "texts": 6100,
                "units": 3050,
                "errors": 0,
                "labelled": 3000,
                "labelled_units": 1510,
                "coverage": 0.49,
                "accuracy": 0.76,
            }
            | {"accuracy_interval": {"low": 0.74, "high": 0.78}, "macro_f1": 0.76, "calibration_error": 0.05}
            | {"p50_ms": 14.2, "p99_ms": 31.0},
            _ARMS[1]
            | {
                "texts": 6020,
                "units": 3010,
                "errors": 0,
                "labelled": 2990,
                "labelled_units": 1498,
                "coverage": 0.5,
                "accuracy": 0.88,
            }
            | {"accuracy_interval": {"low": 0.86, "high": 0.9}, "macro_f1": 0.88, "calibration_error": 0.03}
            | {"p50_ms": 14.6, "p99_ms": 31.5},
        ],
        "differences": [
            {
                "arm": "treatment",
                "accuracy": 0.12,
                "anytime": {"low": 0.09, "high": 0.15},
                "fixed": {"low": 0.1, "high": 0.14},
                "verdict": "better",
            }
        ],
        "pairs": None,
        "summary": "treatment is better than control: +12.0 points of accuracy, +9.0 to +15.0 at every look.",
        "sample_ratio_p": 0.61,
        "void": False,
        "warnings": [],
        "decisions": _DECISIONS,
        "waiting": None,
    }
}
DECIDED_EXAMPLES = {
    "promoted": {
        "name": "movies-2026-12",
        "state": "promoted",
        "decisions": [
            *_DECISIONS,
            {
                "at": "2026-12-09T15:20:00.000+00:00",
                "kind": "promoted",
                "shares": {"control": 0.0, "treatment": 1.0},
                "reason": "better by 0.12",
            },
        ],
    }
}
COURSE_EXAMPLES = {
    "two-looks": {
        "name": "movies-2026-12",
        "looks": [
            {
                "at": "2026-12-01T09:00:00.000+00:00",
                "labelled": {"control": 12, "treatment": 11},
                "accuracy": {"control": 0.75, "treatment": 0.91},
                "differences": [],
            },
            {
                "at": "2026-12-01T12:00:00.000+00:00",
                "labelled": {"control": 3000, "treatment": 2987},
                "accuracy": {"control": 0.76, "treatment": 0.88},
                "differences": [
                    {
                        "arm": "treatment",
                        "accuracy": 0.12,
                        "anytime": {"low": 0.09, "high": 0.15},
                        "fixed": {"low": 0.1, "high": 0.14},
                        "verdict": "better",
                    }
                ],
            },
        ],
    }
}

PLAN_EXAMPLES = {
    "an-experiment-under-way": {
        "accuracy": 0.85,
        "difference": 0.03,
        "power": 0.8,
        "fixed": 2036,
        "anytime": 3916,
        "labelled_units": {"control": 512, "treatment": 498},
    }
}
EXPORT_EXAMPLES = {
    "text/csv": "request_id,text,at_s,unit,arm,adapter,label,score,took_ms,error,feedback,feedback_at_s\r\n"
    f"{_REQUEST_ID},0,1796083200.5,9c1185a5c5e9fc54612808977ee8f548,treatment,movies@1,positive,0.98,14.6,,positive,"
    "1796083260.1\r\n",
    "application/jsonl": f'{{"request_id": "{_REQUEST_ID}", "text": 0, "at_s": 1796083200.5, "unit": '
    '"9c1185a5c5e9fc54612808977ee8f548", "arm": "treatment", "adapter": "movies@1", "label": "positive", '
    '"score": 0.98, "took_ms": 14.6, "error": null, "feedback": "positive", "feedback_at_s": 1796083260.1}\n',
}

FEEDBACK_EXAMPLES = {"noted": {"request_id": _REQUEST_ID, "text": 0, "label": "negative", "replaced": False}}
STATE_EXAMPLES = {
    "resident": {"adapter": "movies@1", "state": "resident", "reason": None, "pinned": True},
    "refused": {"adapter": "movies@2", "state": "failed", "reason": _REFUSED_VERSION["reason"], "pinned": False},
}

PROBE_EXAMPLES = {"ok": {"status": "ok", "detail": None}}
DEAD_EXAMPLES = {"dead": {"status": "dead", "detail": "worker 0 gives no sign of life for 61 s"}}

METRICS_EXAMPLES = {
    "a-few-lines": "# HELP tonearm_ready 1 if the service takes work.\n# TYPE tonearm_ready gauge\ntonearm_ready 1.0\n"
}
