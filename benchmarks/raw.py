"""The engine alone in a process of its own, with the same settings that the service's worker gives it."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from adapters.store import Registry
from benchmarks.running import SPIN_COUNT
from engine.rows import Answer, Row

_WARM_BATCHES = 1


class RawEngine:
    """Handle on the engine's process; a context manager. Every adapter of the registry is resident in it."""

    def __init__(self, registry: Path) -> None:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # inherited, and there before torch loads
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, mp_context=context, initializer=_load, initargs=(registry,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._process.shutdown(cancel_futures=True)

    def texts_per_s(self, rows: Sequence[Row], *, batch: int, threads: int, seconds: float) -> float:
        """Rows a second in calls of so many rows each, over and over."""
        return self._process.submit(_texts_per_s, list(rows), batch, threads, seconds).result()

    def lone_s(self, rows: Sequence[Row], *, threads: int, rate_per_s: float) -> list[float]:
        """Time of a call for each row alone, one after another at this pace: rests between calls cost caches."""
        return self._process.submit(_lone_s, list(rows), threads, rate_per_s).result()

    def logits(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        """What each row's adapter says of it, each row alone."""
        return self._process.submit(_logits, list(rows)).result()


def _load(registry: Path) -> None:
    from adapters.base_model import find_base_model
    from engine.engine import Engine

    # The process has one job, and functions that are sent to it find their engine here.
    global _engine  # noqa: PLW0603
    _engine = Engine(find_base_model(), capacity=2048)
    store = Registry(registry)
    for adapter in store.ids():
        _engine.attach(_engine.read(store.directory(adapter), adapter))


def _texts_per_s(rows: list[Row], batch: int, threads: int, seconds: float) -> float:
    import torch

    torch.set_num_threads(threads)
    done, at = 0, 0
    started_s = 0.0
    for number in range(1_000_000):
        if number == _WARM_BATCHES:
            started_s = time.perf_counter()
            done = 0
        elif number > _WARM_BATCHES and time.perf_counter() - started_s > seconds:
            break
        part = [rows[(at + offset) % len(rows)] for offset in range(batch)]
        _engine.classify(part)
        at, done = at + batch, done + batch
    return done / (time.perf_counter() - started_s)


def _lone_s(rows: list[Row], threads: int, rate_per_s: float) -> list[float]:
    import torch

    torch.set_num_threads(threads)
    taken = []
    for row in rows:
        time.sleep(1 / rate_per_s)
        started = time.perf_counter()
        _engine.classify([row])
        taken.append(time.perf_counter() - started)
    return taken


def _logits(rows: list[Row]) -> list[tuple[float, ...]]:
    found = []
    for row in rows:
        outcome = _engine.classify([row])[0][0]
        assert isinstance(outcome, Answer), outcome
        found.append(outcome.logits)
    return found
