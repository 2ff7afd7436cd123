"""`GET /adapters`: what there is, and how it stands."""

import os
import threading
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from adapters.errors import VerificationError
from adapters.manifest import MANIFEST, read_manifest
from adapters.reference import AdapterId
from adapters.store import Registry
from service.run_directory import ResidentAdapter
from service.schemas import ADAPTERS_EXAMPLES, AdapterList, answers, problem_answers
from service.service import Service

router = APIRouter(tags=["listings"])


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
        metrics = {name: metric.model_dump() for name, metric in manifest.metrics.items()}
        return stamp, _Said(list(manifest.labels), manifest.description, metrics)


# Not async: it reads files, so FastAPI runs it in a thread.
@router.get(
    "/adapters",
    response_model=AdapterList,
    responses=answers(ADAPTERS_EXAMPLES) | problem_answers(401, 500),
    summary="All adapters, their versions and states",
)
def adapters(request: Request) -> Response:
    service: Service = request.app.state.service
    catalogue: Catalogue = request.app.state.catalogue
    return JSONResponse(
        {
            "base_model": service.settings.base_model,
            "default_adapter": service.settings.default_adapter,
            "adapters": catalogue.entries(service.watch.resident(), service.watch.failed(), service.watch.pinned()),
        }
    )


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
