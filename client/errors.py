"""Every error that the client raises, as one tree.

    TonearmClientError
    ├── InvalidArgument          an argument cannot be put into a request; a ValueError, too
    ├── ConnectionFailed         no answer came
    ├── InvalidAnswer            what came is not what Tonearm answers
    └── ProblemError             the service said no, as RFC 9457 problem details
        ├── InvalidRequest       400, 422
        ├── Unauthorized         401, 403
        ├── NotFound             404
        │   └── UnknownAdapter   `nearest` has names like it
        ├── Conflict             409
        │   └── AdapterRefused   registered, but must not be served
        ├── TooLarge             413
        ├── Overloaded           429
        ├── Unavailable          503
        └── DeadlineExceeded     504

Each is rebuilt by pickle from its positional arguments.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError

from client.answers import Problem

_TYPE_PREFIX = "urn:tonearm:problem:"


class TonearmClientError(Exception):
    """Root of the tree; `str()` of any of them is a sentence that can be shown to a user."""


class InvalidArgument(TonearmClientError, ValueError):
    """An argument cannot be put into a request."""


class ConnectionFailed(TonearmClientError):
    """No answer came.

    Args:
        url: of the service.
        reason: what the transport said.
        sent: False where surely nothing reached the service.
    """

    def __init__(self, url: str, reason: str, sent: bool) -> None:
        super().__init__(url, reason, sent)
        self.url, self.reason, self.sent = url, reason, sent

    def __str__(self) -> str:
        return f"no answer from {self.url}: {self.reason}"


class InvalidAnswer(TonearmClientError):
    """Success, but not in a form that Tonearm answers in; mostly another service listens there."""


class ProblemError(TonearmClientError):
    """The service said no.

    Args:
        problem: what it said. Where it said nothing, the title is the status's own phrase.
        retry_after_s: after which it suggested another try.
    """

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        super().__init__(problem, retry_after_s)
        self.problem, self.retry_after_s = problem, retry_after_s

    @property
    def type(self) -> str:
        return self.problem.type

    @property
    def title(self) -> str:
        return self.problem.title

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def detail(self) -> str:
        return self.problem.detail

    @property
    def request_id(self) -> str | None:
        return self.problem.request_id

    @property
    def nearest(self) -> tuple[str, ...]:
        """Names like the one asked for, best first."""
        return self.problem.nearest or ()

    def __str__(self) -> str:
        return f"{self.title} ({self.status}): {self.detail}"


class InvalidRequest(ProblemError):
    """A malformed header (400) or a bad body (422)."""


class Unauthorized(ProblemError):
    """No key or an unknown one (401), or one that does not allow this (403)."""


class NotFound(ProblemError):
    """Nothing of that name there."""


class UnknownAdapter(NotFound):
    """An adapter that the registry does not hold."""


class Conflict(ProblemError):
    """How things stand there does not allow it."""


class AdapterRefused(Conflict):
    """The adapter is registered but must not be served; `detail` says which check it failed."""


class TooLarge(ProblemError):
    """The text is too long, there are too many, or the body is too large."""


class Overloaded(ProblemError):
    """The service's queue is full."""


class Unavailable(ProblemError):
    """The service is starting or draining, or the worker that held the request died."""


class DeadlineExceeded(ProblemError):
    """The service had no answer in the time that the request gave it."""


_BY_STATUS: Mapping[int, type[ProblemError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidRequest,
    429: Overloaded,
    503: Unavailable,
    504: DeadlineExceeded,
}
_BY_TYPE: Mapping[str, type[ProblemError]] = {
    _TYPE_PREFIX + "unknown-adapter": UnknownAdapter,
    _TYPE_PREFIX + "adapter-refused": AdapterRefused,
}

_NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


def problem_error(status: int, headers: Mapping[str, str], content: bytes) -> ProblemError:
    """The error of an answer that is no success.

    Args:
        headers: looked up in lower case.
    """
    try:
        problem = Problem.model_validate_json(content)
    except ValidationError:
        # A proxy's page, or another service.
        title = httpx.codes.get_reason_phrase(status) or "Unknown status"
        detail = "the answer has no problem details, so it may come from a proxy or another service"
        problem = Problem(title=title, status=status, detail=detail, request_id=headers.get("x-request-id"))
    kind = _BY_TYPE.get(problem.type) or _BY_STATUS.get(status, ProblemError)
    return kind(problem, _retry_after_s(headers.get("retry-after", "")))


def _retry_after_s(header: str) -> float | None:
    """Seconds or an HTTP date, as RFC 9110 has it; what is neither is not heeded."""
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    left_s = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    # Dates are whole seconds: a little late is right, a little early is refused again.
    return float(max(0, math.ceil(left_s)))


@contextmanager
def transport_errors(url: str) -> Iterator[None]:
    """Turn what goes wrong on the way into errors of this tree.

    Raises:
        ConnectionFailed: for errors of the transport, and for TimeoutError.
        InvalidArgument: the request cannot be written in HTTP.
        InvalidAnswer: the answer's body does not decompress.
    """
    try:
        yield
    except (httpx.LocalProtocolError, httpx.UnsupportedProtocol) as error:
        raise InvalidArgument(f"the request to {url} cannot be sent: {error}") from error
    except httpx.DecodingError as error:
        raise InvalidAnswer(f"the answer from {url} does not decompress: {error}") from error
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise ConnectionFailed(url, reason, not isinstance(error, _NOTHING_SENT)) from error
    except TimeoutError as error:
        raise ConnectionFailed(url, "timed out", True) from error
