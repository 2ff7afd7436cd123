"""`python -m benchmarks.noop`: the service as it is, with an engine that answers at once; what is left is transport.

Settings come from the environment, as always.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adapters.reference import AdapterId
from engine.rows import Answer, BatchStats, Outcome, Report, Row

_ANSWER = Answer(("negative", "positive"), (-2.0, 2.0), (0.018, 0.982), 11, False)


class _Loaded(NamedTuple):
    """What the loader asks of an adapter that was read."""

    id: AdapterId
    labels: tuple[str, ...] = _ANSWER.labels
    verified: bool = False
    bytes: int = 0


class NoopEngine:
    """Has every adapter it is given, and one answer for every row."""

    capacity = 65536
    pinned: frozenset[AdapterId] = frozenset()

    def __init__(self) -> None:
        self._resident: dict[AdapterId, None] = {}

    @property
    def resident(self) -> tuple[AdapterId, ...]:
        return tuple(self._resident)

    def read(self, directory: Path, adapter: AdapterId) -> _Loaded:
        return _Loaded(adapter)

    def attach(self, adapter: _Loaded, *, awaited: bool = False) -> None:
        self._resident[adapter.id] = None

    def detach(self, adapter: AdapterId) -> None:
        self._resident.pop(adapter, None)

    def release(self, adapter: AdapterId) -> None:
        pass

    def classify(self, rows: Sequence[Row], report: Report | None = None) -> tuple[list[Outcome], BatchStats]:
        outcomes: list[Outcome] = [_ANSWER] * len(rows)
        stats = BatchStats(len(rows), 1, 11 * len(rows), 11 * len(rows), 0.0, 0.0)
        if report is not None:
            report(list(enumerate(outcomes)), stats)
        return outcomes, stats


def _build_worker(worker_id: int, device: str, settings: Any, run_directory: Any) -> Any:
    from service.worker import Worker

    return Worker(worker_id, device, NoopEngine(), settings, run_directory)  # type: ignore[arg-type]


# The worker is spawned, and there this module is imported again under this name before anything of the service runs.
if __name__ == "__mp_main__":
    from service import host

    host._build_worker = _build_worker

if __name__ == "__main__":
    from service.serve import serve
    from service.settings import read_settings

    sys.exit(serve(read_settings()))
