"""Errors as HTTP: one table, one shape (RFC 9457, `application/problem+json`)."""

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from adapters.errors import (
    BankFull,
    CallerGone,
    DeadlineExceeded,
    Forbidden,
    InferenceFailed,
    InvalidReference,
    InvalidText,
    NotReady,
    Overloaded,
    StoreUnavailable,
    TextTooLong,
    TonearmError,
    TooManyTexts,
    TooManyTokens,
    Unauthorized,
    UnknownAdapter,
    UnknownExperiment,
    UnknownRequest,
    VerificationError,
    WorkerLost,
)
from service import metrics

MEDIA_TYPE = "application/problem+json"
_TYPE_PREFIX = "urn:tonearm:problem:"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a type of error shows: its status, the last part of its `type`, its title."""

    status: int
    slug: str
    title: str


TABLE: dict[type[TonearmError], Kind] = {
    InvalidReference: Kind(400, "invalid-reference", "Not an adapter reference"),
    Unauthorized: Kind(401, "unauthorized", "A key is needed"),
    Forbidden: Kind(403, "forbidden", "The key does not allow this"),
    UnknownAdapter: Kind(404, "unknown-adapter", "No such adapter"),
    UnknownRequest: Kind(404, "unknown-request", "No such request"),
    UnknownExperiment: Kind(404, "unknown-experiment", "No such experiment"),
    StoreUnavailable: Kind(503, "store-unavailable", "The database does not answer"),
    VerificationError: Kind(409, "adapter-refused", "The adapter is registered but must not be served"),
    InvalidText: Kind(422, "invalid-text", "Not a text"),
    TextTooLong: Kind(413, "text-too-long", "The text is too long"),
    TooManyTexts: Kind(413, "too-many-texts", "Too many texts in one request"),
    TooManyTokens: Kind(413, "too-many-tokens", "Too much text in one request"),
    Overloaded: Kind(429, "overloaded", "The queue is full"),
    BankFull: Kind(503, "bank-full", "No slot for the adapter"),
    # Nobody reads it; the log and the metrics do. nginx's own status for this.
    CallerGone: Kind(499, "caller-gone", "The client hung up"),
    InferenceFailed: Kind(500, "inference-failed", "The text could not be classified"),
    NotReady: Kind(503, "not-ready", "The service takes no work now"),
    WorkerLost: Kind(503, "worker-lost", "The inference worker died"),
    DeadlineExceeded: Kind(504, "deadline-exceeded", "No answer in time"),
    TonearmError: Kind(500, "internal", "Internal error"),
}

_RETRY_AFTER_S: dict[type[TonearmError], float] = {NotReady: 1, WorkerLost: 3, BankFull: 10, StoreUnavailable: 5}
"""For errors that pass by themselves; a worker is replaced in about three seconds."""


def kind_of(error: TonearmError) -> Kind:
    """The table's entry for the nearest of the error's classes."""
    return next(TABLE[known] for known in type(error).__mro__ if known in TABLE)


def is_own_failure(error: TonearmError) -> bool:
    """Whether the service, or the adapter, failed the caller; not where there is no room, or the request is bad."""
    return isinstance(error, VerificationError) or kind_of(error).status in (500, 503, 504)


def problem(error: TonearmError, request_id: str) -> dict[str, Any]:
    """The problem document of one of our errors."""
    kind = kind_of(error)
    # What an unforeseen error says may not be for callers.
    detail = str(error) if kind.slug != "internal" else "an internal error; the log has it under this request_id"
    document = _document(kind, detail, request_id)
    if isinstance(error, UnknownAdapter) and error.nearest:
        document["nearest"] = list(error.nearest)
    return document


def problem_response(error: TonearmError, request_id: str, path: str = "") -> JSONResponse:
    """
    Args:
        path: of the request: those that follow others' protocols want their errors' members, too.
    """
    kind = kind_of(error)
    metrics.problems.labels(kind.slug).inc()
    headers = {}
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else _RETRY_AFTER_S.get(type(error))
    if retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(retry_after_s))
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    document = problem(error, request_id)
    return JSONResponse(document | _of_protocol(path, document), kind.status, headers, MEDIA_TYPE)


def http_problem_response(error: HTTPException, request_id: str, path: str = "") -> JSONResponse:
    """For what HTTP itself finds wrong: no such route, a method not allowed, a malformed header."""
    phrase = HTTPStatus(error.status_code).phrase
    kind = Kind(error.status_code, phrase.lower().replace(" ", "-"), phrase)
    metrics.problems.labels(kind.slug).inc()
    detail = error.detail if error.detail and error.detail != phrase else phrase
    document = _document(kind, detail, request_id)
    document |= _of_protocol(path, document)
    return JSONResponse(document, kind.status, dict(error.headers or {}), MEDIA_TYPE)


def _of_protocol(path: str, document: dict[str, Any]) -> dict[str, Any]:
    """What clients of the Open Inference Protocol and of text-embeddings-inference look for in an error."""
    if path == "/predict":
        types = {429: "overloaded", 503: "unhealthy"}
        other = "validation" if document["status"] < 500 else "backend"
        return {"error": document["detail"], "error_type": types.get(document["status"], other)}
    return {"error": document["detail"]} if path.startswith("/v2/") else {}


def _document(kind: Kind, detail: str, request_id: str) -> dict[str, Any]:
    return {
        "type": _TYPE_PREFIX + kind.slug,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "request_id": request_id,
    }
