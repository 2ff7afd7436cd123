"""Many requests from several connections at once, each remembered with what came of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.service.running import Service


@dataclass(frozen=True)
class Asked:
    """A request: numbers of texts, so that many requests share few of them."""

    adapter: str | None
    texts: tuple[int, ...]


@dataclass(frozen=True)
class Answered:
    """A request and its end: a status with the body, or the error in the place of an answer.

    Attributes:
        started_s, ended_s: by the monotonic clock.
    """

    asked: Asked
    status: int
    body: dict[str, Any]
    error: httpx.TransportError | None
    started_s: float
    ended_s: float

    @property
    def took_s(self) -> float:
        return self.ended_s - self.started_s

    @property
    def items(self) -> list[dict[str, Any]]:
        """The items of a 200, one a text."""
        results: list[dict[str, Any]] = self.body["results"]
        return results


class Load:
    """Requests from so many connections at once; `answered` grows as they end."""

    def __init__(self, service: Service, texts: list[str], connections: int) -> None:
        self._service = service
        self._texts = texts
        self._connections = connections
        self._stopped = False
        self.answered: list[Answered] = []

    def count(self, status: int) -> int:
        return sum(answered.status == status for answered in self.answered)

    @asynccontextmanager
    async def running(self, requests: Iterable[Asked], *, until_refused: bool = False) -> AsyncIterator[None]:
        """Requests go out while the block runs; it ends when all are answered, at the latest when `stop` was called.

        Args:
            until_refused: a connection sends no more after a 503 or a refused connection, as a load balancer would.
        """
        shared = iter(requests)
        limits = httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections)
        headers = dict(self._service.client.headers)
        async with (
            httpx.AsyncClient(base_url=self._service.url, timeout=60, limits=limits, headers=headers) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self._connections):
                group.create_task(self._send(client, shared, until_refused))
            yield

    def stop(self) -> None:
        self._stopped = True

    async def at(self, requests: int, timeout_s: float = 120) -> None:
        """Wait until so many are answered."""
        deadline_s = time.monotonic() + timeout_s
        while len(self.answered) < requests:
            assert time.monotonic() < deadline_s, f"{len(self.answered)} of {requests} answered in {timeout_s} s"
            await asyncio.sleep(0.01)

    async def _send(self, client: httpx.AsyncClient, requests: Iterator[Asked], until_refused: bool) -> None:
        for asked in requests:
            answered = await self._ask(client, asked)
            self.answered.append(answered)
            refused = answered.status == 503 or answered.error is not None
            if self._stopped or (until_refused and refused):
                return

    async def _ask(self, client: httpx.AsyncClient, asked: Asked) -> Answered:
        body = {"text": [self._texts[at] for at in asked.texts], "logits": True}
        headers = {} if asked.adapter is None else {"X-Adapter": asked.adapter}
        started_s = time.monotonic()
        try:
            response = await client.post("/classify", json=body, headers=headers)
        except httpx.TransportError as error:
            return Answered(asked, 0, {}, error, started_s, time.monotonic())
        return Answered(asked, response.status_code, response.json(), None, started_s, time.monotonic())
