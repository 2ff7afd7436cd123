"""What routing by adapter is worth to many replicas: the share of requests whose adapter is in the bank already.

First a simulation: each replica keeps the adapters used last, up to its capacity; requests go round, or to the replica
that consistent hashing gives their adapter (rendezvous hashing, Thaler and Ravishankar 1998: as with nginx's and
Envoy's rings, an adapter moves only when its replica goes). Then three real replicas behind a real nginx, which hashes
as the ingress component has it: hit rates from the replicas' own metrics, and what a replica that dies costs.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from adapters.base_model import find_base_model
from benchmarks.generator import Generator, Sent, post
from benchmarks.made import QUERY_VALUE, make_adapter
from benchmarks.measure import console, write
from benchmarks.rates import quantile
from benchmarks.running import Server, running
from engine.encoder import load_encoder

CAPACITY = 2048
REPLICAS = (1, 2, 4, 8, 16)
REGISTERED = (1_000, 10_000, 100_000)
_REQUESTS = 200_000

_LIVE_REPLICAS, _LIVE_REGISTERED, _LIVE_CAPACITY = 3, 600, 160
"""As many registered for each place in a bank as a large registry has; small, for three encoders share two cores."""

_CONNECTIONS = 24
_ROOT = Path(__file__).parents[1]


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


def live(seconds: float, rounds: int) -> None:
    """Three services behind nginx, asked for adapters by zipf and evenly; in turn against by adapter, in turns."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        console.print("[yellow]no nginx here (Debian: apt install nginx-light): the real replicas are left out[/]")
        return
    with tempfile.TemporaryDirectory() as place, Generator() as generator, ExitStack() as stack:
        registry = _registry(Path(place))
        servers = [stack.enter_context(_replica(registry, Path(place), number)) for number in range(_LIVE_REPLICAS)]
        found: dict[str, list[dict[str, float]]] = {}
        requests = {law: _posts(law) for law in ("zipf", "even")}
        for _ in range(rounds):
            for hashed in (False, True):
                with _balancer(nginx, Path(place), servers, hashed=hashed) as front:
                    for law, asked in requests.items():
                        generator.closed_loop(front.port, asked, connections=_CONNECTIONS, seconds=seconds)  # warms up
                        name = f"{law}, {'by adapter' if hashed else 'in turn'}"
                        found.setdefault(name, []).append(_measured(generator, front, servers, asked, seconds))
        with _balancer(nginx, Path(place), servers, hashed=True) as front:
            lost = _dying(generator, front, servers[-1], requests["zipf"], seconds)
    _show(found, lost)
    write("replicas-live", {"capacity": _LIVE_CAPACITY, "registered": _LIVE_REGISTERED, "sides": found, "dying": lost})


def _registry(place: Path) -> Path:
    base = find_base_model()
    layout = load_encoder(base, device="cpu", dtype=torch.float32).layout
    for seed in track(range(_LIVE_REGISTERED), "adapters", console=Console(stderr=True), transient=True):
        directory = place / "registry" / f"a{seed}" / "1"
        make_adapter(directory, base, layout, rank=8, targets=QUERY_VALUE, seed=seed)
    return place / "registry"


@contextmanager
def _replica(registry: Path, place: Path, number: int) -> Iterator[Server]:
    environment = {
        "PYTHONPATH": str(_ROOT),
        "TONEARM_ADAPTERS_DIR": str(registry),
        "TONEARM_DEFAULT_ADAPTER": "a0",
        "TONEARM_MAX_RESIDENT_ADAPTERS": str(_LIVE_CAPACITY),
        # What is not in the bank comes from the disk: this is about the bank.
        "TONEARM_HOST_CACHE_MB": "0",
        "TONEARM_CPU_THREADS": "1",
        "TONEARM_DATABASE_URL": f"sqlite:///{place}/replica-{number}.db",
    }
    command = ["env", "TONEARM_PORT={port}", sys.executable, "-m", "service"]
    with running(command, place / f"replica-{number}", ready="/readyz", environment=environment) as server:
        yield server


