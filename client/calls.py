"""Arguments to calls, and replies to answers: pure, and the same for both clients."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote, urlencode

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

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
from client.errors import InvalidAnswer, InvalidArgument

T = TypeVar("T")

Several = list[str] | tuple[str, ...]
"""Not Sequence[str]: a str is one, too, and a type checker could not tell one text from several."""

LongText = Literal["truncate", "windows"]
Verb = Literal["load", "unload", "pin", "verify"]
Form = Literal["csv", "jsonl"]
State = Literal["resident", "registered", "failed"]

_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response, read whole and decompressed; the names of its headers in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One question to the service.

    Attributes:
        parse: makes the answer of a reply.
        repeatable: may be sent again although it may have been carried out. Every call of the API is idempotent, but an
            administrator's verb that comes a second time may undo what another administrator did in between.
        answers: statuses besides 2xx that are answers and no errors.
    """

    method: str
    path: str
    parse: Callable[[Reply], T]
    headers: Mapping[str, bytes] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = True
    answers: frozenset[int] = frozenset()

    def is_answered_by(self, reply: Reply) -> bool:
        return 200 <= reply.status < 300 or reply.status in self.answers


class ClassifyOptions(TypedDict, total=False):
    """What `classify` takes besides texts and adapters; every one may be left out.

    Attributes:
        unit_id: the A/B unit; without an adapter its experiment chooses one.
        truncate: cut a text that is too long (the default); otherwise it is `TooLarge`.
        long_text: `truncate` (the default) reads a long text's beginning or end, `windows` all of it in pieces.
        logits: answer with the logits, too.
        timeout_ms: longest wait in the service, which has a longest of its own; beyond it is `DeadlineExceeded`.
        request_id: stands in the answer and in the service's log; made where it is left out.
    """

    unit_id: str | None
    truncate: bool
    long_text: LongText
    logits: bool
    timeout_ms: int | None
    request_id: str | None


def classify(
    text: str | Several,
    *,
    adapter: str | Several | None = None,
    unit_id: str | None = None,
    truncate: bool = True,
    long_text: LongText = "truncate",
    logits: bool = False,
    timeout_ms: int | None = None,
    request_id: str | None = None,
) -> "Call[Classification | list[Item] | list[list[Item]]]":
    """`POST /classify`. The answer has the form of the question: a list for a list of adapters even if it has one.

    Raises:
        InvalidArgument: an adapter or unit that no header can hold.
    """
    body: dict[str, Any] = {"text": text if isinstance(text, str) else list(text)}
    # What has its default is left out, so that older services take it as well.
    if not truncate:
        body["truncate"] = False
    if logits:
        body["logits"] = True
    if long_text != "truncate":
        body["long_text"] = long_text
    headers = _headers(
        {
            "X-Request-Id": request_id or uuid.uuid4().hex,
            "X-Adapter": None if adapter is None else _adapters(adapter),
            "X-Unit-Id": unit_id,
            "X-Request-Timeout-Ms": None if timeout_ms is None else str(timeout_ms),
        }
    )
    return Call("POST", "/classify", _answer_of(text, adapter), headers | _JSON, _json(body))


def feedback(request_id: str, label: str, text: int = 0) -> Call[None]:
    """`POST /feedback`."""
    body = _json({"request_id": request_id, "label": label} | ({"text": text} if text else {}))
    return Call("POST", "/feedback", lambda reply: None, _identified() | _JSON, body)


class ListOptions(TypedDict, total=False):
    """Which adapters to list; every one may be left out.

    Attributes:
        search: in the name or the newest description.
        state: only names of which a version stands so.
        offset, limit: pass over so many names, and show so many at most.
    """

    search: str | None
    state: State | None
    offset: int | None
    limit: int | None


def adapters(options: ListOptions) -> Call[AdapterList]:
    """`GET /adapters`."""
    return Call("GET", f"/adapters{_query(options)}", _parser(AdapterList), _identified())


def adapter(name: str) -> Call[AdapterDetail]:
    """`GET /adapters/{name}`."""
    return Call("GET", _adapter(name), _parser(AdapterDetail), _identified())


def set_alias(name: str, alias: str, version: int) -> Call[Aliases]:
    """`PUT /adapters/{name}/aliases/{alias}`."""
    body = _json({"version": version})
    return Call("PUT", _alias(name, alias), _parser(Aliases), _identified() | _JSON, body, repeatable=False)


def remove_alias(name: str, alias: str) -> Call[Aliases]:
    """`DELETE /adapters/{name}/aliases/{alias}`."""
    return Call("DELETE", _alias(name, alias), _parser(Aliases), _identified(), repeatable=False)


def experiments() -> Call[ExperimentList]:
    """`GET /experiments`."""
    return Call("GET", "/experiments", _parser(ExperimentList), _identified())


def experiment(name: str) -> Call[ExperimentResult]:
    """`GET /experiments/{name}`."""
    return Call("GET", _experiment(name), _parser(ExperimentResult), _identified())


def experiment_history(name: str) -> Call[History]:
    """`GET /experiments/{name}/history`."""
    return Call("GET", f"{_experiment(name)}/history", _parser(History), _identified())


def plan_experiment(name: str, difference: float, power: float, accuracy: float | None) -> Call[Plan]:
    """`GET /experiments/{name}/plan`."""
    asked = _query({"difference": difference, "power": power, "accuracy": accuracy})
    return Call("GET", f"{_experiment(name)}/plan{asked}", _parser(Plan), _identified())


def stop_experiment(name: str, reason: str) -> Call[Standing]:
    """`POST /experiments/{name}/stop`."""
    return _end(name, "stop", {"reason": reason})


