"""`GET /adapters`: what there is, and how it stands; `GET /adapters/{name}`: one of them, with its report."""

import hashlib
import os
import threading
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from adapters.errors import VerificationError
from adapters.manifest import MANIFEST, Manifest, read_manifest, read_plain_file
from adapters.reference import AdapterId
from adapters.store import Registry
from service.administration import Name
from service.run_directory import ResidentAdapter
from service.schemas import (
    ADAPTER_EXAMPLES,
    ADAPTERS_EXAMPLES,
    AdapterDetail,
    AdapterList,
    AdapterStanding,
    answers,
    problem_answers,
)
from service.service import Service

router = APIRouter(tags=["listings"])

_REPORT = "report/"
_MAX_REPORT_BYTES = 16 * 2**20
_MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".json": "application/json", ".png": "image/png"}
_FILES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/html": {"schema": {"type": "string"}, "examples": {"the-report": {"value": "<!doctype html>…"}}},
            "application/json": {"schema": {"type": "object"}, "examples": {"metrics": {"value": {"best_epoch": 2}}}},
            "image/png": {"schema": {"type": "string"}, "examples": {"curves": {"value": "PNG…"}}},
        }
    }
}
_NO_ORIGIN = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A report comes from whoever trained the adapter: it runs no script, and reads nothing as this service."""


class _Said(NamedTuple):
    """What a manifest says of its version, as it is shown; `reason` where it cannot be read."""

    labels: list[str] | None = None
    description: str | None = None
    metrics: dict[str, Any] | None = None
    reason: str | None = None


class Catalogue:
    """What the registry's manifests say, each read once as long as its file keeps its stamp. For any thread.

    With a registry of its own: the event loop's remembers what it saw, and is no other thread's to use.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._read: dict[AdapterId, tuple[tuple[int, ...], _Said]] = {}
        self._lock = threading.Lock()

    def resolve(self, reference: str) -> tuple[AdapterId, tuple[int, ...], Path]:
        """What a reference means, its name's versions, and the directory.

        Raises:
            InvalidReference, UnknownAdapter: as of `Registry.resolve`.
        """
        with self._lock:
            adapter = self._registry.resolve(reference)
            return adapter, self._registry.versions(adapter.name), self._registry.directory(adapter)

    def aliases(self, name: str) -> dict[str, int]:
        with self._lock:
            return self._registry.aliases(name)

    def entries(
        self, resident: Mapping[str, ResidentAdapter], failed: Mapping[str, str], pinned: Set[str]
    ) -> list[dict[str, Any]]:
        """`AdapterEntry` of every name, with its versions from the newest, as plain values: there may be thousands.

        Args:
            resident, failed, pinned: by `name@version`, as the workers say.
        """
        with self._lock:
            by_name: dict[str, list[dict[str, Any]]] = {}
            read = {}
            for adapter in self._registry.ids():
                read[adapter] = self._manifest(adapter)
                version = _version(adapter, read[adapter][1], resident, failed, pinned)
                by_name.setdefault(adapter.name, []).insert(0, version)
            self._read = read  # without those that are gone
            return [
                {"name": name, "aliases": self._registry.aliases(name), "versions": versions}
                for name, versions in by_name.items()
            ]

    def _manifest(self, adapter: AdapterId) -> tuple[tuple[int, ...], _Said]:
        path = f"{self._registry.root}/{adapter.name}/{adapter.version}/{MANIFEST}"
        try:
            stat = os.stat(path)
        except OSError:
            return (), _Said()
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        read = self._read.get(adapter)
        if read is not None and read[0] == stamp:
            return read
        try:
            manifest = read_manifest(self._registry.directory(adapter))
        except VerificationError as error:
            return stamp, _Said(reason=error.reason)
        except OSError:  # removed since the look
            return (), _Said()
        return stamp, _said(manifest)


# Not async, as those below: they read files, so FastAPI runs them in a thread.
@router.get(
    "/adapters",
    response_model=AdapterList,
    responses=answers(ADAPTERS_EXAMPLES) | problem_answers(401, 422, 500),
    summary="All adapters, their versions and states",
)
def adapters(
    request: Request,
    search: Annotated[str, Query(max_length=256, description="In the name or the newest description.")] = "",
    state: Annotated[AdapterStanding | None, Query(description="Only names of which a version stands so.")] = None,
    offset: Annotated[int, Query(ge=0, description="So many are passed over.")] = 0,
    limit: Annotated[int | None, Query(ge=1, description="So many names at most; all if left out.")] = None,
) -> Response:
    """By name; `total` says how many there are besides those shown."""
    service: Service = request.app.state.service
    catalogue: Catalogue = request.app.state.catalogue
    found = catalogue.entries(service.watch.resident(), service.watch.failed(), service.watch.pinned())
    if search:
        found = [entry for entry in found if _speaks_of(entry, search.casefold())]
    if state is not None:
        found = [entry for entry in found if any(version["state"] == state for version in entry["versions"])]
    return JSONResponse(
        {
            "base_model": service.settings.base_model,
            "default_adapter": service.settings.default_adapter,
            "total": len(found),
            "adapters": found[offset : None if limit is None else offset + limit],
        }
    )


