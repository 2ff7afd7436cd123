"""Thousands of registered adapters through the worker's own turns: throughput, latency, loads and memory.

The registry holds 10,000 adapters throughout; what differs is how many of them the traffic asks for, and how evenly.
Sides take turns of a few seconds in one process, and every ratio is to the side with 5 adapters in the same round.
"""

import itertools
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import structlog
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from adapters.base_model import BaseModelFiles, find_base_model
from adapters.manifest import MANIFEST, BaseReference, GoldenExample, LoraShape, Manifest, digest_files, write_manifest
from adapters.reference import AdapterId
from adapters.store import Registry
from benchmarks.made import QUERY_VALUE, make_adapter, token_ids
from benchmarks.measure import console, in_turn, write
from engine.engine import Engine
from engine.rows import Answer, Row
from service.messages import Envelope, Job, Reply
from service.run_directory import RunDirectory
from service.settings import Settings
from service.worker import Worker

_OUTSTANDING = 32
_TURN_S = 4.0
_DISTINCT_WEIGHTS = 50
_GOLDEN = ("a stirring, funny and finally transporting film", "the battery died after two days")
_WORDS = (
    "the",
    "a",
    "film",
    "battery",
    "service",
    "quick",
    "slow",
    "good",
    "never",
    "always",
    "broke",
    "not",
    "at all",
)


@dataclass
class Side:
    """Traffic over some of the adapters, and what became of it."""

    name: str
    adapters: list[AdapterId]
    weights: list[float]
    rows_per_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)


class Traffic:
    """A closed loop around a worker: so many rows are always on their way, each a request of its own."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._inbox: list[Envelope] = []
        self._sent_s: dict[int, float] = {}
        self._done: list[tuple[int, Reply]] = []
        self._ids = itertools.count()
        self._random = random.Random(5)

    def turn(self) -> None:
        self.worker.turn(self._receive, self._send)

    def ask(self, adapter: AdapterId) -> None:
        text = " ".join(self._random.choices(_WORDS, k=self._random.randint(8, 28)))
        now_s = time.monotonic()
        job = Job(next(self._ids), now_s + 600, (Row(text, adapter),))
        self._sent_s[job.id] = now_s
        self._inbox.append(Envelope(0, now_s, (job,)))

    def answers(self) -> list[float]:
        """Latencies of what was answered since the last call, in seconds."""
        done, self._done = self._done, []
        now_s = time.monotonic()
        for _, reply in done:
            assert all(isinstance(outcome, Answer) for outcome in reply.outcomes), reply.outcomes
        return [now_s - self._sent_s.pop(job) for job, _ in done]

    def run(self, side: Side, seconds: float) -> None:
        started_s, answered = time.monotonic(), 0
        for adapter in self._random.choices(side.adapters, side.weights, k=_OUTSTANDING):
            self.ask(adapter)
        while time.monotonic() - started_s < seconds:
            self.turn()
            latencies = self.answers()
            answered += len(latencies)
            side.latencies_s += latencies
            for adapter in self._random.choices(side.adapters, side.weights, k=len(latencies)):
                self.ask(adapter)
        side.rows_per_s.append(answered / (time.monotonic() - started_s))
        while self._sent_s:
            self.turn()
            self.answers()

    def _receive(self, timeout_s: float) -> Envelope | None:
        if self._inbox:
            return self._inbox.pop(0)
        time.sleep(timeout_s)
        return None

    def _send(self, response_queue_id: int, replies: list[Reply]) -> None:
        self._done += [(reply.job_id, reply) for reply in replies]


def fill(registry: Registry, base: BaseModelFiles, engine: Engine, count: int) -> list[AdapterId]:
    """So many verified adapters, r=8 on query and value; of a few distinct weights, which share their files' blocks."""
    ids: list[AdapterId] = []
    originals: list[tuple[Path, Manifest]] = []
    for number in track(range(count), "making adapters", console=Console(stderr=True), transient=True):
        adapter = AdapterId(f"team-{number:05d}", 1)
        directory = registry.root / adapter.name / "1"
        ids.append(adapter)
        if number < _DISTINCT_WEIGHTS:
            make_adapter(directory, base, engine.layout, rank=8, targets=QUERY_VALUE, seed=number)
            engine.attach(engine.read(directory, adapter))
            outcomes, _ = engine.classify([Row(text, adapter) for text in _GOLDEN])
            engine.detach(adapter)
            golden = tuple(
                GoldenExample(text=text, logits=outcome.logits)
                for text, outcome in zip(_GOLDEN, outcomes, strict=True)
                if isinstance(outcome, Answer)
            )
            manifest = Manifest(
                name=adapter.name,
                version=1,
                created="2026-01-01T00:00:00+00:00",
                base=BaseReference(id=base.id, revision=base.revision, sha256=base.sha256),
                labels=("negative", "positive"),
                max_tokens=128,
                truncation_side="right",
                lora=LoraShape(rank=8),
                golden=golden,
                files=digest_files(directory),
            )
            write_manifest(directory, manifest)
            originals.append((directory, manifest))
            continue
        source, manifest = originals[number % _DISTINCT_WEIGHTS]
        directory.mkdir(parents=True)
        for file in source.iterdir():
            if file.name != MANIFEST:
                os.link(file, directory / file.name)
        write_manifest(directory, manifest.model_copy(update={"name": adapter.name}))
    return ids


