"""Who may call: keys before anything is parsed, and bodies bounded before anything is read whole."""

import hmac
from collections.abc import Iterable, Mapping

from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import Forbidden, TonearmError, Unauthorized
from service.problems import http_problem_response, problem_response
from service.record import headers_of_scope

OPEN_PATHS = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Probes carry no key; every other path wants one, whether it exists or not."""

_PAGE = "/console/"
"""The console's files hold nothing but the console: whoever opens it gives the key there."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_MOST_DIGITS = 18

KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""How a key may be sent, as OpenAPI says it."""


class RequireKey:
    """Answers 401 without a key that is known, and 403 where only an administrator's will do.

    Without callers' keys everybody may call; without any key at all, everybody may administer, too. With callers' keys
    alone nobody may: that a key opens /classify does not make its holder an administrator.
    """

    def __init__(self, app: ASGIApp, *, keys: Iterable[SecretStr], admin_keys: Iterable[SecretStr]) -> None:
        self._app = app
        self._keys = [key.get_secret_value().encode() for key in keys]
        self._admin_keys = [key.get_secret_value().encode() for key in admin_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = bool(self._keys or self._admin_keys)
        if guarded and scope["type"] == "http" and not _open(scope["path"]):
            refusal = self._refusal(_key(headers_of_scope(scope)), administers=_administers(scope))
            if refusal is not None:
                await problem_response(refusal, scope["state"]["request_id"], scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, found: bytes, *, administers: bool) -> TonearmError | None:
        calls, governs = _known(found, self._keys), _known(found, self._admin_keys)
        needed = bool(self._keys) or (administers and bool(self._admin_keys))
        if governs or not needed:
            return None
        if not calls:
            return Unauthorized(
                "the key is not known" if found else "send a key: Authorization: Bearer <key>, or X-API-Key"
            )
        if not administers:
            return None
        none_set = "; none is set: TONEARM_ADMIN_KEYS" if not self._admin_keys else ""
        return Forbidden(f"this takes an administrator's key{none_set}")


def _open(path: str) -> bool:
    return path in OPEN_PATHS or path == "/" or path.startswith(_PAGE)


def _administers(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] not in _READING and path.startswith(("/adapters/", "/experiments/"))


def _known(found: bytes, keys: list[bytes]) -> bool:
    # Every one, whichever matches: how long it takes says nothing about which one came close.
    matches: list[bool] = [hmac.compare_digest(found, key) for key in keys]
    return True in matches


def _key(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and token:
        return token.strip()
    return headers.get(b"x-api-key", b"")


class LimitBody:
    """Answers 413 for a body over the limit: by its declared length, or as soon as that much has come."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = headers_of_scope(scope).get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > _MOST_DIGITS or int(declared) > self._max_bytes):
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
