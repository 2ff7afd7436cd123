"""`POST /classify`: our own way in."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from adapters.errors import AdapterError, TonearmError
from adapters.reference import AdapterId
from engine.rows import Answer, Outcome
from service.asking import Route, XAdapter, XRequestId, XRequestTimeoutMs, XUnitId, ask, headers_of
from service.messages import Reply
from service.problems import problem
from service.record import request_id_of
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
        "request_id": request_id,
    }
    if logits:
        item["logits"] = dict(zip(outcome.labels, outcome.logits, strict=True))
    return item
