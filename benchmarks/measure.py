"""Fair timing on a noisy machine: all sides in one process, in turn, compared round by round."""

import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

_REST_S = 0.3
_ATTEMPTS = 3
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
        undisturbed: share of the times during which the hypervisor took no CPU time away.
    """

    median_ms: float
    best_ms: float
    best_ratio: float
    ratio: float
    ratio_low: float
    ratio_high: float
    undisturbed: float


def stolen_s() -> float:
    """CPU time that the hypervisor has given to others since boot, all CPUs together; 0 where it isn't told."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else 0.0


def timed(call: Callable[[], Any]) -> tuple[float, bool]:
    """Seconds of one call, and whether no CPU time was stolen meanwhile.

    The call comes after a rest and an untimed one: threads and caches that have slept are slow at first. A time that
    was disturbed is taken again, a few times; the shortest is kept if none was undisturbed.
    """
    shortest = float("inf")
    for _ in range(_ATTEMPTS):
        time.sleep(_REST_S)
        call()
        stolen = stolen_s()
        started = time.perf_counter()
        call()
        taken = time.perf_counter() - started
        if stolen_s() == stolen:
            return taken, True
        shortest = min(shortest, taken)
    return shortest, False


def in_turn(sides: Mapping[str, Callable[[], Any]], *, rounds: int, what: str) -> dict[str, Side]:
    """Time every side once a round; the first side is what the others are compared with."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    undisturbed: Counter[str] = Counter()
    for _ in track(range(rounds), what, console=Console(stderr=True), transient=True):
        for name, call in sides.items():
            taken, clean = timed(call)
            times[name].append(taken)
            undisturbed[name] += clean
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
            undisturbed=undisturbed[name] / rounds,
        )
    return result


def matmul_flops_per_s(rows: int, d_in: int, d_out: int, *, rounds: int = 8) -> float:
    """The machine's own speed at one fp32 matrix product of this shape, in floating-point operations a second."""
    a, b = torch.randn(rows, d_in), torch.randn(d_in, d_out)
    best = min(timed(lambda: torch.mm(a, b))[0] for _ in range(rounds))
    return 2 * rows * d_in * d_out / best


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
