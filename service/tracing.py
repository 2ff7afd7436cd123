"""Traces of requests, by OpenTelemetry: one server span a request, one child span a stage.

    POST /classify
    ├── validate   the key, the body, its schema
    ├── route      adapters, or an arm
    ├── queue      until its batch began, loads included
    ├── tokenise   of the whole batch
    ├── forward    encoder, LoRA bank and heads, of the whole batch
    └── labels     scores to the answer's form, and the answer sent

Imported only where traces are switched on. The worker exports nothing: its stages are spans of the API process, made
from the timings in its reply, because all processes of a machine share the monotonic clock.

Endpoint, headers, service name, sampler and batching are OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, …), which the SDK reads.
"""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Literal, NamedTuple

import structlog
from opentelemetry import propagate
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_REQUEST_METHOD_ORIGINAL,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.semconv.attributes.network_attributes import NETWORK_PROTOCOL_VERSION
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.attributes.service_attributes import SERVICE_NAME
from opentelemetry.semconv.attributes.url_attributes import URL_PATH, URL_SCHEME
from opentelemetry.trace import SpanKind, StatusCode, Tracer, format_span_id, format_trace_id, set_span_in_context
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.record import QUIET, Facts

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})

log = structlog.get_logger(__name__)


class Tracing:
    """Makes spans in the API process and exports them.

    Made in main, so that a bad `OTEL_` variable stops the start; runs after the fork, which no thread survives.
    """

    def __init__(self, to: Literal["otlp", "console"], *, flush_timeout_s: float = 5) -> None:
        """
        Args:
            to: where spans go.
            flush_timeout_s: longest wait for a collector at the end; what it has not taken by then is lost.

        Raises:
            ImportError: the exporter is not installed.
            ValueError: an `OTEL_` variable is wrong.
        """
        # On trial: after the fork, what is wrong with a variable would only be a traceback.
        _processor(to).shutdown()
        self._to = to
        self._flush_timeout_s = flush_timeout_s
        # Never the global provider: FastAPI makes spans of its own wherever one is set.
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: "tonearm"}).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self.tracer: Tracer = self._provider.get_tracer("tonearm")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Export as long as the API process serves, and at its end what is left."""
        self._provider.add_span_processor(_processor(self._to))
        try:
            yield
        finally:
            await self._flush()

    async def _flush(self) -> None:
        # A daemon thread: the SDK's own limit is 30 s, and a collector that hangs must not hold up the end.
        flushing = threading.Thread(target=self._provider.shutdown, name="flush-spans", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, self._flush_timeout_s)
        if flushing.is_alive():
            log.warning("spans_not_flushed", waited_s=self._flush_timeout_s)


def _processor(to: Literal["otlp", "console"]) -> SpanProcessor:
    if to == "console":
        console = ConsoleSpanExporter(out=sys.stdout, formatter=lambda span: span.to_json(indent=None) + "\n")
        return SimpleSpanProcessor(console)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return BatchSpanProcessor(OTLPSpanExporter())


class TraceRequests:
    """Outermost layer where traces are on. Probes and scrapes are not traced: they would be most of it."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracer = tracing.tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self._app(scope, receive, send)
            return
        trace = _RequestTrace(self._tracer, scope)
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        error: BaseException | None = None
        with structlog.contextvars.bound_contextvars(**trace.ids):
            try:
                await self._app(scope, receive, send_noted)
            except BaseException as broke:
                error = broke
                raise
            finally:
                trace.end(scope, status, error)


