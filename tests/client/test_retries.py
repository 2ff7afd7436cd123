"""What is sent again, when, and for how long: against a real server, with both clients."""

import itertools
import socket
import threading
import time
from email.utils import formatdate

import httpx
import pytest

from client import (
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ProblemError,
    Unavailable,
)
from client.attempts import RetryPolicy, Send, Wait, attempts
from client.calls import Call, Reply, classify
from tests.client.conftest import Ask
from tests.client.scripted import Came, HangUp, Say, ScriptedServer, problem


def gaps_s(came: list[Came]) -> list[float]:
    return [after.at_s - before.at_s for before, after in itertools.pairwise(came)]


def test_retry_after_is_kept(ask: Ask, server: ScriptedServer) -> None:
    server.say(Say(429, problem(429), {"Retry-After": "1"}))
    due = int(time.time()) + 3  # an HTTP date has whole seconds
    due_s = time.monotonic() + due - time.time()
    server.say(Say(503, problem(503), {"Retry-After": formatdate(due, usegmt=True)}))
    answer = ask(server.url, "classify", "meh", settings={})
    assert answer.label == "positive"
    assert 1 <= gaps_s(server.came)[0] < 5
    assert due_s - 0.1 <= server.came[2].at_s < due_s + 5


def test_without_retry_after_waits_are_random_and_short(ask: Ask, server: ScriptedServer) -> None:
    server.say(*[Say(503, problem(503))] * 3)
    assert ask(server.url, "classify", "meh", settings={}).label == "positive"
    assert [gap < bound + 3 for gap, bound in zip(gaps_s(server.came), (0.25, 0.5, 1), strict=True)] == [True] * 3


def test_the_last_error_is_raised_when_the_retries_are_used_up(ask: Ask, server: ScriptedServer) -> None:
    server.say(*[Say(429, problem(429), {"Retry-After": "0"})] * 5)
    with pytest.raises(Overloaded, match=r"Not now \(429\): for a reason") as caught:
        ask(server.url, "classify", "meh", settings={"retries": 2})
    assert (caught.value.retry_after_s, caught.value.request_id, len(server.came)) == (0, "r-2", 3)


def test_every_attempt_has_the_same_request_id(ask: Ask, server: ScriptedServer) -> None:
    server.say(Say(503, problem(503), {"Retry-After": "0"}), HangUp())
    ask(server.url, "classify", "meh", settings={})
    made = {came.headers["x-request-id"] for came in server.came}
    assert len(server.came) == 3 and len(made) == 1
    server.came.clear()
    server.say(HangUp())
    ask(server.url, "classify", "meh", settings={}, request_id="mine-1")
    assert [came.headers["x-request-id"] for came in server.came] == ["mine-1"] * 2


@pytest.mark.parametrize(
    ("status", "kind"), [(400, InvalidRequest), (422, InvalidRequest), (500, ProblemError), (504, DeadlineExceeded)]
)
def test_nothing_else_is_sent_again(ask: Ask, server: ScriptedServer, status: int, kind: type[ProblemError]) -> None:
    server.say(Say(status, problem(status), {"Retry-After": "0"}))
    with pytest.raises(kind):
        ask(server.url, "classify", "meh", settings={})
    assert len(server.came) == 1


def test_a_wait_past_the_deadline_is_not_begun(ask: Ask, server: ScriptedServer) -> None:
    server.say(Say(503, problem(503), {"Retry-After": "30"}))
    asked_s = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        ask(server.url, "classify", "meh", settings={"timeout_s": 20})
    assert time.monotonic() - asked_s < 10
    assert (caught.value.retry_after_s, len(server.came)) == (30, 1)


def test_what_may_have_been_carried_out_is_sent_again_only_if_that_is_harmless(
    ask: Ask, server: ScriptedServer
) -> None:
    for method, arguments in (("classify", ("meh",)), ("feedback", ("r-1", "positive"))):
        server.came.clear()
        server.say(HangUp())
        ask(server.url, method, *arguments, settings={})
        assert len(server.came) == 2
    for verb in ("load", "unload", "pin", "verify"):
        server.came.clear()
        server.say(HangUp())
        with pytest.raises(ConnectionFailed) as caught:
            ask(server.url, verb, "movies", settings={})
        assert caught.value.sent and len(server.came) == 1


