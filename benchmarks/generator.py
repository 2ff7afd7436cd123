"""The load generator: a process of its own that sends requests and notes when each left and was answered.

In an open loop, requests leave at the times of a Poisson process whatever has been answered, and latency counts from
the time a request was due: a service that stalls delays what came meanwhile, and that must show
(https://www.scylladb.com/2021/04/22/on-coordinated-omission/). How late the generator itself was stands beside it.

Below HTTP's parser this is an `asyncio.Protocol`: 5 to 20 us of CPU a request, where aiohttp takes 330 to 440 and
httpx 7,500; on two cores the client's CPU time would come out of the service's.
"""

import asyncio
import functools
import itertools
import multiprocessing
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self, cast

import httptools
import uvloop

_SPIN_S = 0.002
"""The event loop's timers are a millisecond coarse; where little is sent, the last stretch is waited for awake."""

_MOST_SPUN_PER_S = 20
_SENT_AT_ONCE = 16
_LOST = 0


class Answer(NamedTuple):
    """One request's fate; times in seconds on the monotonic clock.

    Attributes:
        request: its place in the list that was given.
        due_s: when it should have left; in a closed loop, when it left.
        status: 0 where no answer came.
    """

    request: int
    due_s: float
    sent_s: float
    done_s: float
    status: int
    server_timing: str
    body: bytes

    @property
    def latency_s(self) -> float:
        return self.done_s - self.due_s


@dataclass(frozen=True, slots=True)
class Sent:
    """What a run of the generator saw.

    Attributes:
        cpu_share: of one core, taken by the generator.
    """

    started_s: float
    ended_s: float
    answers: list[Answer]
    cpu_share: float

    def rate_per_s(self) -> float:
        """Answers with 200 between the run's start and its end, a second."""
        counted = sum(answer.status == 200 and answer.done_s <= self.ended_s for answer in self.answers)
        return counted / (self.ended_s - self.started_s)

    def between(self, from_s: float, until_s: float) -> "Sent":
        """What was due in this stretch, in seconds from the start."""
        from_s, until_s = self.started_s + from_s, self.started_s + until_s
        due = [answer for answer in self.answers if from_s <= answer.due_s < until_s]
        return Sent(from_s, until_s, due, self.cpu_share)

    def lateness_s(self) -> list[float]:
        return sorted(answer.sent_s - answer.due_s for answer in self.answers)


class Generator:
    """Handle on the generator's process; a context manager."""

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._process.shutdown(cancel_futures=True)

    def closed_loop(self, port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Sent:
        """Every connection sends its next request when its last was answered; the most that can be had."""
        send = functools.partial(_closed_loop, connections=connections, seconds=seconds)
        return self._process.submit(_run, port, list(requests), send, 60.0).result()

    def open_loop(
        self, port: int, requests: Sequence[bytes], phases: Sequence[tuple[float, float]], *, grace_s: float = 60.0
    ) -> Sent:
        """Requests leave at the times of a Poisson process, in the order given, over and over.

        Args:
            phases: rates a second, and for how many seconds each, one after another without a pause.
            grace_s: how long to wait for answers after the last request; what has none then is lost.
        """
        send = functools.partial(_open_loop, phases=tuple(phases))
        return self._process.submit(_run, port, list(requests), send, grace_s).result()


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join([*lines, f"content-length: {len(body)}"]) + "\r\n\r\n").encode() + body


class _Connection(asyncio.Protocol):
    """One connection with one request on its way at most."""

    def __init__(self, traffic: "_Traffic") -> None:
        self._traffic = traffic
        self._open = False
        self.request: tuple[int, float, float] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._open = True

    def send(self, request: int, due_s: float, sent_s: float) -> None:
        self.request = (request, due_s, sent_s)
        self._parser = httptools.HttpResponseParser(self)
        self._server_timing = ""
        self._body: list[bytes] = []
        self._transport.write(self._traffic.requests[request])

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._server_timing = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._finish(self._parser.get_status_code(), reusable=self._parser.should_keep_alive())

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        if self.request is not None:
            self._finish(_LOST, reusable=False)
        else:
            self._traffic.forget(self)

    def _finish(self, status: int, *, reusable: bool) -> None:
        assert self.request is not None
        request, self.request = self.request, None
        if not reusable and self._open:
            self._transport.close()
        answer = Answer(*request, time.monotonic(), status, self._server_timing, b"".join(self._body))
        self._traffic.finish(answer, self, reusable=reusable and self._open)

    def close(self) -> None:
        self.request = None
        self._transport.close()


