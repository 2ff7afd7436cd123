"""Both clients behind one way of asking, and a server that answers as a test tells it to."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client import AsyncClient, Client
from tests.client.scripted import ScriptedServer

Ask = Callable[..., Any]


def ask_blocking(url: str, method: str, *arguments: Any, settings: dict[str, Any], **options: Any) -> Any:
    with Client(url, **settings) as client:
        return getattr(client, method)(*arguments, **options)


def ask_async(url: str, method: str, *arguments: Any, settings: dict[str, Any], **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(url, **settings) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(ask())


@pytest.fixture(params=[ask_blocking, ask_async], ids=["blocking", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`ask(url, method, *arguments, settings={of the client}, **options)`, once with each client."""
    asked: Ask = request.param
    return asked


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    running = ScriptedServer()
    yield running
    running.close()