def test_an_administrators_verb_that_was_refused_is_sent_again(ask: Ask, server: ScriptedServer) -> None:
    server.say(Say(503, problem(503), {"Retry-After": "0"}))
    server.say(Say(200, {"adapter": "movies@1", "state": "resident", "reason": None, "pinned": True}))
    assert ask(server.url, "pin", "movies", settings={}).pinned
    assert len(server.came) == 2


@pytest.mark.parametrize("method", ["classify", "pin"])
def test_a_service_that_comes_up_is_reached(ask: Ask, server: ScriptedServer, method: str) -> None:
    """Nothing was sent before it listened, so an administrator's verb is as safe to try again as anything else."""
    port = server.port
    server.close()
    late = ScriptedServer(port, start=False)
    if method == "pin":
        late.say(Say(200, {"adapter": "movies@1", "state": "resident", "reason": None, "pinned": True}))
    coming = threading.Timer(0.5, late.start)
    coming.start()
    try:
        assert ask(late.url, method, "movies", settings={"retries": 20}).adapter == "movies@1"
        assert len(late.came) == 1
    finally:
        coming.join()
        late.close()


def test_a_service_that_never_comes(ask: Ask, server: ScriptedServer) -> None:
    server.close()
    with pytest.raises(ConnectionFailed, match=f"no answer from {server.url}: ") as caught:
        ask(server.url, "classify", "meh", settings={"retries": 1})
    assert not caught.value.sent


def test_silence_ends_at_the_deadline(ask: Ask, server: ScriptedServer) -> None:
    """An answer that trickles is no better than none."""
    server.say(Say(pause_s=0.2))
    asked_s = time.monotonic()
    with pytest.raises(ConnectionFailed, match="timed out"):
        ask(server.url, "classify", "meh", settings={"timeout_s": 1})
    assert 1 <= time.monotonic() - asked_s < 10


def test_no_byte_at_all(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        asked_s = time.monotonic()
        with pytest.raises(ConnectionFailed, match="timed out") as caught:
            ask(f"http://127.0.0.1:{deaf.getsockname()[1]}", "classify", "meh", settings={"timeout_s": 0.7})
        assert 0.7 <= time.monotonic() - asked_s < 10
        assert caught.value.sent


def drive(call: Call[object], policy: RetryPolicy, came: Reply | ConnectionFailed) -> list[float]:
    """The waits of a call whose every attempt ends in the same way, without waiting."""
    steps, waits_s = attempts(call, policy), []
    step = next(steps)
    try:
        while True:
            if isinstance(step, Wait):
                waits_s.append(step.seconds)
            step = steps.send(came if isinstance(step, Send) else None)
    except (ProblemError, ConnectionFailed):
        return waits_s


def test_waits_are_spread_and_bounded() -> None:
    policy = RetryPolicy(timeout_s=1000, retries=8)
    runs = [drive(classify("meh"), policy, Reply(503, {}, b"")) for _ in range(300)]
    for failed, waits_s in enumerate(zip(*runs, strict=True)):
        bound_s = min(8, 0.25 * 2**failed)
        assert 0 <= min(waits_s) < 0.1 * bound_s and 0.9 * bound_s < max(waits_s) <= bound_s


def test_a_long_row_of_failures_does_not_overflow() -> None:
    assert RetryPolicy(retries=10**6).wait_s(ConnectionFailed("", "", False), 10**5, repeatable=True) is not None


def test_an_httpx_client_of_ones_own(server: ScriptedServer) -> None:
    """What it sends along is kept, and it stays open."""
    with httpx.Client(headers={"X-Team": "films"}) as http:
        with Client(server.url, http=http) as client:
            client.classify("meh")
        assert not http.is_closed
    assert server.came[0].headers["x-team"] == "films"