@router.get(
    "/adapters/{name}",
    response_model=AdapterDetail,
    responses=answers(ADAPTER_EXAMPLES) | problem_answers(400, 401, 404, 409, 422, 500),
    summary="One version: its state, what its manifest says, examples, the files of its report",
)
def adapter(request: Request, name: Name) -> Response:
    service: Service = request.app.state.service
    catalogue: Catalogue = request.app.state.catalogue
    found, versions, directory = catalogue.resolve(name)
    manifest: Manifest | None = None
    said = _Said()
    try:
        manifest = read_manifest(directory)
        said = _said(manifest)
    except VerificationError as error:
        said = _Said(reason=error.reason)
    except OSError:  # plain PEFT's, or removed since the look
        pass
    watch = service.watch
    version = _version(found, said, watch.resident(), watch.failed(), watch.pinned())
    return JSONResponse(
        {
            "name": found.name,
            "adapter": str(found),
            "aliases": catalogue.aliases(found.name),
            "versions": list(reversed(versions)),
            **version,
            "training": None if manifest is None else _trained(manifest),
            "examples": [] if manifest is None else [example.text for example in manifest.golden],
            "report": [] if manifest is None else sorted(_report_files(manifest)),
        }
    )


@router.get(
    "/adapters/{name}/report/{file}",
    response_class=Response,
    responses=_FILES | problem_answers(400, 401, 404, 409, 422, 500),
    summary="One file of its report",
)
def report(request: Request, name: Name, file: str) -> Response:
    """As its manifest names it, and only with the digest that it gives."""
    catalogue: Catalogue = request.app.state.catalogue
    found, _, directory = catalogue.resolve(name)
    try:
        files = _report_files(read_manifest(directory))
    except OSError:
        files = {}
    suffix = os.path.splitext(file)[1]
    if file not in files or suffix not in _MEDIA_TYPES:
        there = ", ".join(sorted(files)) or "none"
        raise HTTPException(404, f"the report of {found} has no file {file[:80]!r}; there: {there}")
    try:
        content = read_plain_file(directory / _REPORT / file, _MAX_REPORT_BYTES)
    except (OSError, ValueError) as error:
        raise HTTPException(409, f"{file} of {found} cannot be read: {error}") from None
    if hashlib.sha256(content).hexdigest() != files[file]:
        raise HTTPException(409, f"{file} of {found} is not what was published: its digest is another")
    headers = {"Content-Security-Policy": _NO_ORIGIN, "ETag": f'"{files[file]}"', "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_MEDIA_TYPES[suffix], headers=headers)


def _speaks_of(entry: Mapping[str, Any], search: str) -> bool:
    return search in entry["name"] or search in (entry["versions"][0]["description"] or "").casefold()


def _report_files(manifest: Manifest) -> dict[str, str]:
    """Digests by name, of those that lie in the report's own directory."""
    names = {path.removeprefix(_REPORT): digest for path, digest in manifest.files.items() if path.startswith(_REPORT)}
    return {name: digest for name, digest in names.items() if "/" not in name}


def _said(manifest: Manifest) -> _Said:
    metrics = {name: metric.model_dump() for name, metric in manifest.metrics.items()}
    return _Said(list(manifest.labels), manifest.description, metrics)


def _trained(manifest: Manifest) -> dict[str, Any]:
    named = {"created", "task", "max_tokens", "truncation_side", "temperature"}
    data = manifest.training
    return manifest.model_dump(include=named) | {
        "base": manifest.base.id,
        "rank": manifest.lora.rank,
        "data": None if data is None else data.name,
        "examples": None if data is None else data.examples,
    }


def _version(
    adapter: AdapterId,
    said: _Said,
    resident: Mapping[str, ResidentAdapter],
    failed: Mapping[str, str],
    pinned: Set[str],
) -> dict[str, Any]:
    facts, reason = resident.get(str(adapter)), failed.get(str(adapter), said.reason)
    return {
        "version": adapter.version,
        "state": "resident" if facts is not None else "failed" if reason is not None else "registered",
        "pinned": str(adapter) in pinned,
        "reason": reason if facts is None else None,
        "verified": facts is not None and facts.verified,
        "labels": said.labels if facts is None else list(facts.labels),
        "description": said.description,
        "metrics": said.metrics or {},
    }
