"""The FastAPI app: LitServe makes it, this furnishes it."""

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from adapters.errors import TonearmError
from adapters.store import Registry
from service import (
    administration,
    classify,
    console,
    experiment_routes,
    feedback,
    listings,
    open_inference,
    predict,
    probes,
)
from service.openapi import complete
from service.problems import http_problem_response, problem_response
from service.record import RecordRequests, request_id_of
from service.schemas import TAGS
from service.security import LimitBody, RequireKey
from service.service import Service

_DESCRIPTION = "Fine-tuned text classifiers on one shared encoder, A/B-routed and measured."
_SHOWN_CHARACTERS = 80


def furnish(app: FastAPI, service: Service) -> None:
    """Give the app our routes, our errors and our layers."""
    app.title, app.description, app.version = "Tonearm", _DESCRIPTION, "0.1.0"
    app.state.service = service
    app.state.catalogue = listings.Catalogue(Registry(service.settings.adapters_dir))
    routers = (
        classify.router,
        open_inference.router,
        predict.router,
        feedback.router,
        listings.router,
        experiment_routes.router,
        administration.router,
        probes.router,
        console.router,
    )
    for router in routers:
        app.include_router(router)
    complete(app, routers, keys=bool(service.settings.api_keys))
    app.add_exception_handler(TonearmError, _on_our_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_bad_body)
    # The last one added is the outermost.
    app.add_middleware(classify.OneText)
    app.add_middleware(LimitBody, max_bytes=service.settings.max_body_bytes)
    app.add_middleware(RequireKey, keys=service.settings.api_keys, admin_keys=service.settings.admin_keys)
    app.add_middleware(RecordRequests, draining=lambda: service.watch.draining)
    if service.tracing is not None:
        from service.tracing import TraceRequests

        app.add_middleware(TraceRequests, tracing=service.tracing)


async def _on_our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TonearmError)
    return problem_response(error, request_id_of(request), request.url.path)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return http_problem_response(error, request_id_of(request), request.url.path)


async def _on_bad_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return http_problem_response(HTTPException(422, _explain(error)), request_id_of(request), request.url.path)


def _explain(error: RequestValidationError) -> str:
    """Field, value, expected: of the first thing that is wrong."""
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
    if first["type"] in ("model_type", "model_attributes_type"):
        return 'the body is no JSON object; send {"text": …} with content-type: application/json'
    where = ".".join(str(part) for part in first["loc"] if part not in TAGS)
    if first["type"] == "missing":
        return f"{where}: expected, but not there"
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if where == "body.text" and first["type"] == "string_type":
        expected = "a text or a list of texts"
    return f"{where}: expected {expected[:1].lower()}{expected[1:]}, found {_shown(first['input'])}"


def _shown(value: object) -> str:
    """A value, cut short; ASCII alone, because it may hold what no encoding takes."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
