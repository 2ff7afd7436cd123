"""What is kept of a request, seen from the outside of the layer."""

import asyncio

import pytest
from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from structlog.testing import capture_logs

from service.record import RecordRequests, facts_of


@pytest.mark.parametrize("texts", [None, ["a private matter"]])
def test_texts_are_in_the_line_only_where_the_handler_notes_them(texts: list[str] | None) -> None:
    async def handler(request: Request) -> Response:
        facts = facts_of(request)
        facts.adapter, facts.rows, facts.texts = "movies@1", 1, texts
        return PlainTextResponse("done")

    app = RecordRequests(Starlette(routes=[Route("/classify", handler)]), draining=lambda: False)

    async def ask() -> None:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as client:
            assert (await client.get("/classify", headers={"X-Request-Id": "mine"})).text == "done"

    with capture_logs() as lines:
        asyncio.run(ask())
    assert [(line["event"], line["request_id"], line["status"]) for line in lines] == [("request", "mine", 200)]
    assert lines[0].get("texts") == texts
