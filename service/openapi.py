"""The OpenAPI document, where FastAPI's own says too little."""

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from service.security import KEY_SCHEMES, OPEN_PATHS


def complete(app: FastAPI, routers: Iterable[APIRouter], *, keys: bool) -> None:
    """Make the document whole.

    Args:
        routers: whose routes the app has.
        keys: the service wants one, so the document says how it is sent, and `/docs` can send it.
    """
    make = app.openapi
    of_routers = (route for router in routers for route in router.routes)
    routes = [route for route in of_routers if isinstance(route, APIRoute) and route.include_in_schema]

    def openapi() -> dict[str, Any]:
        document = make()
        for route in routes:
            for method in route.methods or ():
                _put_examples(document["paths"][route.path_format][method.lower()]["responses"], route)
        if keys:
            _put_keys(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _put_examples(answers: dict[str, Any], route: APIRoute) -> None:
    """As they are: FastAPI leaves out what is null in them, and then they do not fit their schema."""
    for status, answer in route.responses.items():
        for media_type, content in answer.get("content", {}).items():
            if "examples" in content:
                answers[str(status)]["content"][media_type]["examples"] = content["examples"]


def _put_keys(document: dict[str, Any]) -> None:
    document.setdefault("components", {})["securitySchemes"] = KEY_SCHEMES
    document["security"] = [{name: []} for name in KEY_SCHEMES]
    for path in OPEN_PATHS & document["paths"].keys():
        for operation in document["paths"][path].values():
            operation["security"] = []
