"""What routing by adapter is worth to many replicas: the share of requests whose adapter is in the bank already.

A simulation: each replica keeps the adapters used last, up to its capacity; requests go round, or to the replica that
consistent hashing gives their adapter (rendezvous hashing, Thaler and Ravishankar 1998: as with nginx's and Envoy's
rings, an adapter moves only when its replica goes).
"""

import hashlib
from collections import OrderedDict

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.measure import console, write

CAPACITY = 2048
REPLICAS = (1, 2, 4, 8, 16)
REGISTERED = (1_000, 10_000, 100_000)
_REQUESTS = 200_000


class _Bank:
    """Adapters of one replica, the least recently used first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: OrderedDict[int, None] = OrderedDict()

    def hit(self, adapter: int) -> bool:
        if adapter in self._held:
            self._held.move_to_end(adapter)
            return True
        self._held[adapter] = None
        if len(self._held) > self._capacity:
            self._held.popitem(last=False)
        return False


def run(capacity: int) -> None:
    """Hit rates and balance for every number of replicas and adapters, and what moves when a replica goes."""
    table = Table(
        "adapters",
        "asked for by",
        "replicas",
        "hits, in turn",
        "hits, by adapter",
        "busiest replica",
        title=f"banks of {capacity:,}, {_REQUESTS:,} requests after as many to warm up",
    )
    found = []
    cases = [
        (registered, law, replicas) for registered in REGISTERED for law in ("zipf", "even") for replicas in REPLICAS
    ]
    for registered, law, replicas in track(cases, "simulating", console=Console(stderr=True), transient=True):
        requests = _drawn(registered, law)
        home = homes(registered, replicas)
        in_turn, _ = _simulate(requests, np.arange(len(requests)) % replicas, replicas, capacity)
        by_adapter, load = _simulate(requests, home[requests], replicas, capacity)
        shown = f"{load:.2f} times its share"
        table.add_row(f"{registered:,}", law, str(replicas), f"{in_turn:.3f}", f"{by_adapter:.3f}", shown)
        case = {
            "registered": registered,
            "law": law,
            "replicas": replicas,
            "in_turn": in_turn,
            "by_adapter": by_adapter,
        }
        found.append(case)
    console.print(table)
    moved = {count: float((homes(10_000, count) != homes(10_000, count - 1)).mean()) for count in REPLICAS[1:]}
    for count, share in moved.items():
        console.print(f"one of {count} replicas goes: {share:.1%} of the adapters move (at best {1 / count:.1%})")
    write("replicas", {"capacity": capacity, "cases": found, "moved": moved})


def homes(registered: int, replicas: int) -> np.ndarray:
    """[registered] the replica of each adapter: of all, the one whose hash with it is the highest."""
    scores = np.empty((replicas, registered), dtype=np.uint64)
    names = np.arange(registered, dtype=np.uint64)
    for replica in range(replicas):
        salt = np.uint64(int.from_bytes(hashlib.sha256(f"replica-{replica}".encode()).digest()[:8], "little"))
        mixed = (names + salt) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        scores[replica] = mixed ^ (mixed >> np.uint64(32))
    home: np.ndarray = scores.argmax(axis=0)
    return home


def _drawn(registered: int, law: str) -> np.ndarray:
    draw = np.random.default_rng(0)
    if law == "even":
        return draw.integers(0, registered, 2 * _REQUESTS)
    weights = 1 / np.arange(1, registered + 1) ** 0.99
    return draw.choice(registered, 2 * _REQUESTS, p=weights / weights.sum())


def _simulate(requests: np.ndarray, places: np.ndarray, replicas: int, capacity: int) -> tuple[float, float]:
    """Share of hits in the second half, and the busiest replica's load over the mean."""
    banks = [_Bank(capacity) for _ in range(replicas)]
    half = len(requests) // 2
    hits = 0
    for at, (adapter, place) in enumerate(zip(requests.tolist(), places.tolist(), strict=True)):
        hit = banks[place].hit(adapter)
        hits += hit and at >= half
    loads = np.bincount(places[half:], minlength=replicas)
    return hits / half, float(loads.max() / loads.mean())
