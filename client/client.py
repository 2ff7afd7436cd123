"""The blocking client."""

import time
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


class Client:
    """A service, as its callers see it. Threads may share one; it keeps connections open until it is closed.

    A call that the service refuses with 429 or 503 is sent again, after `Retry-After` where the service says it, or
    else after a random wait that grows; so is one that never reached it. A call that may have reached it without an
    answer is sent again, too, unless it is an administrator's verb: reading changes nothing, `classify` has the same
    request id at every attempt, and feedback counts once. Nothing else is ever sent again.

    Args:
        url: of the service, e.g. `http://127.0.0.1:8000`.
        api_key: a caller's key, or an administrator's for `load`, `unload`, `pin` and `verify`.
        timeout_s: for a call in all, attempts and waits together. Where the next attempt would begin later, the last
            error is raised at once. Within an attempt, connecting, sending and the first byte of the answer may each
            take what is left.
        retries: attempts after the first.
        http: an httpx client of your own, for proxies, certificates and limits; closing it stays with you.

    Raises:
        InvalidArgument: as every method does, for what cannot be put into a request.
        ProblemError, ConnectionFailed, InvalidAnswer: from every method; see `client/errors.py`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = RetryPolicy.timeout_s,
        retries: int = RetryPolicy.retries,
        http: httpx.Client | None = None,
    ) -> None:
        self._url = calls.service_url(url)
        self._key = calls.key_header(api_key)
        self._policy = RetryPolicy(timeout_s, retries)
        self._owned = http is None
        self._http = httpx.Client() if http is None else http

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._owned:
            self._http.close()

    @overload
    def classify(
        self, text: str, *, adapter: str | None = None, **options: Unpack[ClassifyOptions]
    ) -> Classification: ...
    @overload
    def classify(self, text: str, *, adapter: Several, **options: Unpack[ClassifyOptions]) -> list[Item]: ...
    @overload
    def classify(
        self, text: Several, *, adapter: str | None = None, **options: Unpack[ClassifyOptions]
    ) -> list[Item]: ...
    @overload
    def classify(self, text: Several, *, adapter: Several, **options: Unpack[ClassifyOptions]) -> list[list[Item]]: ...
    def classify(
        self, text: str | Several, *, adapter: str | Several | None = None, **options: Unpack[ClassifyOptions]
    ) -> Classification | list[Item] | list[list[Item]]:
        """What one adapter says of one text; with a list of texts or of adapters, a list in the same order.

        With both, there is a list of the adapters' answers for each text. In a list, an `ItemError` stands where that
        one item could not be answered.

        Args:
            adapter: `movies` (its newest version), `movies@3` or `movies@champion`, or a list of these. Without one the
                experiment chooses by `unit_id`, or else the service has a default.
            options: unit_id, truncate, long_text, logits, timeout_ms, request_id; see `ClassifyOptions`.
        """
        return self._ask(calls.classify(text, adapter=adapter, **options))

    def feedback(self, request_id: str, label: str, *, text: int = 0) -> None:
        """Say what the right label of a classified text is, now or later; the same again counts once.

        Args:
            text: its place in the request, from 0, where that held a list.
        """
        self._ask(calls.feedback(request_id, label, text))

    def adapters(self, **options: Unpack[ListOptions]) -> AdapterList:
        """The adapters, their versions and how they stand; all of them without options.

        Args:
            options: search, state, offset, limit; see `ListOptions`.
        """
        return self._ask(calls.adapters(options))

    def adapter(self, name: str) -> AdapterDetail:
        """One version, whole: how it stands, how it was trained, examples.

        Args:
            name: `movies`, `movies@3` or `movies@champion`.
        """
        return self._ask(calls.adapter(name))

    def set_alias(self, name: str, alias: str, version: int) -> Aliases:
        """Point `name@alias` at a version, from the next request on. Wants an administrator's key."""
        return self._ask(calls.set_alias(name, alias, version))

    def remove_alias(self, name: str, alias: str) -> Aliases:
        """Forget `name@alias`; versions stay. Wants an administrator's key."""
        return self._ask(calls.remove_alias(name, alias))

    def experiments(self) -> ExperimentList:
        """The experiments in force."""
        return self._ask(calls.experiments())

    def experiment(self, name: str) -> ExperimentResult:
        """An experiment's numbers so far, and what they allow to be said."""
        return self._ask(calls.experiment(name))

    def experiment_history(self, name: str) -> History:
        """How an experiment's differences came to be: at most 40 looks back, and now."""
        return self._ask(calls.experiment_history(name))

    def plan_experiment(
        self, name: str, difference: float, *, power: float = 0.8, accuracy: float | None = None
    ) -> Plan:
        """How much feedback a difference takes to be seen.

        Args:
            difference: the smallest that is to be seen, e.g. 0.02.
            power: chance of seeing it.
            accuracy: of the first arm; as seen so far if left out.
        """
        return self._ask(calls.plan_experiment(name, difference, power, accuracy))

    def export_experiment(self, name: str, form: Form = "csv") -> str:
        """Every answer of an experiment with its feedback, oldest first; units are hashed."""
        return self._ask(calls.export_experiment(name, form))

    def stop_experiment(self, name: str, reason: str) -> Standing:
        """Let an experiment take no more requests, for good. Wants an administrator's key."""
        return self._ask(calls.stop_experiment(name, reason))

    def promote_experiment(
        self, name: str, reason: str, *, arm: str | None = None, alias: str | None = None
    ) -> Standing:
        """Give all units one arm, for good, and move an alias to its adapter. Wants an administrator's key.

        Args:
            arm: of two, the second if left out.
            alias: the promotion's own if left out.
        """
        return self._ask(calls.promote_experiment(name, reason, arm, alias))

    def ready(self) -> bool:
        """Whether the service takes work now; what cannot be reached is `ConnectionFailed`."""
        return self._ask(calls.ready())

    def load(self, name: str) -> AdapterState:
        """Bring an adapter into the bank before anybody asks for it. Wants an administrator's key."""
        return self._ask(calls.administer(name, "load"))

    def unload(self, name: str) -> AdapterState:
        """Take an adapter out of the bank; it comes back when it is asked for. Wants an administrator's key."""
        return self._ask(calls.administer(name, "unload"))

    def pin(self, name: str) -> AdapterState:
        """Bring an adapter into the bank and keep it there. Wants an administrator's key."""
        return self._ask(calls.administer(name, "pin"))

    def verify(self, name: str) -> AdapterState:
        """Check an adapter's directory anew. Wants an administrator's key."""
        return self._ask(calls.administer(name, "verify"))

    def _ask(self, call: Call[T]) -> T:
        steps = attempts(call, self._policy)
        step = next(steps)
        while True:
            came: Reply | ConnectionFailed | None = None
            if isinstance(step, Wait):
                time.sleep(step.seconds)
            else:
                try:
                    came = self._send(call, step)
                except ConnectionFailed as error:
                    came = error
            try:
                step = steps.send(came)
            except StopIteration as done:
                answer: T = done.value
                return answer

    def _send(self, call: Call[T], step: Send) -> Reply:
        deadline_s = time.monotonic() + step.timeout_s
        request = calls.build_request(self._http, self._url, call, self._key, timeout_s=step.timeout_s)
        with transport_errors(self._url):
            response = self._http.send(request, stream=True)
            try:
                content = bytearray()
                # httpx bounds each read alone, so an answer that trickles would never be late.
                for chunk in response.iter_bytes():
                    content += chunk
                    if time.monotonic() > deadline_s:
                        raise TimeoutError
            finally:
                response.close()
        return Reply(response.status_code, response.headers, bytes(content))
