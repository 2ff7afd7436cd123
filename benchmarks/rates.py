"""Closed loops in turn, compared round by round, and how such figures are shown."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rich.table import Table

from benchmarks.generator import Generator, Sent
from benchmarks.measure import console
from benchmarks.running import Server

_WARM_S = 1.5


@dataclass(frozen=True, slots=True)
class Turns:
    """How often each side has a turn, how long, and with how many requests on their way."""

    rounds: int = 4
    seconds: float = 8.0
    connections: int = 128


@dataclass(frozen=True, slots=True)
class Rates:
    """One side's rates. Ratios are to the first side, within each round.

    Attributes:
        cpu_share: of one core, taken by the generator in the median round.
    """

    best_per_s: float
    median_per_s: float
    best_ratio: float
    ratio: float
    ratio_low: float
    ratio_high: float
    p50_ms: float
    p99_ms: float
    cpu_share: float


def warm(generator: Generator, server: Server, requests: Sequence[bytes]) -> None:
    """Every adapter loaded, every cache filled; a server that was stopped has its clocks back."""
    generator.closed_loop(server.port, requests, connections=8, seconds=_WARM_S)


def closed_loop(generator: Generator, server: Server, requests: Sequence[bytes], turns: Turns) -> Sent:
    return generator.closed_loop(server.port, requests, connections=turns.connections, seconds=turns.seconds)


@contextmanager
def alone(server: Server, servers: Iterable[Server]) -> Iterator[None]:
    """All others stopped for the length of the block."""
    with ExitStack() as stack:
        for other in servers:
            if other is not server:
                stack.enter_context(other.asleep())
        yield


def closed_in_turn(
    sides: Mapping[str, Server], requests: Mapping[str, Sequence[bytes]], generator: Generator, turns: Turns
) -> dict[str, Rates]:
    """Closed loops on every side in each round, the others stopped meanwhile; the first side is what ratios are to."""
    sent: dict[str, list[Sent]] = {name: [] for name in sides}
    for _ in range(turns.rounds):
        for name, server in sides.items():
            with alone(server, sides.values()):
                warm(generator, server, requests[name])
                sent[name].append(closed_loop(generator, server, requests[name], turns))
    for name, runs in sent.items():
        refused = Counter(answer.status for run in runs for answer in run.answers if answer.status != 200)
        if refused:
            console.print(f"[bold red]{name}: answers other than 200: {dict(refused)}[/]")
    return rates_of({name: [run.rate_per_s() for run in runs] for name, runs in sent.items()}, sent)


def rates_of(per_s: Mapping[str, Sequence[float]], sent: Mapping[str, Sequence[Sent]]) -> dict[str, Rates]:
    """
    Args:
        per_s: rates by side, one a round.
        sent: what the generator saw, of the sides that it ran.
    """
    first = next(iter(per_s.values()))
    found = {}
    for name, own in per_s.items():
        ratios = [rate / other for rate, other in zip(own, first, strict=True)]
        runs = sent.get(name, ())
        latencies = [answer.latency_s * 1e3 for run in runs for answer in run.answers if answer.status == 200]
        found[name] = Rates(
            best_per_s=max(own),
            median_per_s=statistics.median(own),
            best_ratio=max(own) / max(first),
            ratio=statistics.median(ratios),
            ratio_low=min(ratios),
            ratio_high=max(ratios),
            p50_ms=quantile(latencies, 0.5),
            p99_ms=quantile(latencies, 0.99),
            cpu_share=statistics.median([run.cpu_share for run in runs]) if runs else 0.0,
        )
    return found


def print_rates(title: str, found: Mapping[str, Rates]) -> None:
    columns = ("side", "best /s", "median /s", "best / best of first", "median ratio", "lowest to highest")
    table = Table(*columns, "p50 ms", "p99 ms", "generator's CPU", title=title)
    for name, side in found.items():
        table.add_row(
            name,
            f"{side.best_per_s:,.0f}",
            f"{side.median_per_s:,.0f}",
            f"{side.best_ratio:.2f}",
            f"{side.ratio:.2f}",
            f"{side.ratio_low:.2f} to {side.ratio_high:.2f}",
            f"{side.p50_ms:,.1f}",
            f"{side.p99_ms:,.1f}",
            f"{side.cpu_share:.0%}",
        )
    console.print(table)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share lies below; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def quantiles_ms(sent: Sent, status: int) -> dict[str, float]:
    latencies = [answer.latency_s * 1e3 for answer in sent.answers if answer.status == status]
    return {f"p{share}": quantile(latencies, share / 100) for share in (50, 95, 99)}


def shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:,.1f}" for name, value in figures.items())
