"""The console: a page of static files, for people who would rather look than read.

The page asks the same routes as everybody else, with a key that it keeps in memory alone. It has no build step and asks
no other address; its policy lets it run its own files and nothing else.
"""

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

_DIRECTORY = Path(__file__).parent
_INDEX = "index.html"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    # Asked for each time, answered with 304 as long as the service is the same.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


class _File(NamedTuple):
    content: bytes
    zipped: bytes
    etag: str
    media_type: str


def _read() -> dict[str, _File]:
    found = {}
    for path in sorted(_DIRECTORY.iterdir()):
        if path.suffix in _MEDIA_TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.name] = _File(content, gzip.compress(content, mtime=0), etag, _MEDIA_TYPES[path.suffix])
    return found


_FILES = _read()


@router.get("/")
async def index(request: Request) -> Response:
    return _answer(request, _FILES[_INDEX])


@router.get("/console/{name}")
async def file(request: Request, name: str) -> Response:
    if name not in _FILES:
        raise HTTPException(404, f"the console has no file {name[:80]!r}")
    return _answer(request, _FILES[name])


def _answer(request: Request, found: _File) -> Response:
    headers = _HEADERS | {"ETag": found.etag}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(found.zipped, headers=headers | {"Content-Encoding": "gzip"}, media_type=found.media_type)
    return Response(found.content, headers=headers, media_type=found.media_type)
