"""`POST /classify`: route to an arm, queue, wait, answer."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from adapters.errors import AdapterError, TonearmError, TooManyTexts
from adapters.reference import AdapterId
from adapters.store import Registry
from engine.rows import Answer, Outcome, Row
from service import metrics
from service.messages import Reply, Timings
from service.problems import problem
from service.record import facts_of, request_id_of
from service.routing import Experiment, assign
from service.schemas import (
    CLASSIFY_EXAMPLES,
    ClassifyAnswer,
    ClassifyBody,
    ClassifyResults,
    answers,
    problem_answers,
)
from service.service import Service

router = APIRouter(tags=["classify"])

_MAX_UNIT_BYTES = 256

XAdapter = Annotated[
    str | None,
    Header(description="name, name@3 or name@alias; several, comma-separated, each answer.", examples=["movies"]),
]
XUnitId = Annotated[
    str | None, Header(description="The A/B unit, UTF-8: without X-Adapter the experiment routes by it.")
]
XRequestTimeoutMs = Annotated[
    str | None, Header(description="Longest wait for this answer, in milliseconds; at most the service's own.")
]
XRequestId = Annotated[str | None, Header(description="Echoed in the answer and the log, or made.")]


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers a request.

    Attributes:
        several: the request named more than one adapter, so the answer is a list even for one text.
    """

    adapters: tuple[AdapterId, ...]
    experiment: str | None = None
    arm: str | None = None

    @property
    def several(self) -> bool:
        return len(self.adapters) > 1


@router.post(
    "/classify",
    response_model=ClassifyAnswer | ClassifyResults,
    responses=answers(CLASSIFY_EXAMPLES) | problem_answers(400, 401, 404, 409, 413, 422, 429, 500, 503, 504),
    summary="Classify one text or several",
)
async def classify(
    request: Request,
    body: ClassifyBody,
    x_adapter: XAdapter = None,
    x_unit_id: XUnitId = None,
    x_request_timeout_ms: XRequestTimeoutMs = None,
    x_request_id: XRequestId = None,
) -> Response:
    """One text gives one answer; a list of texts, or several adapters, give `results`.

    What is wrong with one item of a list stands in its place as `{"error": {…}}` while the others are answered; what
    is wrong with the request, or with the only adapter it names, is the response.
    """
    service: Service = request.app.state.service
    service.watch.check_ready()
    timeout_s = _timeout_s(x_request_timeout_ms, service.settings.request_timeout_s)
    route = find_route(x_adapter, _unit(x_unit_id), service)
    texts = body.texts
    rows = [Row(text, adapter, body.truncate) for text in texts for adapter in route.adapters]
    _note_facts(request, route, texts, len(rows), service)
    if len(rows) > service.settings.max_texts_per_request:
        raise TooManyTexts(len(rows), service.settings.max_texts_per_request)
    reply = await service.mailbox.ask(rows, timeout_s=timeout_s)
    return _response(body, route, reply, request_id_of(request))


def find_route(x_adapter: str | None, unit: str | None, service: Service) -> Route:
    """The adapters a request names, or else its unit's arm, or else the default adapter.

    Raises:
        InvalidReference: what it names is no reference.
        UnknownAdapter: some adapter is not in the registry.
    """
    if x_adapter is not None:
        names = [name.strip() for name in x_adapter.split(",")]
        return Route(tuple(service.registry.resolve(name) for name in names))
    if unit is not None and service.experiments.current:
        return _arm_route(service.experiments.current[0], unit, service.registry)
    return Route((service.registry.resolve(service.settings.default_adapter),))


def _arm_route(experiment: Experiment, unit: str, registry: Registry) -> Route:
    arm = assign(experiment, unit)
    metrics.assignments.labels(experiment.name, arm.name).inc()
    return Route((registry.resolve(arm.adapter),), experiment.name, arm.name)


def _unit(header: str | None) -> str | None:
    """The header's bytes as UTF-8: the hash is over bytes, and HTTP libraries read headers as Latin-1.

    Raises:
        HTTPException: 400.
    """
    if header is None:
        return None
    value = header.encode("latin-1")
    if not 0 < len(value) <= _MAX_UNIT_BYTES:
        raise HTTPException(400, f"X-Unit-Id has {len(value)} bytes, expected 1 to {_MAX_UNIT_BYTES}")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise HTTPException(400, "X-Unit-Id is not UTF-8") from None


def _timeout_s(header: str | None, longest_s: float) -> float:
    """
    Raises:
        HTTPException: 400.
    """
    if header is None:
        return longest_s
    longest_ms = int(longest_s * 1e3)
    whole = header.isascii() and header.isdigit() and len(header) <= 9
    if not whole or not 1 <= int(header) <= longest_ms:
        detail = f"X-Request-Timeout-Ms is {header[:40]!r}, expected a whole number from 1 to {longest_ms}"
        raise HTTPException(400, detail)
    return int(header) / 1e3


def _note_facts(request: Request, route: Route, texts: list[str], rows: int, service: Service) -> None:
    facts = facts_of(request)
    facts.adapter = "several" if route.several else str(route.adapters[0])
    facts.experiment, facts.arm = route.experiment or "", route.arm or ""
    facts.rows = rows
    if service.settings.log_text:
        facts.texts = texts


def _response(body: ClassifyBody, route: Route, reply: Reply, request_id: str) -> Response:
    """
    Raises:
        TonearmError: what went wrong, where it is not the matter of one item among others.
    """
    outcomes = reply.outcomes
    one_text = isinstance(body.text, str)
    if one_text and not route.several:
        if isinstance(outcomes[0], TonearmError):
            raise outcomes[0]
    elif not route.several and all(isinstance(outcome, AdapterError) for outcome in outcomes):
        raise outcomes[0]  # type: ignore[misc]
    items = [
        _item(outcome, route.adapters[at % len(route.adapters)], route, body.logits, request_id)
        for at, outcome in enumerate(outcomes)
    ]
    content: dict[str, Any]
    if not one_text and route.several:
        width = len(route.adapters)
        content = {"results": [items[first : first + width] for first in range(0, len(items), width)]}
    elif not one_text or route.several:
        content = {"results": items}
    else:
        content = items[0]
    return JSONResponse(content, headers=_headers(route, reply.timings))


def _item(outcome: Outcome, adapter: AdapterId, route: Route, logits: bool, request_id: str) -> dict[str, Any]:
    if not isinstance(outcome, Answer):
        return {"error": problem(outcome, request_id)}
    best = max(range(len(outcome.scores)), key=outcome.scores.__getitem__)
    item: dict[str, Any] = {
        "label": outcome.labels[best],
        "score": outcome.scores[best],
        "scores": dict(zip(outcome.labels, outcome.scores, strict=True)),
        "adapter": str(adapter),
        "experiment": route.experiment,
        "arm": route.arm,
        "tokens": outcome.tokens,
        "truncated": outcome.truncated,
        "request_id": request_id,
    }
    if logits:
        item["logits"] = dict(zip(outcome.labels, outcome.logits, strict=True))
    return item


def _headers(route: Route, timings: Timings) -> dict[str, str]:
    headers = {
        "X-Adapter": ",".join(str(adapter) for adapter in route.adapters),
        "Server-Timing": ", ".join(
            f"{stage};dur={seconds * 1e3:.2f}"
            for stage, seconds in (
                ("queue", timings.queue_s),
                ("tokenise", timings.tokenise_s),
                ("forward", timings.forward_s),
            )
        ),
    }
    if route.experiment is not None and route.arm is not None:
        headers |= {"X-Experiment": route.experiment, "X-Arm": route.arm}
    return headers
