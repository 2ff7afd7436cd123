"""`POST /classify`: our own way in."""

from types import SimpleNamespace
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import AdapterError, TonearmError
from adapters.reference import AdapterId
from engine.rows import Answer, Outcome
from service.asking import Route, XAdapter, XRequestId, XRequestTimeoutMs, XUnitId, ask, headers_of
from service.messages import Reply
from service.problems import http_problem_response, problem, problem_response
from service.record import headers_of_scope, request_id_of
from service.schemas import (
    CLASSIFY_EXAMPLES,
    ClassifyAnswer,
    ClassifyBody,
    ClassifyResults,
    answers,
    problem_answers,
)

router = APIRouter(tags=["classify"])


@router.post(
    "/classify",
    response_model=ClassifyAnswer | ClassifyResults,
    responses=answers(CLASSIFY_EXAMPLES) | problem_answers(400, 401, 404, 409, 413, 422, 429, 500, 503, 504),
    summary="Classify one text or several",
)
async def classify(
    request: Request,
    body: ClassifyBody,
    x_adapter: XAdapter = None,
    x_unit_id: XUnitId = None,
    x_request_timeout_ms: XRequestTimeoutMs = None,
    x_request_id: XRequestId = None,
) -> Response:
    """One text gives one answer; a list of texts, or several adapters, give `results`.

    What is wrong with one item of a list stands in its place as `{"error": {…}}` while the others are answered; what
    is wrong with the request, or with the only adapter it names, is the response.
    """
    route, reply = await ask(
        request,
        body.texts,
        body.on_long_text,
        adapter=x_adapter,
        unit=x_unit_id,
        timeout_ms=x_request_timeout_ms,
    )
    return _response(body, route, reply, request_id_of(request))


class OneText:
    """The layer before FastAPI that answers the usual request, one text in one piece, itself.

    FastAPI's way to a handler (routes, dependencies, a body that is parsed and then checked) takes longer than all else
    that is done with a request in this process. Whatever is unusual, a bad body included, goes that way; it is the
    reference, and both share `ask` and `_response`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = headers_of_scope(scope)
        first = await receive()
        body = _parsed(first, headers)
        if body is None:
            await self._app(scope, _again(first, receive), send)
            return
        scope["route"] = _ROUTE
        request, request_id = Request(scope, receive), scope["state"]["request_id"]
        try:
            route, reply = await ask(
                request,
                body.texts,
                body.on_long_text,
                adapter=_decoded(headers, b"x-adapter"),
                unit=_decoded(headers, b"x-unit-id"),
                timeout_ms=_decoded(headers, b"x-request-timeout-ms"),
            )
            response = _response(body, route, reply, request_id)
        except TonearmError as error:
            response = problem_response(error, request_id, _PATH)
        except HTTPException as error:
            response = http_problem_response(error, request_id, _PATH)
        await response(scope, receive, send)


_PATH = "/classify"
_ROUTE = SimpleNamespace(path=_PATH)


def _parsed(message: Message, headers: dict[bytes, bytes]) -> ClassifyBody | None:
    """The body, if it is a good one with one text, and all of it is here."""
    whole = message["type"] == "http.request" and not message.get("more_body", False)
    if not whole or headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
        return None
    try:
        body = ClassifyBody.model_validate_json(message.get("body", b""))
    except ValidationError:
        return None
    return body if isinstance(body.text, str) else None


def _again(first: Message, receive: Receive) -> Receive:
    """Gives what was received already once more, then what comes."""
    held: list[Message] = [first]

    async def replay() -> Message:
        return held.pop() if held else await receive()

    return replay


def _decoded(headers: dict[bytes, bytes], name: bytes) -> str | None:
    found = headers.get(name)
    return None if found is None else found.decode("latin-1")


def _response(body: ClassifyBody, route: Route, reply: Reply, request_id: str) -> Response:
    """
    Raises:
        TonearmError: what went wrong, where it is not the matter of one item among others.
    """
    outcomes = reply.outcomes
    one_text = isinstance(body.text, str)
    if one_text and not route.several:
        if isinstance(outcomes[0], TonearmError):
            raise outcomes[0]
    elif not route.several and all(isinstance(outcome, AdapterError) for outcome in outcomes):
        raise outcomes[0]  # type: ignore[misc]
    items = [
        _item(outcome, route.adapters[at % len(route.adapters)], route, body.logits, request_id)
        for at, outcome in enumerate(outcomes)
    ]
    content: dict[str, Any]
    if not one_text and route.several:
        width = len(route.adapters)
        content = {"results": [items[first : first + width] for first in range(0, len(items), width)]}
    elif not one_text or route.several:
        content = {"results": items}
    else:
        content = items[0]
    return JSONResponse(content, headers=headers_of(route, reply.timings))


def _item(outcome: Outcome, adapter: AdapterId, route: Route, logits: bool, request_id: str) -> dict[str, Any]:
    if not isinstance(outcome, Answer):
        return {"error": problem(outcome, request_id)}
    item: dict[str, Any] = {
        "label": outcome.label,
        "score": max(outcome.scores),
        "scores": dict(zip(outcome.labels, outcome.scores, strict=True)),
        "adapter": str(adapter),
        "experiment": route.experiment,
        "arm": route.arm,
        "tokens": outcome.tokens,
        "truncated": outcome.truncated,
        "windows": outcome.windows,
        "kept": outcome.kept,
        "request_id": request_id,
    }
    if logits:
        item["logits"] = dict(zip(outcome.labels, outcome.logits, strict=True))
    return item
