"""Fair timing on a noisy machine: all sides in one process, in turn, compared round by round."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

_REST_S = 0.3
RESULTS = Path("runs/benchmarks")
console = Console(width=150)


@dataclass(frozen=True, slots=True)
class Side:
    """One side's times. Ratios are to the first side.

    Attributes:
        median_ms, best_ms: of a call.
        best_ratio: of the best times: on a machine that stops for longer than a call takes, the one to read.
        ratio, ratio_low, ratio_high: median, 10th and 90th percentile of the ratios within each round, so that drift
            cancels out.
    """

    median_ms: float
    best_ms: float
    best_ratio: float
    ratio: float
    ratio_low: float
    ratio_high: float


def in_turn(sides: Mapping[str, Callable[[], Any]], *, rounds: int, what: str) -> dict[str, Side]:
    """Time every side once a round; the first side is what the others are compared with.

    Each call comes after a rest and an untimed one: a container with a CPU quota runs freely only for a while, and
    threads and caches that have slept are slow at first.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in track(range(rounds), what, console=Console(stderr=True), transient=True):
        for name, call in sides.items():
            time.sleep(_REST_S)
            call()
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    reference = next(iter(times.values()))
    result = {}
    for name, taken in times.items():
        ratios = sorted(own / base for own, base in zip(taken, reference, strict=True))
        result[name] = Side(
            median_ms=statistics.median(taken) * 1e3,
            best_ms=min(taken) * 1e3,
            best_ratio=min(taken) / min(reference),
            ratio=statistics.median(ratios),
            ratio_low=ratios[len(ratios) // 10],
            ratio_high=ratios[-1 - len(ratios) // 10],
        )
    return result


def matmul_flops_per_s(rows: int, d_in: int, d_out: int, *, rounds: int = 20) -> float:
    """The machine's own speed at one fp32 matrix product of this shape, in floating-point operations a second."""
    a, b = torch.randn(rows, d_in), torch.randn(d_in, d_out)
    taken = []
    for _ in range(rounds):
        time.sleep(_REST_S / 3)
        torch.mm(a, b)
        started = time.perf_counter()
        torch.mm(a, b)
        taken.append(time.perf_counter() - started)
    return 2 * rows * d_in * d_out / min(taken)


def device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write(name: str, content: dict[str, Any]) -> None:
    """Write a measurement as JSON and say where."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"device": device(), **content}, indent=2, default=_plain) + "\n")
    console.print(f"[dim]{path}[/]")


def _plain(value: Any) -> Any:
    return asdict(value)