class _Traffic:
    """All connections to one server, and what came back."""

    def __init__(self, port: int, requests: list[bytes]) -> None:
        self.requests = requests
        self.answers: list[Answer] = []
        self.on_answer: Callable[[], None] = lambda: None
        self._port = port
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self.on_their_way = 0

    def send(self, request: int, due_s: float) -> None:
        """Send on an idle connection, or on a new one; its opening counts as latency, not as lateness."""
        self.on_their_way += 1
        sent_s = time.monotonic()
        if self._idle:
            self._send_on(self._idle.pop(), request, due_s, sent_s)
            return
        task = asyncio.get_running_loop().create_task(self._open(request, due_s, sent_s))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, request: int, due_s: float, sent_s: float) -> None:
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        except OSError:
            self.finish(Answer(request, due_s, sent_s, time.monotonic(), _LOST, "", b""), None, reusable=False)
            return
        self._send_on(connection, request, due_s, sent_s)

    def _send_on(self, connection: _Connection, request: int, due_s: float, sent_s: float) -> None:
        self._busy.add(connection)
        connection.send(request, due_s, sent_s)

    def finish(self, answer: Answer, connection: _Connection | None, *, reusable: bool) -> None:
        self.answers.append(answer)
        self.on_their_way -= 1
        if connection is not None:
            self._busy.discard(connection)
            if reusable:
                self._idle.append(connection)
        self.on_answer()

    def forget(self, connection: _Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def give_up(self) -> list[Answer]:
        """Close everything; what is still on its way, as lost."""
        waiting = [connection.request for connection in self._busy if connection.request is not None]
        self.on_answer = lambda: None
        for connection in (*self._idle, *self._busy):
            connection.close()
        return [Answer(*request, float("inf"), _LOST, "", b"") for request in waiting]


def _run(
    port: int, requests: list[bytes], send: Callable[[_Traffic], Awaitable[tuple[float, float]]], grace_s: float
) -> Sent:
    async def run() -> Sent:
        traffic = _Traffic(port, requests)
        cpu_s, wall_s = time.process_time(), time.monotonic()
        started_s, ended_s = await send(traffic)
        share = (time.process_time() - cpu_s) / (time.monotonic() - wall_s)
        until_s = time.monotonic() + grace_s
        while traffic.on_their_way and time.monotonic() < until_s:
            await asyncio.sleep(0.02)
        lost = traffic.give_up()
        return Sent(started_s, ended_s, traffic.answers + lost, share)

    return uvloop.run(run())


async def _closed_loop(traffic: _Traffic, *, connections: int, seconds: float) -> tuple[float, float]:
    turn = itertools.cycle(range(len(traffic.requests)))
    started_s = time.monotonic()
    ends_s = started_s + seconds

    def send() -> None:
        now_s = time.monotonic()
        if now_s < ends_s:
            traffic.send(next(turn), now_s)

    traffic.on_answer = send
    for _ in range(connections):
        send()
    await asyncio.sleep(seconds)
    return started_s, ends_s


async def _open_loop(traffic: _Traffic, *, phases: tuple[tuple[float, float], ...]) -> tuple[float, float]:
    chosen = random.Random(11)
    turn = itertools.cycle(range(len(traffic.requests)))
    started_s = ends_s = time.monotonic()
    for rate_per_s, seconds in phases:
        spin_s = _SPIN_S if rate_per_s <= _MOST_SPUN_PER_S else 0.0
        due_s = ends_s + chosen.expovariate(rate_per_s)
        ends_s += seconds
        at_once = 0
        while due_s < ends_s:
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s - spin_s if wait_s > spin_s else 0)
                at_once = 0
                continue
            traffic.send(next(turn), due_s)
            due_s += chosen.expovariate(rate_per_s)
            at_once += 1
            if at_once >= _SENT_AT_ONCE:
                # A generator that has fallen behind must still read answers, or it would measure itself.
                await asyncio.sleep(0)
                at_once = 0
    await asyncio.sleep(max(0.0, ends_s - time.monotonic()))
    return started_s, ends_s