def run(registered: int = 10_000, capacity: int = 2048, rounds: int = 5) -> None:
    """Measure and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    base = find_base_model()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    with tempfile.TemporaryDirectory() as place:
        registry = Registry(Path(place) / "registry")
        registry.root.mkdir()
        engine = Engine(base, capacity=capacity)
        ids = fill(registry, base, engine, registered)
        report: dict[str, Any] = {"cold load": _cold_loads(engine, registry, ids[:200])}
        report["look"] = _look(registry)
        settings = Settings(adapters_dir=registry.root, default_adapter=ids[0].name, max_resident_adapters=capacity)
        traffic = Traffic(Worker(0, "cpu", engine, settings, RunDirectory(Path(place))))
        traffic.worker.start()
        below = min(2000, capacity, registered)
        sides = [
            _side("5", ids, 5, zipf=False),
            _side("100 zipf", ids, 100, zipf=True),
            _side(f"{below:,} zipf", ids, below, zipf=True),
            _side(f"{below:,} uniform", ids, below, zipf=False),
            _side(f"{registered:,} zipf", ids, registered, zipf=True),
            _side(f"{registered:,} uniform", ids, registered, zipf=False),
        ]
        before_bytes = psutil.Process().memory_info().rss
        _warm(traffic, engine, ids[:below])
        grown = psutil.Process().memory_info().rss - before_bytes
        report["memory"] = {
            "resident": len(engine.resident),
            "bank_bytes_per_adapter": engine.bytes_per_adapter(),
            "process_bytes_per_adapter": grown / below,
        }
        report["batches"] = _batches(engine, ids[:below])
        report["stall"] = _stall(traffic, ids[:5], ids[-50:])
        # First the sides that fit, all of which stay resident, then those that do not: in the same rounds, the second
        # would push out what the first then spend their turns to load again.
        fitting = [side for side in sides if len(side.adapters) <= below]
        beyond = [_side("5", ids, 5, zipf=False), *(side for side in sides if side not in fitting)]
        for title, group in (("within capacity", fitting), ("beyond capacity", beyond)):
            for _ in track(range(rounds), "rounds", console=Console(stderr=True), transient=True):
                for side in group:
                    traffic.run(side, _TURN_S)
            report[title] = _print_sides(group, title)
        engine.check_integrity()
    write("residency", report)


def _side(name: str, ids: list[AdapterId], count: int, *, zipf: bool) -> Side:
    return Side(name, ids[:count], [1 / (rank + 1) if zipf else 1.0 for rank in range(count)])


def _cold_loads(engine: Engine, registry: Registry, ids: list[AdapterId]) -> dict[str, float]:
    """Every check of an adapter whose files are in the page cache, and its way into the bank."""
    taken = []
    for adapter in ids:
        started = time.perf_counter()
        engine.attach(engine.read(registry.directory(adapter), adapter))
        taken.append(time.perf_counter() - started)
        engine.detach(adapter)
    found = {"p50_ms": statistics.median(taken) * 1e3, "best_ms": min(taken) * 1e3}
    console.print(f"cold load, verified, of {len(ids)}: p50 {found['p50_ms']:.1f} ms, best {found['best_ms']:.1f} ms")
    return found


def _look(registry: Registry) -> dict[str, float]:
    list(registry.newest())
    taken = []
    for _ in range(9):
        started = time.perf_counter()
        list(registry.newest())
        taken.append(time.perf_counter() - started)
    found = {"p50_ms": statistics.median(taken) * 1e3, "best_ms": min(taken) * 1e3}
    console.print(f"a look at the registry: p50 {found['p50_ms']:.0f} ms, best {found['best_ms']:.0f} ms")
    return found


def _warm(traffic: Traffic, engine: Engine, ids: list[AdapterId]) -> None:
    for first in track(range(0, len(ids), 50), "first loads", console=Console(stderr=True), transient=True):
        part = ids[first : first + 50]
        for adapter in part:
            traffic.ask(adapter)
        while not set(part) <= set(engine.resident):
            traffic.turn()
    while traffic._sent_s:
        traffic.turn()
        traffic.answers()


def _batches(engine: Engine, ids: list[AdapterId]) -> dict[str, Any]:
    """The engine alone on batches of 32 texts of 32 tokens, all resident: does it matter how many others are?"""
    chosen = random.Random(9)
    rows = token_ids(32, 32).tolist()
    weights = [1 / (rank + 1) for rank in range(len(ids))]
    slots = {
        "5": [engine.slot(adapter) for adapter in chosen.choices(ids[:5], k=32)],
        f"{len(ids):,} zipf": [engine.slot(adapter) for adapter in chosen.choices(ids, weights, k=32)],
        f"{len(ids):,} uniform": [engine.slot(adapter) for adapter in chosen.choices(ids, k=32)],
    }
    calls = {name: (lambda own=own: engine.forward(rows, own)) for name, own in slots.items()}
    found = in_turn(calls, rounds=16, what="batches")
    for name, side in found.items():
        console.print(
            f"batch of 32 over {name}: best {side.best_ms:.1f} ms, {1 / side.best_ratio:.2f} of the speed of 5"
        )
    return found


def _stall(traffic: Traffic, warm: list[AdapterId], cold: list[AdapterId]) -> dict[str, float]:
    """Latency of lone warm requests, one after another, without loads and while 50 adapters load."""
    found: dict[str, list[float]] = {"quiet": [], "loading": []}
    for name, taken in found.items():
        if name == "loading":
            for adapter in cold:
                traffic.worker._loader.request(adapter)
        for number in range(400):
            if name == "loading" and not traffic.worker._loader.loading:
                break
            started = time.perf_counter()
            traffic.ask(warm[number % len(warm)])
            while traffic._sent_s:
                traffic.turn()
                traffic.answers()
            taken.append(time.perf_counter() - started)
    result = {"rows_while_loading": float(len(found["loading"]))}
    for name, taken in found.items():
        ordered = sorted(taken)
        for share, label in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (1.0, "max")):
            result[f"{name}_{label}_ms"] = ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3
    console.print(
        "lone warm requests: "
        + "; ".join(
            f"{name} p50 {result[f'{name}_p50_ms']:.1f}, p90 {result[f'{name}_p90_ms']:.1f}, "
            f"p99 {result[f'{name}_p99_ms']:.1f}, max {result[f'{name}_max_ms']:.1f} ms"
            for name in found
        )
    )
    return result


def _print_sides(sides: list[Side], title: str) -> dict[str, dict[str, float]]:
    table = Table(
        "traffic over",
        "rows/s",
        "best",
        "ratio to 5",
        "10 % to 90 %",
        "p50 ms",
        "p99 ms",
        title=f"traffic {title}, {_OUTSTANDING} rows on their way",
    )
    found = {}
    for side in sides:
        ratios = sorted(own / five for own, five in zip(side.rows_per_s, sides[0].rows_per_s, strict=True))
        ordered = sorted(side.latencies_s)
        found[side.name] = {
            "rows_per_s": statistics.median(side.rows_per_s),
            "best_rows_per_s": max(side.rows_per_s),
            "ratio": statistics.median(ratios),
            "p50_ms": ordered[len(ordered) // 2] * 1e3,
            "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
        }
        table.add_row(
            side.name,
            f"{found[side.name]['rows_per_s']:.0f}",
            f"{found[side.name]['best_rows_per_s']:.0f}",
            f"{found[side.name]['ratio']:.2f}",
            f"{ratios[len(ratios) // 10]:.2f} to {ratios[-1 - len(ratios) // 10]:.2f}",
            f"{found[side.name]['p50_ms']:.0f}",
            f"{found[side.name]['p99_ms']:.0f}",
        )
    console.print(table)
    return found
