"""What every way in shares: headers read, a route found, rows queued, a reply awaited.

The ways in (`classify.py`, `open_inference.py`, `predict.py`) only translate.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Header, Request
from starlette.exceptions import HTTPException

from adapters.errors import AdapterError, TonearmError, TooManyTexts
from adapters.reference import AdapterId
from adapters.store import Registry
from engine.rows import Answer, LongText, Outcome, Row
from service import metrics
from service.messages import Reply, Timings
from service.problems import is_own_failure
from service.record import facts_of, request_id_of
from service.routing import Experiment, assign, claim, shadows
from service.service import Service
from service.store import Exposure, Pair

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
        unit: whose arm it is; None outside experiments.
        shadow: reads along, unseen.
        several: the request named more than one adapter, so the answer is a list even for one text.
    """

    adapters: tuple[AdapterId, ...]
    experiment: str | None = None
    arm: str | None = None
    unit: str | None = None
    shadow: AdapterId | None = None

    @property
    def several(self) -> bool:
        return len(self.adapters) > 1


async def ask(
    request: Request,
    texts: list[str],
    long_text: LongText,
    *,
    adapter: str | None,
    unit: str | None,
    timeout_ms: str | None,
) -> tuple[Route, Reply]:
    """Every text for every adapter of the route, text by text.

    Args:
        adapter, unit, timeout_ms: the headers X-Adapter, X-Unit-Id, X-Request-Timeout-Ms as they came.

    Raises:
        TonearmError: what is wrong with the request as a whole.
        HTTPException: 400, a malformed header.
    """
    service: Service = request.app.state.service
    service.watch.check_ready()
    facts = facts_of(request)
    facts.enter("route")
    timeout_s = _timeout_s(timeout_ms, service.settings.request_timeout_s)
    route = find_route(adapter, _unit(unit), request.headers, service)
    rows = [Row(text, answering, long_text) for text in texts for answering in route.adapters]
    _note_facts(request, route, texts, len(rows), service)
    if len(rows) > service.settings.max_texts_per_request:
        raise TooManyTexts(len(rows), service.settings.max_texts_per_request)
    facts.enter("queue")
    started_s = time.monotonic()
    try:
        reply = await service.mailbox.ask(
            rows, timeout_s=timeout_s, hung_up=lambda: _hung_up(request), shadow=route.shadow
        )
    except TonearmError as error:
        _note_outcomes(request, route, [error] * len(texts), (), started_s, service)
        raise
    facts.timings = reply.timings
    facts.enter("labels")
    _note_outcomes(request, route, reply.outcomes, reply.shadows, started_s, service)
    return route, reply


def find_route(x_adapter: str | None, unit: str | None, headers: Mapping[str, str], service: Service) -> Route:
    """The adapters a request names, or else its unit's arm, or else the default adapter.

    Args:
        headers: all of the request's; experiments may go by them.

    Raises:
        InvalidReference: what it names is no reference.
        UnknownAdapter: some adapter is not in the registry.
    """
    if x_adapter is not None:
        names = [name.strip() for name in x_adapter.split(",")]
        return Route(tuple(service.registry.resolve(name) for name in names))
    if unit is not None:
        experiment = claim(service.experiments.in_force, headers, unit)
        if experiment is not None:
            return _arm_route(experiment, unit, service.registry)
    return Route((service.registry.resolve(service.settings.default_adapter),))


def headers_of(route: Route, timings: Timings) -> dict[str, str]:
    """Who answered, and where the time went."""
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


def _note_outcomes(
    request: Request,
    route: Route,
    outcomes: Sequence[Outcome],
    shadows: Sequence[Answer | None],
    started_s: float,
    service: Service,
) -> None:
    """Write down what the analysis reads: answers, errors of the service's own making, pairs with a shadow."""
    request_id, now_s, took_ms = request_id_of(request), time.time(), (time.monotonic() - started_s) * 1e3
    width = len(route.adapters)
    noted: list[Exposure | Pair] = []
    for at, outcome in enumerate(outcomes):
        place = (request_id, at // width, str(route.adapters[at % width]), now_s)
        arm = (route.experiment, route.arm, route.unit)
        if isinstance(outcome, Answer):
            noted.append(Exposure(*place, *arm, outcome.label, max(outcome.scores), took_ms))
        elif route.experiment is not None and is_own_failure(outcome):
            noted.append(Exposure(*place, *arm, "", 0.0, took_ms, type(outcome).__name__))
    if route.shadow is not None:
        noted += _pairs(request_id, route, outcomes, shadows)
    service.store.expose(noted)


def _pairs(
    request_id: str, route: Route, outcomes: Sequence[Outcome], shadows: Sequence[Answer | None]
) -> Iterator[Pair]:
    """A shadow's answers beside those that the caller got, counted."""
    assert route.experiment is not None and route.unit is not None
    now_s, adapter, shadow = time.time(), str(route.adapters[0]), str(route.shadow)
    for at, (outcome, other) in enumerate(zip(outcomes, shadows, strict=False)):
        if not isinstance(outcome, Answer):
            continue
        metrics.shadow_texts.labels(route.experiment, shadow, "shed" if other is None else "read").inc()
        if other is None:
            continue
        score, shadow_score = max(outcome.scores), max(other.scores)
        said = metrics.label_label(outcome.label), metrics.label_label(other.label)
        metrics.shadow_labels.labels(route.experiment, adapter, shadow, *said).inc()
        metrics.shadow_score_shift.labels(route.experiment, adapter, shadow).observe(shadow_score - score)
        place = (request_id, at, shadow, now_s, route.experiment, route.unit, adapter)
        yield Pair(*place, outcome.label, score, other.label, shadow_score)


async def _hung_up(request: Request) -> None:
    """Returns when the client has closed its connection. The body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)


def _arm_route(experiment: Experiment, unit: str, registry: Registry) -> Route:
    arm = assign(experiment, unit)
    metrics.assignments.labels(experiment.name, arm.name).inc()
    shadow = None
    if experiment.shadow is not None and shadows(experiment, unit):
        with suppress(AdapterError):  # removed since the file was read: callers do not pay for it
            shadow = registry.resolve(experiment.shadow.adapter)
    adapter = registry.resolve(arm.adapter)
    # Beside itself a shadow says nothing.
    return Route((adapter,), experiment.name, arm.name, unit, shadow if shadow != adapter else None)


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