def promote_experiment(name: str, reason: str, arm: str | None, alias: str | None) -> Call[Standing]:
    """`POST /experiments/{name}/promote`."""
    given = {"reason": reason, "arm": arm, "alias": alias}
    return _end(name, "promote", {key: value for key, value in given.items() if value is not None})


def export_experiment(name: str, form: Form) -> Call[str]:
    """`GET /experiments/{name}/export`."""
    path = f"{_experiment(name)}/export{_query({'format': form})}"
    return Call("GET", path, lambda reply: reply.content.decode(), _identified())


def _end(name: str, verb: str, body: Mapping[str, Any]) -> Call[Standing]:
    path = f"{_experiment(name)}/{verb}"
    return Call("POST", path, _parser(Standing), _identified() | _JSON, _json(body), repeatable=False)


def ready() -> Call[bool]:
    """`GET /readyz`."""
    return Call("GET", "/readyz", lambda reply: reply.status != 503, _identified(), answers=frozenset({503}))


def administer(name: str, verb: Verb) -> Call[AdapterState]:
    """`POST /adapters/{name}/{verb}`."""
    return Call("POST", f"{_adapter(name)}/{verb}", _parser(AdapterState), _identified(), repeatable=False)


def build_request(
    http: httpx.Client | httpx.AsyncClient,
    url: str,
    call: Call[Any],
    key: Mapping[str, bytes],
    *,
    timeout_s: float | None,
) -> httpx.Request:
    """The call as `http` sends it: its own headers, cookies and settings are kept."""
    headers = [(name.encode(), value) for name, value in (*call.headers.items(), *key.items())]
    return http.build_request(call.method, url + call.path, headers=headers, content=call.body, timeout=timeout_s)


def key_header(api_key: str | None) -> dict[str, bytes]:
    """The header that carries a key.

    Raises:
        InvalidArgument: without showing the key.
    """
    if api_key is None:
        return {}
    try:
        return _headers({"Authorization": f"Bearer {api_key}"})
    except InvalidArgument:
        raise InvalidArgument("api_key holds a character that a header cannot carry") from None


def service_url(url: str) -> str:
    """Without the slash at its end.

    Raises:
        InvalidArgument: it is no address of a service.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeEncodeError):
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise InvalidArgument(f"url is {url!r}, expected one like http://127.0.0.1:8000")
    return url.rstrip("/")


_JSON = {"Content-Type": b"application/json"}


def _json(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # Half a surrogate pair has no bytes. Escaped it gets there, and the service says which text has it.
        return json.dumps(body).encode()


def _adapter(name: str) -> str:
    return f"/adapters/{quote(name, safe='@')}"


def _alias(name: str, alias: str) -> str:
    return f"{_adapter(name)}/aliases/{quote(alias, safe='')}"


def _experiment(name: str) -> str:
    return f"/experiments/{quote(name, safe='')}"


def _query(asked: Mapping[str, Any]) -> str:
    given = {key: value for key, value in asked.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _identified() -> dict[str, bytes]:
    return {"X-Request-Id": uuid.uuid4().hex.encode()}


def _headers(values: Mapping[str, str | None]) -> dict[str, bytes]:
    headers = {}
    for name, value in values.items():
        if value is None:
            continue
        if value != value.strip(" \t") or any(sign in value for sign in "\r\n\0"):
            raise InvalidArgument(f"{name} is {value!r}, expected no line break, no NUL and no space around it")
        try:
            headers[name] = value.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(f"{name} is {value!r}, expected Unicode throughout") from None
    return headers


def _adapters(adapter: str | Several) -> str:
    names = [adapter] if isinstance(adapter, str) else list(adapter)
    for name in names:
        if "," in name:
            raise InvalidArgument(f"adapter is {adapter!r}, expected one name in a text and several in a list")
    return ",".join(names)


_ONE = TypeAdapter(Classification)


class _Results(BaseModel, Generic[T]):
    results: list[T]


_ITEMS, _ROWS = TypeAdapter(_Results[Item]), TypeAdapter(_Results[list[Item]])


def _answer_of(
    text: str | Several, adapter: str | Several | None
) -> Callable[[Reply], Classification | list[Item] | list[list[Item]]]:
    """Makes the answer to a question of this form. The service takes a list of one adapter for that adapter."""
    texts = None if isinstance(text, str) else len(text)
    width = None if adapter is None or isinstance(adapter, str) else len(adapter)

    def parse(reply: Reply) -> Classification | list[Item] | list[list[Item]]:
        if texts is None:
            if width is None:
                return _validate(_ONE, reply)
            if width == 1:
                alone: list[Item] = [_validate(_ONE, reply)]
                return alone
            return _counted(_validate(_ITEMS, reply).results, width)
        if width is None:
            return _counted(_validate(_ITEMS, reply).results, texts)
        if width == 1:
            return [[item] for item in _counted(_validate(_ITEMS, reply).results, texts)]
        return [_counted(row, width) for row in _counted(_validate(_ROWS, reply).results, texts)]

    return parse


def _counted(items: list[T], expected: int) -> list[T]:
    if len(items) != expected:
        raise InvalidAnswer(f"the answer has {len(items)} results, expected {expected}")
    return items


def _parser(kind: type[T]) -> Callable[[Reply], T]:
    adapter = TypeAdapter(kind)
    return lambda reply: _validate(adapter, reply)


def _validate(adapter: TypeAdapter[T], reply: Reply) -> T:
    try:
        return adapter.validate_json(reply.content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        begins = ascii(reply.content[:_SHOWN_CHARACTERS].decode(errors="replace"))
        raise InvalidAnswer(
            f"no answer of Tonearm's: {where}: {first['msg']}; it begins with {begins}; check the url"
        ) from error
