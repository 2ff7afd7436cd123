"""When a call is sent, sent again and given up: pure, and the same for both clients.

A generator says what to do next and is sent what came of it, as httpx does it for its own two clients (`auth_flow` in
httpx/_auth.py); so the decisions stand here once, and each client has only the doing.
"""

import logging
import random
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from client.calls import Call, Reply
from client.errors import ConnectionFailed, InvalidArgument, Overloaded, ProblemError, Unavailable, problem_error

T = TypeVar("T")

log = logging.getLogger("tonearm.client")


@dataclass(frozen=True, slots=True)
class Send:
    """Send the call, and take no longer than this."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class RetryPolicy:
    """How often, how soon and how long.

    Attributes:
        timeout_s: for a call in all, its waits included.
        retries: attempts after the first.
        first_wait_s, longest_wait_s: the wait is random from 0 to a bound that doubles from the one up to the other
            (full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """

    timeout_s: float = 30
    retries: int = 3
    first_wait_s: float = 0.25
    longest_wait_s: float = 8

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf"):
            raise InvalidArgument(f"timeout_s is {self.timeout_s!r}, expected seconds above 0")
        if self.retries < 0:
            raise InvalidArgument(f"retries is {self.retries!r}, expected 0 or more")

    def wait_s(self, error: ProblemError | ConnectionFailed, failed: int, *, repeatable: bool) -> float | None:
        """Seconds until the next attempt; None: there is none.

        Args:
            failed: attempts before this one.
            repeatable: the call may be sent again although it may have been carried out.
        """
        if failed >= self.retries:
            return None
        if isinstance(error, ConnectionFailed):
            again = repeatable or not error.sent
        else:
            again = isinstance(error, Overloaded | Unavailable)
            if again and error.retry_after_s is not None:
                return error.retry_after_s
        # The exponent is bounded because 2.0 ** 1024 overflows.
        bound_s = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(failed, 30))
        return random.uniform(0, bound_s) if again else None


def attempts(call: Call[T], policy: RetryPolicy) -> Generator[Send | Wait, Reply | ConnectionFailed | None, T]:
    """The steps of one call. Send it the reply or the failure after a `Send`, None after a `Wait`.

    Returns:
        The answer.

    Raises:
        ProblemError, ConnectionFailed: that of the last attempt; at once where the deadline would pass before the next.
        InvalidAnswer: success, but not in a form that Tonearm answers in.
    """
    deadline_s = time.monotonic() + policy.timeout_s
    left_s, failed = policy.timeout_s, 0
    while True:
        came = yield Send(left_s)
        assert came is not None
        if isinstance(came, Reply) and call.is_answered_by(came):
            return call.parse(came)
        error = came if isinstance(came, ConnectionFailed) else problem_error(came.status, came.headers, came.content)
        wait_s = policy.wait_s(error, failed, repeatable=call.repeatable)
        if wait_s is None or time.monotonic() + wait_s >= deadline_s:
            raise error
        failed += 1
        log.info("%s %s again in %.2f s (%d of %d): %s", call.method, call.path, wait_s, failed, policy.retries, error)
        yield Wait(wait_s)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:  # slept too long
            raise error
