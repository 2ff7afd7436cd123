"""What is sent for which arguments, what is made of which reply, and which error of which problem."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client import (
    AdapterRefused,
    Classification,
    Client,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidAnswer,
    InvalidArgument,
    InvalidRequest,
    ItemError,
    NotFound,
    Overloaded,
    ProblemError,
    TonearmClientError,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownAdapter,
)
from client.errors import problem_error
from tests.client.conftest import Ask
from tests.client.scripted import ANSWER, Say, ScriptedServer, problem

ROOT = Path(__file__).parents[2]


def test_a_plain_question(ask: Ask, server: ScriptedServer) -> None:
    ask(server.url + "/", "classify", "meh", settings={})
    (came,) = server.came
    assert (came.method, came.path, came.body) == ("POST", "/classify", {"text": "meh"})
    assert came.headers["content-type"] == "application/json"
    assert not came.headers.keys() & {"authorization", "x-adapter", "x-unit-id", "x-request-timeout-ms"}
    assert len(came.headers["x-request-id"]) == 32


def test_a_question_with_everything(ask: Ask, server: ScriptedServer) -> None:
    server.say(Say(body={"results": [[ANSWER, ANSWER]]}))
    options: dict[str, Any] = {"unit_id": "東京", "truncate": False, "logits": True, "long_text": "windows"}
    options |= {"timeout_ms": 500, "request_id": "mine-1", "adapter": ["movies", "tone@2"]}
    ask(server.url, "classify", ["meh"], settings={"api_key": "a-key"}, **options)
    (came,) = server.came
    assert came.body == {"text": ["meh"], "truncate": False, "logits": True, "long_text": "windows"}
    assert came.headers["x-unit-id"].encode("latin-1").decode() == "東京"
    assert came.headers["x-adapter"] == "movies,tone@2"
    assert came.headers["authorization"] == "Bearer a-key"
    assert (came.headers["x-request-timeout-ms"], came.headers["x-request-id"]) == ("500", "mine-1")


def test_the_other_routes(ask: Ask, server: ScriptedServer) -> None:
    assert ask(server.url, "feedback", "r-1", "negative", settings={}) is None
    assert (server.came[-1].path, server.came[-1].body) == ("/feedback", {"request_id": "r-1", "label": "negative"})
    for verb, state in (("load", "resident"), ("unload", "registered"), ("pin", "resident"), ("verify", "failed")):
        server.say(Say(body={"adapter": "movies@1", "state": state, "reason": None, "pinned": verb == "pin"}))
        answer = ask(server.url, verb, "movies@champion", settings={"api_key": "admin-key"})
        assert (answer.adapter, answer.state, answer.pinned) == ("movies@1", state, verb == "pin")
        assert (server.came[-1].method, server.came[-1].path) == ("POST", f"/adapters/movies@champion/{verb}")
    server.say(Say(503, problem(503, "not-ready")))
    assert ask(server.url, "ready", settings={}) is False
    assert ask(server.url, "ready", settings={}) is True
    assert server.came[-1].path == "/readyz"


def test_an_answer_has_the_form_of_its_question(ask: Ask, server: ScriptedServer) -> None:
    """Also where the service answers a list of one adapter like that adapter alone."""
    bad = {"error": problem(413, "text-too-long")}
    server.say(Say(), Say(body={"results": [ANSWER, bad]}), Say(body={"results": [ANSWER, bad]}))
    assert [item.label for item in ask(server.url, "classify", "meh", settings={}, adapter=["movies"])] == ["positive"]
    good, failed = ask(server.url, "classify", ("meh", "long"), settings={})
    assert isinstance(good, Classification) and isinstance(failed, ItemError)
    assert (failed.error.status, failed.error.detail) == (413, "for a reason")
    rows = ask(server.url, "classify", ["meh", "long"], settings={}, adapter=("movies",))
    assert [[type(item) for item in row] for row in rows] == [[Classification], [ItemError]]


def test_unknown_fields_are_kept_and_answers_are_frozen(ask: Ask, server: ScriptedServer) -> None:
    server.say(Say(body={**ANSWER, "windows": 3}))
    answer = ask(server.url, "classify", "meh", settings={})
    assert answer.windows == 3
    with pytest.raises(ValueError, match="frozen"):
        answer.label = "negative"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>hello</html>", "begins with '<html>"),
        ({"label": "positive"}, "Field required"),
        ({"results": [ANSWER]}, "Field required"),
    ],
)
def test_success_in_another_form(ask: Ask, server: ScriptedServer, body: Any, said: str) -> None:
    server.say(Say(body=body))
    with pytest.raises(InvalidAnswer, match=said):
        ask(server.url, "classify", "meh", settings={})
    assert len(server.came) == 1


def test_too_few_results(ask: Ask, server: ScriptedServer) -> None:
    server.say(Say(body={"results": [ANSWER]}))
    with pytest.raises(InvalidAnswer, match="has 1 results, expected 2"):
        ask(server.url, "classify", ["meh", "fine"], settings={})


@pytest.mark.parametrize(
    ("status", "slug", "kind"),
    [
        (400, "invalid-reference", InvalidRequest),
        (401, "unauthorized", Unauthorized),
        (403, "forbidden", Unauthorized),
        (404, "unknown-adapter", UnknownAdapter),
        (404, "not-found", NotFound),
        (409, "adapter-refused", AdapterRefused),
        (409, "conflict", Conflict),
        (413, "too-many-texts", TooLarge),
        (422, "unprocessable-content", InvalidRequest),
        (429, "overloaded", Overloaded),
        (500, "internal", ProblemError),
        (503, "not-ready", Unavailable),
        (504, "deadline-exceeded", DeadlineExceeded),
    ],
)
def test_problems(ask: Ask, server: ScriptedServer, status: int, slug: str, kind: type[ProblemError]) -> None:
    server.say(Say(status, problem(status, slug, nearest=["movies"]), {"Retry-After": "7"}))
    with pytest.raises(kind) as caught:
        ask(server.url, "classify", "meh", settings={"retries": 0})
    error = caught.value
    assert type(error) is kind and isinstance(error, TonearmClientError)
    assert (error.type, error.title, error.status) == (f"urn:tonearm:problem:{slug}", "Not now", status)
    assert (error.detail, error.request_id, error.nearest) == ("for a reason", "r-2", ("movies",))
    assert error.retry_after_s == 7


def test_an_error_without_problem_details(ask: Ask, server: ScriptedServer) -> None:
    server.say(Say(502, b"<html>", {"X-Request-Id": "r-3"}))
    with pytest.raises(ProblemError, match=r"Bad Gateway \(502\): the answer has no problem details") as caught:
        ask(server.url, "classify", "meh", settings={})
    assert (caught.value.status, caught.value.request_id, caught.value.type) == (502, "r-3", "about:blank")


@pytest.mark.parametrize("header", ["", "soon", "-3", "1.5", "Mon, 99 Foo 2026 00:00:00 GMT"])
def test_a_retry_after_that_is_none_is_not_heeded(header: str) -> None:
    assert problem_error(503, {"retry-after": header}, b"").retry_after_s is None


def test_a_retry_after_in_the_past_is_now() -> None:
    assert problem_error(503, {"retry-after": "Mon, 01 Jan 2024 00:00:00 GMT"}, b"").retry_after_s == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": "movies,tone"}, "one name in a text and several in a list"),
        ({"adapter": ["movies,tone"]}, "one name in a text and several in a list"),
        ({"adapter": "movies\r\nX-Api-Key: mine"}, "no line break"),
        ({"unit_id": " user-42"}, "no space around it"),
        ({"unit_id": "\ud800"}, "Unicode throughout"),
        ({"unit_id": "user\v42"}, "cannot be sent"),
    ],
)
def test_what_no_header_can_hold(ask: Ask, server: ScriptedServer, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        ask(server.url, "classify", "meh", settings={}, **options)
    assert not server.came


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://host", "http://", "http://host?a=1", "http://\ud800"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InvalidArgument, match="expected one like http"):
        Client(url)


def test_bad_settings() -> None:
    with pytest.raises(InvalidArgument, match="timeout_s is 0"):
        Client("http://localhost", timeout_s=0)
    with pytest.raises(InvalidArgument, match="retries is -1"):
        Client("http://localhost", retries=-1)
    with pytest.raises(ValueError, match="api_key holds") as caught:
        Client("http://localhost", api_key="a secret\nkey")
    assert "secret" not in str(caught.value)


def test_errors_cross_process_borders() -> None:
    for error in (
        problem_error(429, {"retry-after": "2"}, b"{}"),
        ConnectionFailed("http://host", "refused", False),
        InvalidAnswer("of no form"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)


def test_the_client_needs_no_other_room() -> None:
    others = {"adapters", "engine", "service", "training", "torch", "typer"}
    code = f"import sys, client; sys.exit(str(sorted(sys.modules.keys() & {others}) or ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_the_front_door_has_it_and_opens_without_it() -> None:
    code = (
        "import sys, tonearm; assert 'client' not in sys.modules\n"
        "from tonearm import AsyncClient, Client; import client\n"
        "assert (client.Client, client.AsyncClient) == (Client, AsyncClient)\n"
        "assert 'torch' not in sys.modules and not hasattr(tonearm, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
