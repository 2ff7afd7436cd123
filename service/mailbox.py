"""The API process's end of the way to the worker.

What is asked in one event-loop tick leaves as one message, and one message comes back a batch: on LitServe's queues
a message costs about a millisecond of CPU in all, whatever is in it.
"""

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from litserve.utils import LitAPIStatus

from adapters.errors import CallerGone, DeadlineExceeded, TonearmError, WorkerLost
from adapters.reference import AdapterId
from engine.rows import Row
from service.admission import Admission
from service.messages import Job, Reply, Withdrawal

REPLIES_UID = "replies"
"""The one entry in LitServe's response buffer; LitServe itself would make one a request."""

_LISTEN_AFTER_S = 0.05
_MAX_RETRY_AFTER_S = 30
_UNMEASURED_RETRY_AFTER_S = 2

log = structlog.get_logger(__name__)


class Mailbox:
    """Sends jobs, hands each reply to the coroutine that waits for it, and bounds what waits.

    Belongs to one event loop; nothing here is called from another thread.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._ids = itertools.count()
        self._outbox: list[Job | Withdrawal] = []
        self._pending: dict[int, tuple[asyncio.Future[Reply], int]] = {}
        """By job: who waits, and for how many tokens."""
        self._put: Callable[[tuple[Job | Withdrawal, ...]], None] | None = None

    @property
    def queued_rows(self) -> int:
        """Rows not answered yet."""
        return self._admission.rows

    @property
    def queued_tokens(self) -> int:
        """What they are estimated to cost."""
        return self._admission.tokens

    def connect(self, put: Callable[[tuple[Job | Withdrawal, ...]], None]) -> None:
        """Say how a message of jobs is sent; before that nothing can be asked."""
        self._put = put

    async def ask(
        self,
        rows: Sequence[Row],
        *,
        timeout_s: float,
        hung_up: Callable[[], Awaitable[None]] | None = None,
        shadow: AdapterId | None = None,
    ) -> Reply:
        """Queue rows as one job and wait for its reply.

        Args:
            shadow: reads along where there is room, and holds no place in the queue.
            hung_up: returns when the client has closed its connection.

        Raises:
            TooManyTokens: more text than may ever wait.
            Overloaded: too much waits already.
            DeadlineExceeded: no reply within `timeout_s`.
            CallerGone: the client hung up; what had not been computed yet will not be.
            WorkerLost: the worker that held the job died.
        """
        place = self._admission.enter(rows, self._retry_after_s())
        loop = asyncio.get_running_loop()
        job = Job(next(self._ids), time.monotonic() + timeout_s, tuple(rows), shadow)
        future: asyncio.Future[Reply] = loop.create_future()
        self._pending[job.id] = future, place.tokens
        self._admission.pace.work(time.monotonic())
        self._send(job)
        # Timers, not tasks: most answers come before either is due.
        expiry = loop.call_later(timeout_s, _fail, future, timeout_s)
        listener = None if hung_up is None else _Listener(hung_up, future)
        try:
            return await future
        except CallerGone:
            self._withdraw(job)
            raise
        finally:
            expiry.cancel()
            if listener is not None:
                listener.cancel()
            del self._pending[job.id]
            self._admission.leave(place)

    def deliver(self, replies: Sequence[Reply]) -> None:
        """Hand out what one message brought. Never raises: LitServe's receiver ends for good if it does."""
        answered = 0
        for reply in replies:
            # Not there: its deadline passed, or its worker was taken for dead, and nobody waits any more.
            future, tokens = self._pending.get(reply.job_id, (None, 0))
            answered += tokens
            if future is not None and not future.done():
                future.set_result(reply)
        waits = any(not future.done() for future, _ in self._pending.values())
        self._admission.pace.answer(answered, time.monotonic(), idle=not waits)

    def fail_all(self, error: Callable[[], TonearmError]) -> int:
        """Fail everything that waits, and return how many jobs that were."""
        waiting = [future for future, _ in self._pending.values() if not future.done()]
        for future in waiting:
            future.set_exception(error())
        return len(waiting)

    def _send(self, what: Job | Withdrawal) -> None:
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(what)

    def _withdraw(self, job: Job) -> None:
        """With several workers it may reach another than the job did, which then computes in vain."""
        if job in self._outbox:
            self._outbox.remove(job)
        else:
            self._send(Withdrawal(job.id))

    def _flush(self) -> None:
        jobs, self._outbox = tuple(self._outbox), []
        if not jobs:
            return
        try:
            if self._put is None:
                raise ConnectionError("not connected yet")
            self._put(jobs)
        except (OSError, EOFError) as error:
            # The process that holds LitServe's queues is gone; main is about to notice.
            log.error("queue_lost", error=repr(error))
            for job in jobs:
                future, _ = self._pending.get(job.id, (None, 0)) if isinstance(job, Job) else (None, 0)
                if future is not None and not future.done():
                    future.set_exception(WorkerLost("the queue to the inference worker is gone; try again"))

    def _retry_after_s(self) -> int:
        """Time to answer what is queued, at the pace of the last seconds."""
        pace = self._admission.pace.tokens_per_s
        if pace is None:
            return _UNMEASURED_RETRY_AFTER_S
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(self.queued_tokens / pace)))


def _fail(future: asyncio.Future[Reply], timeout_s: float) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded(timeout_s))


class _Listener:
    """Fails a future when its client hangs up; begins to listen after a while, for that takes a task."""

    def __init__(self, hung_up: Callable[[], Awaitable[None]], future: asyncio.Future[Reply]) -> None:
        self._hung_up, self._future = hung_up, future
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_LISTEN_AFTER_S, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        await self._hung_up()
        if not self._future.done():
            self._future.set_exception(CallerGone("the client closed its connection"))

    def cancel(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


class ReplySlot:
    """Stands in LitServe's response buffer under `REPLIES_UID`, shaped like its `ResponseBufferItem`.

    LitServe's receiver sets `response` to [payload, status] for every message with that uid, on the event loop.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self.event = asyncio.Event()
        self.response_queue: deque[Any] | None = None
        self.worker_id: int | None = None

    @property
    def response(self) -> None:
        return None

    @response.setter
    def response(self, received: list[Any]) -> None:
        payload, status = received
        if status == LitAPIStatus.OK:
            self._mailbox.deliver(payload)
        else:
            log.error("unexpected_reply", status=status)
