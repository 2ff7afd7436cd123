"""`POST /adapters/{name}/load`, `/unload`, `/pin`, `/verify`, and aliases: for administrators.

The registry says what there is; the verbs only move it between disk and bank. Each is written down in the run
directory, where every worker reads it, and answered when all of them have done it. An alias is the registry's own.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.exceptions import HTTPException

from adapters.errors import DeadlineExceeded, InvalidReference
from adapters.reference import AdapterId, parse_reference
from adapters.store import Registry
from service.asking import XRequestId
from service.run_directory import Verb
from service.schemas import (
    ALIASES_EXAMPLES,
    STATE_EXAMPLES,
    AdapterState,
    AliasBody,
    Aliases,
    answers,
    problem_answers,
)
from service.service import Service

router = APIRouter(prefix="/adapters", tags=["administration"])

_LOOK_EVERY_S = 0.05
_ANSWERS = answers(STATE_EXAMPLES) | problem_answers(400, 401, 403, 404, 409, 422, 500, 503, 504)

Name = Annotated[str, PathParameter(description="name, name@3 or name@alias.", examples=["movies"])]


@router.post("/{name}/load", responses=_ANSWERS, summary="Make it resident now")
async def load(request: Request, name: Name, x_request_id: XRequestId = None) -> AdapterState:
    """Before its first request pays for it. One that was refused is tried again."""
    return await _order(request, "load", name)


@router.post("/{name}/unload", responses=_ANSWERS, summary="Free its slot, and unpin it")
async def unload(request: Request, name: Name, x_request_id: XRequestId = None) -> AdapterState:
    """It stays in the registry, so the next request loads it again; to take it away for good, remove it there."""
    service: Service = request.app.state.service
    wanted = service.registry.resolve(name)
    for text in service.settings.pinned_adapters:
        if parse_reference(text).name == wanted.name:
            raise HTTPException(409, f"{text} is pinned by TONEARM_PINNED_ADAPTERS; take it out there and restart")
    return await _order(request, "unload", name)


@router.post("/{name}/pin", responses=_ANSWERS, summary="Make it resident, and never let it make room")
async def pin(request: Request, name: Name, x_request_id: XRequestId = None) -> AdapterState:
    """Until `/unload` or the end of this run; TONEARM_PINNED_ADAPTERS pins for longer."""
    return await _order(request, "pin", name)


@router.post("/{name}/verify", responses=_ANSWERS, summary="Read it again and run every check")
async def verify(request: Request, name: Name, x_request_id: XRequestId = None) -> AdapterState:
    """Bytes, digests, shapes and golden logits, whatever was found before; it is resident then, or failed."""
    return await _order(request, "verify", name)


_ALIASED = answers(ALIASES_EXAMPLES) | problem_answers(400, 401, 403, 404, 409, 422, 500)

Alias = Annotated[str, PathParameter(description="What follows the @.", examples=["champion"])]


@router.put("/{name}/aliases/{alias}", responses=_ALIASED, summary="Point name@alias at a version")
def set_alias(request: Request, name: Name, alias: Alias, body: AliasBody, x_request_id: XRequestId = None) -> Aliases:
    """Requests for it get that version from the next one on; an alias that is not there yet is made."""
    registry = _registry_with(request, name)
    with _writing(f"{name}@{alias}"):
        registry.set_alias(name, alias, body.version)
    return Aliases(name=name, aliases=registry.aliases(name))


@router.delete("/{name}/aliases/{alias}", responses=_ALIASED, summary="Forget name@alias")
def remove_alias(request: Request, name: Name, alias: Alias, x_request_id: XRequestId = None) -> Aliases:
    """Requests for it are a 404 from then on; versions stay."""
    registry = _registry_with(request, name)
    with _writing(f"{name}@{alias}"):
        registry.remove_alias(name, alias)
    return Aliases(name=name, aliases=registry.aliases(name))


def _registry_with(request: Request, name: str) -> Registry:
    """A registry for this thread, which has the name.

    Raises:
        InvalidReference: it says which version, but an alias is the name's.
        UnknownAdapter: it is not in the registry.
    """
    service: Service = request.app.state.service
    reference = parse_reference(name)
    if reference.name != name:
        raise InvalidReference(name)
    registry = Registry(service.settings.adapters_dir)
    registry.resolve(reference)
    return registry


@contextmanager
def _writing(alias: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HTTPException(409, f"the alias {alias} cannot be written: {error.strerror}") from None


async def _order(request: Request, verb: Verb, name: str) -> AdapterState:
    """
    Raises:
        UnknownAdapter: it is not in the registry.
        NotReady: no worker is there to do it.
        DeadlineExceeded: not all workers have done it in time; they still will.
    """
    service: Service = request.app.state.service
    service.watch.check_ready()
    adapter = service.registry.resolve(name)
    number = service.run_directory.order(verb, str(adapter))
    deadline_s = time.monotonic() + service.settings.request_timeout_s
    while not service.watch.obeyed(number):
        if time.monotonic() > deadline_s:
            raise DeadlineExceeded(service.settings.request_timeout_s)
        await asyncio.sleep(_LOOK_EVERY_S)
    return state_of(adapter, service)


def state_of(adapter: AdapterId, service: Service) -> AdapterState:
    known, reason = str(adapter), service.watch.failed().get(str(adapter))
    resident = known in service.watch.resident()
    return AdapterState(
        adapter=known,
        state="resident" if resident else "failed" if reason is not None else "registered",
        reason=None if resident else reason,
        pinned=known in service.watch.pinned(),
    )
