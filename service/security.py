"""Who may call: keys before anything is parsed, and bodies bounded before anything is read whole."""

import hmac
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import Unauthorized
from service.problems import http_problem_response, problem_response

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""Probes carry no key; every other path wants one, whether it exists or not."""

KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""How a key may be sent, as OpenAPI says it."""


class RequireKey:
    """Answers 401 unless the request carries a key. Without any key set, everybody may call."""

    def __init__(self, app: ASGIApp, *, keys: Iterable[SecretStr]) -> None:
        self._app = app
        self._keys = [key.get_secret_value().encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and scope["path"] not in OPEN_PATHS:
            found = _key(Headers(scope=scope))
            if not self._known(found):
                detail = "the key is not known" if found else "send a key: Authorization: Bearer <key>, or X-API-Key"
                response = problem_response(Unauthorized(detail), scope["state"]["request_id"])
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _known(self, found: bytes) -> bool:
        # Every key is compared, in constant time: how long it takes says nothing about which one came close.
        matches = [hmac.compare_digest(found, key) for key in self._keys]
        return any(matches)


def _key(headers: Headers) -> bytes:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip().encode("latin-1")
    return headers.get("x-api-key", "").encode("latin-1")


class LimitBody:
    """Answers 413 for a body over the limit: by its declared length, or as soon as that much has come."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_bytes:
            response = http_problem_response(self._too_large(), scope["state"]["request_id"])
            await response(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, count, send)

    def _too_large(self) -> HTTPException:
        # The rest of the body is not read, so the connection cannot be used again.
        return HTTPException(413, f"the body is larger than {self._max_bytes} bytes", {"Connection": "close"})