@contextmanager
def _balancer(nginx: str, place: Path, servers: Sequence[Server], *, hashed: bool) -> Iterator[Server]:
    """nginx before the replicas. The hash and the retries are those of `k8s/components/ingress-by-adapter`."""
    upstreams = "".join(f"server 127.0.0.1:{server.port} max_fails=1 fail_timeout=2s; " for server in servers)
    how = "hash $http_x_adapter$http_x_unit_id consistent;" if hashed else ""
    config = place / "nginx.conf"
    kinds = "".join(
        f"{kind}_temp_path {place}/nginx-{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        "daemon off; worker_processes 1; error_log stderr crit; pid nginx.pid; events { worker_connections 512; }\n"
        f"http {{ access_log off; {kinds}\n"
        f"upstream replicas {{ {how} {upstreams} keepalive 64; }}\n"
        "server { listen 127.0.0.1:PORT; client_max_body_size 4m; location / { proxy_pass http://replicas;\n"
        'proxy_http_version 1.1; proxy_set_header Connection "";\n'
        "proxy_next_upstream error timeout http_503 non_idempotent; } } }\n"
    )
    start = f"sed 's/PORT/{{port}}/' {config} > {config}.used && exec {nginx} -p {place} -c {config}.used"
    with running(["sh", "-c", start], place / "nginx", ready="/livez") as front:
        yield front


def _posts(law: str) -> list[bytes]:
    texts = ("a stirring, funny and finally transporting film", "the battery died after two days", "meh")
    adapters = _drawn(_LIVE_REGISTERED, law)[:20_000]
    return [
        post("/classify", json.dumps({"text": texts[at % len(texts)]}).encode(), x_adapter=f"a{adapter}")
        for at, adapter in enumerate(adapters.tolist())
    ]


def _measured(
    generator: Generator, front: Server, servers: Sequence[Server], requests: Sequence[bytes], seconds: float
) -> dict[str, float]:
    before = [_loads(server) for server in servers]
    sent = generator.closed_loop(front.port, requests, connections=_CONNECTIONS, seconds=seconds)
    loads = sum(_loads(server) - earlier for server, earlier in zip(servers, before, strict=True))
    latencies = [answer.latency_s * 1e3 for answer in sent.answers if answer.status == 200]
    return {
        "hits": 1 - loads / len(latencies),
        "per_s": sent.rate_per_s(),
        "p50_ms": quantile(latencies, 0.5),
        "p99_ms": quantile(latencies, 0.99),
        "refused": float(len(sent.answers) - len(latencies)),
    }


def _loads(server: Server) -> float:
    lines = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=30).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("tonearm_adapter_loads_total"))


def _dying(
    generator: Generator, front: Server, victim: Server, requests: Sequence[bytes], seconds: float
) -> dict[str, float]:
    """One replica is killed in the middle of the traffic; what callers saw of it."""

    def kill() -> None:
        time.sleep(seconds / 2)
        os.killpg(victim.process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    sent: Sent = generator.closed_loop(front.port, requests, connections=_CONNECTIONS, seconds=seconds)
    killer.join()
    statuses = Counter(answer.status for answer in sent.answers)
    slowest = max((answer.latency_s for answer in sent.answers if answer.status == 200), default=0.0)
    return {"answered": statuses[200], "others": sum(statuses.values()) - statuses[200], "slowest_s": slowest}


def _show(found: dict[str, list[dict[str, float]]], lost: dict[str, float]) -> None:
    table = Table(
        *("side", "hits", "requests/s", "p50 ms", "p99 ms", "not 200"),
        title=f"{_LIVE_REPLICAS} replicas behind nginx, {_LIVE_REGISTERED} adapters, banks of {_LIVE_CAPACITY}",
    )
    for name, turns in found.items():
        shown = [_spread([turn[key] for turn in turns], digits) for key, digits in (("hits", 3), ("per_s", 0))]
        shown += [_spread([turn[key] for turn in turns], 0) for key in ("p50_ms", "p99_ms")]
        table.add_row(name, *shown, f"{sum(turn['refused'] for turn in turns):.0f}")
    console.print(table)
    console.print(
        f"a replica killed under load: {lost['answered']:,.0f} answered, {lost['others']:,.0f} not, "
        f"slowest {lost['slowest_s']:.2f} s"
    )


def _spread(values: list[float], digits: int) -> str:
    low, high = min(values), max(values)
    middle = sorted(values)[len(values) // 2]
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


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
