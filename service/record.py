"""What is kept of every request: its id, one line in the log, one count in the metrics.

Handlers note the facts they alone know (adapter, arm); counting and logging happen here, once for all of them.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import TonearmError
from service import metrics
from service.messages import Timings
from service.problems import problem_response

_NOSNIFF = (b"x-content-type-options", b"nosniff")
_OURS = frozenset({b"x-request-id", b"x-content-type-options"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
QUIET = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked every few seconds by machines: logged at debug level alone, never traced."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Facts:
    """What a handler learns about its request."""

    adapter: str = ""
    experiment: str = ""
    arm: str = ""
    rows: int = 0
    texts: list[str] | None = None
    """Set only where texts may be logged."""
    stages: list[tuple[str, float]] = field(default_factory=list)
    """Each with when it began, in seconds on the monotonic clock; traces are made of them (`tracing.py`)."""
    timings: Timings | None = None

    def enter(self, stage: str) -> None:
        self.stages.append((stage, time.monotonic()))


def facts_of(request: Request) -> Facts:
    facts: Facts = request.scope["state"]["facts"]
    return facts


def headers_of_scope(scope: Scope) -> dict[bytes, bytes]:
    """By name in lower case, as raw bytes."""
    headers: dict[bytes, bytes] = scope["state"]["headers"]
    return headers


def request_id_of(request: Request) -> str:
    request_id: str = request.scope["state"]["request_id"]
    return request_id


class RecordRequests:
    """Outermost of our layers but for traces: whatever happens inside, a request gets id, answer, line and count."""

    def __init__(self, app: ASGIApp, *, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        # Of headers that come twice the first counts, as with FastAPI.
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        request_id = _request_id(headers.get(b"x-request-id", b""))
        facts = Facts()
        scope.setdefault("state", {}).update(request_id=request_id, facts=facts, headers=headers)
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                total = f"total;dur={(time.perf_counter() - started_s) * 1e3:.2f}".encode()
                kept, timing = [], b""
                for name, value in message.get("headers", ()):
                    lower = name.lower()
                    if lower == b"server-timing":
                        timing = value + b", "
                    elif lower not in _OURS:
                        kept.append((name, value))
                kept += ((b"x-request-id", request_id.encode()), _NOSNIFF, (b"server-timing", timing + total))
                if self._draining():
                    # Clients with idle connections must not send on one that is about to be closed.
                    kept = [pair for pair in kept if pair[0].lower() != b"connection"]
                    kept.append((b"connection", b"close"))
                message = {**message, "headers": kept}
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except Exception:
            log.exception("request_broke", request_id=request_id, path=scope["path"])
            if status:
                raise
            response = problem_response(TonearmError("unexpected"), request_id)
            await response(scope, receive, send_marked)
        finally:
            self._note(scope, request_id, facts, status, time.perf_counter() - started_s)

    @staticmethod
    def _note(scope: Scope, request_id: str, facts: Facts, status: int, took_s: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        adapter = metrics.adapter_label(facts.adapter) if facts.adapter else ""
        metrics.requests.labels(route, str(status), adapter, facts.experiment, facts.arm).inc()
        metrics.request_seconds.labels(route).observe(took_s)
        line: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "path": scope["path"]}
        line |= {"status": status, "took_ms": round(took_s * 1e3, 2)}
        if facts.adapter:
            line |= {"adapter": facts.adapter, "rows": facts.rows}
        if facts.experiment:
            line |= {"experiment": facts.experiment, "arm": facts.arm}
        if facts.texts is not None:
            line["texts"] = facts.texts
        (log.debug if route in QUIET else log.info)("request", **line)


def _request_id(header: bytes) -> str:
    given = header.decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
