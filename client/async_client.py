"""The asynchronous client: `Client` with `await`, on asyncio."""

import asyncio
from types import TracebackType
from typing import Self, TypeVar, Unpack, overload

import httpx

from client import calls
from client.answers import (
    AdapterDetail,
    AdapterList,
    AdapterState,
    Aliases,
    Classification,
    ExperimentList,
    ExperimentResult,
    History,
    Item,
    Plan,
    Standing,
)
from client.attempts import RetryPolicy, Send, Wait, attempts
from client.calls import Call, ClassifyOptions, Form, ListOptions, Reply, Several
from client.errors import ConnectionFailed, transport_errors

T = TypeVar("T")


class AsyncClient:
    """A service, as its callers see it: arguments, methods, retries and errors are those of `Client`.

    For one event loop; its tasks may share it. Here `timeout_s` bounds a call exactly.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = RetryPolicy.timeout_s,
        retries: int = RetryPolicy.retries,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._url = calls.service_url(url)
        self._key = calls.key_header(api_key)
        self._policy = RetryPolicy(timeout_s, retries)
        self._owned = http is None
        self._http = httpx.AsyncClient() if http is None else http

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._owned:
            await self._http.aclose()

    @overload
    async def classify(
        self, text: str, *, adapter: str | None = None, **options: Unpack[ClassifyOptions]
    ) -> Classification: ...
    @overload
    async def classify(self, text: str, *, adapter: Several, **options: Unpack[ClassifyOptions]) -> list[Item]: ...
    @overload
    async def classify(
        self, text: Several, *, adapter: str | None = None, **options: Unpack[ClassifyOptions]
    ) -> list[Item]: ...
    @overload
    async def classify(
        self, text: Several, *, adapter: Several, **options: Unpack[ClassifyOptions]
    ) -> list[list[Item]]: ...
    async def classify(
        self, text: str | Several, *, adapter: str | Several | None = None, **options: Unpack[ClassifyOptions]
    ) -> Classification | list[Item] | list[list[Item]]:
        """`Client.classify`."""
        return await self._ask(calls.classify(text, adapter=adapter, **options))

    async def feedback(self, request_id: str, label: str, *, text: int = 0) -> None:
        """`Client.feedback`."""
        await self._ask(calls.feedback(request_id, label, text))

    async def adapters(self, **options: Unpack[ListOptions]) -> AdapterList:
        """`Client.adapters`."""
        return await self._ask(calls.adapters(options))

    async def adapter(self, name: str) -> AdapterDetail:
        """`Client.adapter`."""
        return await self._ask(calls.adapter(name))

    async def set_alias(self, name: str, alias: str, version: int) -> Aliases:
        """`Client.set_alias`."""
        return await self._ask(calls.set_alias(name, alias, version))

    async def remove_alias(self, name: str, alias: str) -> Aliases:
        """`Client.remove_alias`."""
        return await self._ask(calls.remove_alias(name, alias))

    async def experiments(self) -> ExperimentList:
        """`Client.experiments`."""
        return await self._ask(calls.experiments())

    async def experiment(self, name: str) -> ExperimentResult:
        """`Client.experiment`."""
        return await self._ask(calls.experiment(name))

    async def experiment_history(self, name: str) -> History:
        """`Client.experiment_history`."""
        return await self._ask(calls.experiment_history(name))

    async def plan_experiment(
        self, name: str, difference: float, *, power: float = 0.8, accuracy: float | None = None
    ) -> Plan:
        """`Client.plan_experiment`."""
        return await self._ask(calls.plan_experiment(name, difference, power, accuracy))

    async def export_experiment(self, name: str, form: Form = "csv") -> str:
        """`Client.export_experiment`."""
        return await self._ask(calls.export_experiment(name, form))

    async def stop_experiment(self, name: str, reason: str) -> Standing:
        """`Client.stop_experiment`."""
        return await self._ask(calls.stop_experiment(name, reason))

    async def promote_experiment(
        self, name: str, reason: str, *, arm: str | None = None, alias: str | None = None
    ) -> Standing:
        """`Client.promote_experiment`."""
        return await self._ask(calls.promote_experiment(name, reason, arm, alias))

    async def ready(self) -> bool:
        """`Client.ready`."""
        return await self._ask(calls.ready())

    async def load(self, name: str) -> AdapterState:
        """`Client.load`."""
        return await self._ask(calls.administer(name, "load"))

    async def unload(self, name: str) -> AdapterState:
        """`Client.unload`."""
        return await self._ask(calls.administer(name, "unload"))

    async def pin(self, name: str) -> AdapterState:
        """`Client.pin`."""
        return await self._ask(calls.administer(name, "pin"))

    async def verify(self, name: str) -> AdapterState:
        """`Client.verify`."""
        return await self._ask(calls.administer(name, "verify"))

    async def _ask(self, call: Call[T]) -> T:
        steps = attempts(call, self._policy)
        step = next(steps)
        while True:
            came: Reply | ConnectionFailed | None = None
            if isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            else:
                try:
                    came = await self._send(call, step)
                except ConnectionFailed as error:
                    came = error
            try:
                step = steps.send(came)
            except StopIteration as done:
                answer: T = done.value
                return answer

    async def _send(self, call: Call[T], step: Send) -> Reply:
        # The block below bounds it as a whole.
        request = calls.build_request(self._http, self._url, call, self._key, timeout_s=None)
        with transport_errors(self._url):
            async with asyncio.timeout(step.timeout_s):
                response = await self._http.send(request)
        return Reply(response.status_code, response.headers, response.content)