class _RequestTrace:
    """The spans of one request. Times are taken on the monotonic clock and put onto the wall clock by one offset, so
    that a clock that is set meanwhile cannot turn their order around."""

    def __init__(self, tracer: Tracer, scope: Scope) -> None:
        self._tracer = tracer
        self._began_s = time.monotonic()
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._method = scope["method"] if scope["method"] in _METHODS else "HTTP"
        self._span = tracer.start_span(
            self._method,
            context=propagate.extract(Headers(scope=scope), getter=_HEADERS),
            kind=SpanKind.SERVER,
            attributes=_request_attributes(scope),
            start_time=self._wall_ns(self._began_s),
        )

    @property
    def ids(self) -> dict[str, str]:
        """What the log's lines carry. Nothing where the SDK is disabled and no trace came in."""
        context = self._span.get_span_context()
        if not context.is_valid:
            return {}
        return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}

    def end(self, scope: Scope, status: int, error: BaseException | None) -> None:
        """
        Args:
            status: of the answer; 0 if there was none.
            error: what came through all layers.
        """
        if not self._span.is_recording():
            return
        ended_s = time.monotonic()
        facts: Facts = scope["state"]["facts"]
        failed = error is not None or status == 0 or status >= 500
        self._make_children(facts, ended_s, failed)
        route = getattr(scope.get("route"), "path", "")
        if route:
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute(HTTP_ROUTE, route)
        if status:
            self._span.set_attribute(HTTP_RESPONSE_STATUS_CODE, status)
        self._span.set_attribute("tonearm.request_id", scope["state"]["request_id"])
        self._span.set_attributes(_facts_attributes(facts))
        if failed:
            # The type alone: what an error says may quote a text.
            self._span.set_attribute(ERROR_TYPE, type(error).__qualname__ if error is not None else str(status))
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._wall_ns(ended_s))

    def _make_children(self, facts: Facts, ended_s: float, failed: bool) -> None:
        context = set_span_in_context(self._span)
        for stage in stages(facts, self._began_s, ended_s):
            child = self._tracer.start_span(stage.name, context=context, start_time=self._wall_ns(stage.began_s))
            if failed and stage.ended_s == ended_s:
                child.set_status(StatusCode.ERROR)
            child.end(self._wall_ns(stage.ended_s))

    def _wall_ns(self, monotonic_s: float) -> int:
        return self._offset_ns + round(monotonic_s * 1e9)


class Stage(NamedTuple):
    """A stage of one request, in seconds on the monotonic clock."""

    name: str
    began_s: float
    ended_s: float


def stages(facts: Facts, began_s: float, ended_s: float) -> Iterator[Stage]:
    """The stages of a request in their order; none where its handler noted none.

    A request that failed has those that it came to, the last one until its end.
    """
    if not facts.stages:
        return
    marks = [("validate", began_s), *facts.stages, ("", ended_s)]
    for (name, from_s), (_, to_s) in pairwise(marks):
        timings = facts.timings
        if name != "queue" or timings is None or not timings.batch_s:
            yield Stage(name, from_s, to_s)
            continue
        tokenised_s = timings.batch_s + timings.tokenise_s
        yield Stage("queue", from_s, timings.batch_s)
        yield Stage("tokenise", timings.batch_s, tokenised_s)
        yield Stage("forward", tokenised_s, tokenised_s + timings.forward_s)


def _request_attributes(scope: Scope) -> dict[str, str | int]:
    """Of HTTP's semantic conventions. Not the query: whatever stands there was not meant for us, and may be a text."""
    method = scope["method"]
    attributes: dict[str, str | int] = {
        HTTP_REQUEST_METHOD: method if method in _METHODS else "_OTHER",
        URL_SCHEME: scope["scheme"],
        URL_PATH: scope["path"],
        NETWORK_PROTOCOL_VERSION: scope["http_version"],
    }
    if method not in _METHODS:
        attributes[HTTP_REQUEST_METHOD_ORIGINAL] = method
    if scope.get("server"):
        attributes[SERVER_ADDRESS], port = scope["server"]
        if port is not None:
            attributes[SERVER_PORT] = port
    return attributes


def _facts_attributes(facts: Facts) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {}
    if facts.adapter:
        attributes |= {"tonearm.adapter": facts.adapter, "tonearm.rows": facts.rows}
    if facts.experiment:
        attributes |= {"tonearm.experiment": facts.experiment, "tonearm.arm": facts.arm}
    return attributes


class _HeadersGetter(Getter[Headers]):
    """A header that stands several times is one value with commas: so a second traceparent makes it malformed, and
    several of tracestate add up, as the W3C wants both."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        values = carrier.getlist(key)
        return [",".join(values)] if values else None

    def keys(self, carrier: Headers) -> list[str]:
        return carrier.keys()


_HEADERS = _HeadersGetter()
