"""Bodies of requests and answers, as they stand in the OpenAPI document."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from starlette.exceptions import HTTPException

from adapters import errors
from service.problems import MEDIA_TYPE, http_problem_response, problem


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
    logits: bool = Field(False, description="Answer with the logits, too.")

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
    reason: str | None = Field(description="Why it is refused, where it failed.")
    verified: bool = Field(description="It has a manifest and everything in it was checked.")
    labels: list[str] | None = Field(description="null where there is no manifest and it is not resident.")
    description: str | None
    metrics: Mapping[str, Any] = Field(description="From the manifest, with 95 % intervals.")


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
    404: [errors.UnknownAdapter("movis", ["movies"])],
    409: [errors.VerificationError("movies@2", "finite values", "finite numbers in classifier.weight", "NaN")],
    413: [
        errors.TextTooLong(700, 512, "movies@1"),
        errors.TooManyTexts(2000, 1024),
        HTTPException(413, "the body is larger than 4194304 bytes"),
    ],
    422: [HTTPException(422, "body.text: expected a text or a list of texts, found 3")],
    429: [errors.Overloaded(4090, 4096, 3)],
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
        "adapters": [{"name": "movies", "aliases": {"champion": 1}, "versions": [_REFUSED_VERSION, _VERSION]}],
    }
}

_ARMS = [
    {"name": "control", "adapter": "base", "share": 0.5},
    {"name": "treatment", "adapter": "movies", "share": 0.5},
]
_EXPERIMENT = {"name": "movies-2026-12", "salt": "v1", "arms": _ARMS}
EXPERIMENTS_EXAMPLES = {
    "one-experiment": {"experiments": [_EXPERIMENT], "error": None},
    "a-bad-edit": {"experiments": [_EXPERIMENT], "error": "cannot be read: No such file or directory"},
    "none": {"experiments": [], "error": None},
}

PROBE_EXAMPLES = {"ok": {"status": "ok", "detail": None}}
DEAD_EXAMPLES = {"dead": {"status": "dead", "detail": "worker 0 gives no sign of life for 61 s"}}

METRICS_EXAMPLES = {
    "a-few-lines": "# HELP tonearm_ready 1 if the service takes work.\n# TYPE tonearm_ready gauge\ntonearm_ready 1.0\n"
}
