"""The service under load, over HTTP, from a generator in a process of its own.

Parts:
- `transport`: requests a second with an engine that answers at once, against LitServe's own endpoint.
- `idle`: CPU time of both while nothing is asked.
- `throughput`: texts a second of the service against the engine alone, with as many threads.
- `latency`: what the service adds to the engine's own time at a few requests a second.
- `overload`: twice the rate that can be sustained, what is answered, and how long it takes to come round.
- `rivals`: `infinity-emb` with one merged classifier against the service with 50 adapters.

Sides take turns, each stopped while the other runs; ratios are those within a round.
"""

import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from adapters.base_model import find_base_model
from adapters.reference import AdapterId
from benchmarks import infinity
from benchmarks.generator import Answer, Generator, Sent, post
from benchmarks.made import QUERY_VALUE, make_adapter
from benchmarks.measure import console, stolen_s, write
from benchmarks.rates import (
    Turns,
    alone,
    closed_in_turn,
    closed_loop,
    print_rates,
    quantile,
    quantiles_ms,
    rates_of,
    shown,
    warm,
)
from benchmarks.raw import RawEngine
from benchmarks.running import DidNotStart, Server, running
from engine.encoder import load_encoder
from engine.rows import Row
from service.cores import engine_threads
from service.settings import Settings

_PATH = {"PYTHONPATH": str(Path(__file__).parents[1])}

PARTS = ("transport", "idle", "throughput", "latency", "overload", "rivals")

_NAMES, _WITH_SECOND_VERSION = 50, 10
_TEXTS = 400
_TOLERANCE = 1e-4
_LOW_RATE_PER_S = 5
_SUSTAINED_SHARE = 0.97
_IDLE_WINDOW_S = 2.0
_PROBE_RATE_PER_S, _PROBED_S = 10, 40
_WORDS = ("the", "a", "film", "battery", "service", "quick", "slow", "good", "never", "always", "broke", "at all")


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller of the benchmark can decide.

    Attributes:
        overload_s: length of the overload.
        rival: where the rival's virtual environment is kept; None makes one for this run.
    """

    data: Path | None = None
    turns: Turns = field(default_factory=Turns)
    overload_s: float = 60.0
    idle_s: float = 20.0
    rival: Path | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A registry of made adapters, and requests over it.

    Attributes:
        asked: what each request asks for, in the order of the requests.
    """

    root: Path
    registry: Path
    texts: list[str]
    asked: list[Row]

    def requests(self, *, logits: bool = False) -> list[bytes]:
        return [
            post("/classify", json.dumps({"text": row.text, "logits": logits}).encode(), x_adapter=str(row.adapter))
            for row in self.asked
        ]


def run(parts: Sequence[str] = PARTS, options: Options | None = None) -> None:
    """Measure and print these parts."""
    given = options or Options()
    measures: dict[str, Callable[[Made, Generator, Options], dict[str, Any]]] = {
        "transport": _transport,
        "idle": _idle,
        "throughput": _throughput,
        "latency": _latency,
        "overload": _overload,
        "rivals": _rivals,
    }
    with tempfile.TemporaryDirectory() as place, Generator() as generator:
        made = _make(Path(place), given.data)
        for part in parts:
            stolen, started_s = stolen_s(), time.monotonic()
            report = measures[part](made, generator, given)
            cores_s = (time.monotonic() - started_s) * (os.cpu_count() or 1)
            report["stolen_share"] = (stolen_s() - stolen) / cores_s
            console.print(f"[dim]{part}: the hypervisor took {report['stolen_share']:.0%} of the CPU time[/]")
            write(f"load-{part}", report)


def texts_of(data: Path | None, count: int) -> list[str]:
    """Short texts: film sentences where there are some, else words, as many as film sentences have."""
    chosen = random.Random(4)
    if data is not None:
        lines = (data / "sst2" / "validation.jsonl").read_text().splitlines()
        return chosen.sample([json.loads(line)["text"] for line in lines], k=min(count, len(lines)))
    return [" ".join(chosen.choices(_WORDS, k=max(1, round(math.exp(chosen.gauss(2.8, 0.5)))))) for _ in range(count)]


def _make(root: Path, data: Path | None) -> Made:
    base = find_base_model()
    layout = load_encoder(base, device="cpu", dtype=torch.float32).layout
    ids = [AdapterId(f"a{number:02d}", 1) for number in range(_NAMES)]
    ids += [AdapterId(adapter.name, 2) for adapter in ids[:_WITH_SECOND_VERSION]]
    registry = root / "registry"
    for seed, adapter in enumerate(ids):
        directory = registry / adapter.name / str(adapter.version)
        make_adapter(directory, base, layout, rank=8, targets=QUERY_VALUE, seed=seed)
    texts = texts_of(data, _TEXTS)
    # The exact versions, so that an answer by another one shows; the first text goes to the first adapter.
    asked = [Row(text, ids[at % len(ids)]) for at, text in enumerate(texts)]
    return Made(root, registry, texts, asked)


def _service(made: Made, name: str, *, noop: bool = False, workers: int = 1) -> AbstractContextManager[Server]:
    """Our service, with its own defaults but for the number of workers."""
    module = "benchmarks.noop" if noop else "service"
    environment = _PATH | {"TONEARM_ADAPTERS_DIR": str(made.registry), "TONEARM_DEFAULT_ADAPTER": "a00"}
    environment |= {"TONEARM_WORKERS_PER_DEVICE": f"{workers}"}
    command = ["env", "TONEARM_PORT={port}", sys.executable, "-m", module]
    return running(command, made.root / name, ready="/readyz", environment=environment)


def _stock(made: Made, name: str, options: Sequence[str]) -> AbstractContextManager[Server]:
    command = [sys.executable, "-m", "benchmarks.stock", "--port", "{port}", *options]
    return running(command, made.root / name, ready="/health", environment=_PATH)


# transport, idle


_STOCK_VARIANTS = {
    "batches of 64 within 2 ms": ("--max-batch-size", "64", "--batch-timeout-s", "0.002"),
    "batches of 128 within 10 ms": ("--max-batch-size", "128", "--batch-timeout-s", "0.01"),
    "batches of 64, no wait": ("--max-batch-size", "64", "--batch-timeout-s", "0"),
    "batches of 64 within 2 ms, fast_queue": ("--max-batch-size", "64", "--batch-timeout-s", "0.002", "--fast-queue"),
    "batches of 64 within 2 ms, 2 API servers": (
        *("--max-batch-size", "64", "--batch-timeout-s", "0.002", "--api-servers", "2"),
    ),
}


def _transport(made: Made, generator: Generator, options: Options) -> dict[str, Any]:
    requests = made.requests()
    tried = {}
    for name, variant in _STOCK_VARIANTS.items():
        with _stock(made, "stock-tried", variant) as server:
            short = replace(options.turns, seconds=min(options.turns.seconds, 4.0))
            tried[name] = max(closed_loop(generator, server, requests, short).rate_per_s() for _ in range(2))
        console.print(f"stock LitServe, {name}: {tried[name]:,.0f} requests/s")
    best = max(tried, key=lambda name: tried[name])
    with _service(made, "noop", noop=True) as own, _stock(made, "stock", _STOCK_VARIANTS[best]) as stock:
        sides = {f"LitServe, {best}": stock, "service": own}
        found = closed_in_turn(sides, dict.fromkeys(sides, requests), generator, options.turns)
    print_rates(f"transport: no-op engine, {options.turns.connections} connections", found)
    return {"stock_variants_per_s": tried, "sides": found, "mark": "service / LitServe >= 3"}


def _idle(made: Made, generator: Generator, options: Options) -> dict[str, Any]:
    """CPU time while nothing is asked; the real engine on our side, since that is what idles in production."""
    requests = made.requests()
    shares = {}
    variant = _STOCK_VARIANTS["batches of 64 within 2 ms"]
    for name in ("service", "LitServe"):
        with _service(made, "idle") if name == "service" else _stock(made, "idle", variant) as server:
            # What starts lazily starts with the first requests.
            generator.closed_loop(server.port, requests, connections=4, seconds=1)
            time.sleep(_IDLE_WINDOW_S)
            windows = []
            for _ in range(max(1, round(options.idle_s / _IDLE_WINDOW_S))):
                before_s, started_s = server.cpu_s(), time.monotonic()
                time.sleep(_IDLE_WINDOW_S)
                windows.append((server.cpu_s() - before_s) / (time.monotonic() - started_s))
        # Where the hypervisor stops the machine, whoever was running is charged for the stop: hence the lowest, too.
        shares[name] = {"mean": statistics.mean(windows), "median": statistics.median(windows), "lowest": min(windows)}
        console.print(
            f"idle, {name}: {shares[name]['mean']:.1%} of a core over {options.idle_s:.0f} s; stretches of "
            f"{_IDLE_WINDOW_S:.0f} s: median {shares[name]['median']:.1%}, lowest {shares[name]['lowest']:.1%}"
        )
    return {"idle_share_of_a_core": shares, "mark": "service: mean < 2 %"}


# throughput


def _throughput(made: Made, generator: Generator, options: Options) -> dict[str, Any]:
    requests = made.requests()
    threads = engine_threads()
    batches = sorted({32, options.turns.connections, Settings.model_fields["max_batch_texts"].default})
    rates: dict[str, list[float]] = {f"engine, {threads} thread(s)": [], "service": [], "service, 2 workers": []}
    by_batch: dict[int, list[float]] = {batch: [] for batch in batches}
    sent: dict[str, list[Sent]] = {"service": [], "service, 2 workers": []}
    with ExitStack() as stack:
        engine = stack.enter_context(RawEngine(made.registry))
        servers = {"service": stack.enter_context(_service(made, "throughput"))}
        with servers["service"].asleep():
            servers["service, 2 workers"] = stack.enter_context(_service(made, "throughput-2", workers=2))
        for _ in range(options.turns.rounds):
            with servers["service"].asleep(), servers["service, 2 workers"].asleep():
                part_s = options.turns.seconds / len(batches)
                for batch in batches:
                    by_batch[batch].append(engine.texts_per_s(made.asked, batch=batch, threads=threads, seconds=part_s))
            for name, server in servers.items():
                with alone(server, servers.values()):
                    warm(generator, server, requests)
                    sent[name].append(closed_loop(generator, server, requests, options.turns))
                rates[name].append(sent[name][-1].rate_per_s())
    # The engine's best batch size over all rounds, in every round: the service does not choose what comes at once.
    best = max(batches, key=lambda batch: statistics.median(by_batch[batch]))
    rates[f"engine, {threads} thread(s)"] = by_batch[best]
    found = rates_of(rates, sent)
    print_rates(f"throughput: {_NAMES} adapters, short texts, engine in batches of {best}", found)
    return {"engine_by_batch_per_s": by_batch, "sides": found, "mark": "service / engine >= 0.85, same threads"}


# latency


def _latency(made: Made, generator: Generator, options: Options) -> dict[str, Any]:
    """Per text: the service's latency less the engine's own time for that text, in the same round."""
    wait_s = Settings.model_fields["batch_wait_ms"].default / 1e3
    threads = engine_threads()
    count = max(10, round(options.turns.seconds * _LOW_RATE_PER_S))
    added_ms, split, lateness_ms, own_ms, service_ms = [], [], [], [], []
    with RawEngine(made.registry) as engine, _service(made, "latency") as server:
        for number in range(options.turns.rounds):
            rows = [made.asked[(number * count + at) % len(made.asked)] for at in range(count)]
            with server.asleep():
                own_s = engine.lone_s(rows, threads=threads, rate_per_s=_LOW_RATE_PER_S)
            requests = [
                post("/classify", json.dumps({"text": row.text}).encode(), x_adapter=str(row.adapter)) for row in rows
            ]
            warm(generator, server, requests)
            sent = generator.open_loop(server.port, requests, [(_LOW_RATE_PER_S, count / _LOW_RATE_PER_S)])
            lateness_ms += [late * 1e3 for late in sent.lateness_s()]
            own_ms += [taken * 1e3 for taken in own_s]
            for answer in sent.answers:
                assert answer.status == 200, answer
                stages = _stages(answer.server_timing)
                latency_ms = answer.latency_s * 1e3
                service_ms.append(latency_ms)
                added_ms.append(latency_ms - own_s[answer.request] * 1e3 - wait_s * 1e3)
                split.append(
                    {
                        "before and after the handler": latency_ms - stages["total"],
                        "handler, queues": stages["total"] - stages["queue"] - stages["tokenise"] - stages["forward"],
                        "waiting for the batch": stages["queue"],
                        "tokenise": stages["tokenise"],
                        "forward": stages["forward"],
                        "added, by the same request's own stages": latency_ms
                        - stages["tokenise"]
                        - stages["forward"]
                        - wait_s * 1e3,
                    }
                )
    figures = {
        "service": service_ms,
        "engine alone, same texts and pace": own_ms,
        "added: service - engine - batch wait (mark 4 at p50)": added_ms,
        **{name: [part[name] for part in split] for name in split[0]},
        "generator late": lateness_ms,
    }
    table = Table(
        "ms", "p10", "p50", "p90", "p99", title=f"latency at {_LOW_RATE_PER_S} requests/s, {len(added_ms)} texts"
    )
    found = {}
    for name, values in figures.items():
        found[name] = {f"p{share}": quantile(values, share / 100) for share in (10, 50, 90, 99)}
        table.add_row(name, *(f"{value:.2f}" for value in found[name].values()))
    p50 = found["service"]["p50"] - found["engine alone, same texts and pace"]["p50"] - wait_s * 1e3
    console.print(table)
    console.print(f"p50 of the service - p50 of the engine - batch wait: {p50:.2f} ms")
    return {"ms": found, "p50_difference_ms": p50, "mark": "added p50 <= 4 ms"}


def _stages(server_timing: str) -> dict[str, float]:
    """Milliseconds by stage."""
    pairs = (part.split(";dur=") for part in server_timing.split(", "))
    return {name: float(duration) for name, duration in pairs}


# overload


def _overload(made: Made, generator: Generator, options: Options) -> dict[str, Any]:
    requests = made.requests(logits=True)
    with RawEngine(made.registry) as engine:
        reference = engine.logits(made.asked)
    with _service(made, "overload") as server:
        warm(generator, server, requests)
        most_per_s = closed_loop(generator, server, requests, options.turns).rate_per_s()
        sustained_per_s, quiet = _sustained(generator, server, requests, most_per_s, options.turns.seconds)
        # Probes follow at once, while what is queued is still being answered: that is how the service comes round.
        phases = [(2 * sustained_per_s, options.overload_s), (_PROBE_RATE_PER_S, _PROBED_S)]
        whole = generator.open_loop(server.port, requests, phases)
    sent = whole.between(0, options.overload_s)
    quiet_p95_s = quantile([answer.latency_s for answer in quiet.answers], 0.95)
    late = sent.lateness_s()
    found = {
        "most_per_s": most_per_s,
        "sustained_per_s": sustained_per_s,
        "sustained_p95_ms": quiet_p95_s * 1e3,
        "offered_per_s": len(sent.answers) / options.overload_s,
        # Of all that was answered meanwhile, whenever it was due.
        "answered_per_s": sent.rate_per_s(),
        "statuses": dict(sorted(Counter(str(answer.status) for answer in whole.answers).items())),
        "wrong_answers": _wrong(whole.answers, made.asked, reference),
        "accepted_ms": quantiles_ms(sent, 200),
        "refused_ms": quantiles_ms(sent, 429),
        "full_speed_again_s": _full_speed_again_s(whole, options.overload_s, 2 * quiet_p95_s),
        "generator_late_ms": {"p50": quantile(late, 0.5) * 1e3, "p99": quantile(late, 0.99) * 1e3},
        "generator_cpu_share": whole.cpu_share,
        "mark": "200 and 429 alone, none lost, none wrong, full speed within 5 s",
    }
    again_s = found["full_speed_again_s"]
    statuses = ", ".join(f"{status}: {count:,}" for status, count in found["statuses"].items())
    table = Table(
        "",
        "",
        title=f"overload: {2 * sustained_per_s:,.0f} requests/s for {options.overload_s:.0f} s",
        show_header=False,
    )
    table.add_row("closed loop, most", f"{most_per_s:,.0f} /s")
    table.add_row("sustained in an open loop", f"{sustained_per_s:,.0f} /s, p95 {quiet_p95_s * 1e3:,.0f} ms")
    table.add_row("offered; answered with 200", f"{found['offered_per_s']:,.0f} /s; {found['answered_per_s']:,.0f} /s")
    table.add_row("statuses (0: lost), probes included", statuses)
    table.add_row("wrong adapter or wrong logits", f"{found['wrong_answers']}")
    table.add_row("accepted, ms", shown(found["accepted_ms"]))
    table.add_row("refused, ms", shown(found["refused_ms"]))
    table.add_row("full speed again (mark 5 s)", "not in this time" if again_s is None else f"after {again_s:.0f} s")
    table.add_row("generator late, ms", shown(found["generator_late_ms"]))
    table.add_row("generator's CPU", f"{whole.cpu_share:.0%} of a core")
    console.print(table)
    return found


def _sustained(
    generator: Generator, server: Server, requests: list[bytes], most_per_s: float, seconds: float
) -> tuple[float, Sent]:
    """The highest of some shares of the closed loop's rate at which answers keep up with a Poisson process."""
    for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        rate_per_s = most_per_s * share
        sent = generator.open_loop(server.port, requests, [(rate_per_s, seconds)])
        refused = sum(answer.status != 200 for answer in sent.answers)
        kept_up = sent.rate_per_s() >= _SUSTAINED_SHARE * len(sent.answers) / seconds
        console.print(
            f"[dim]open loop, {rate_per_s:,.0f} /s: {sent.rate_per_s():,.0f} /s answered, {refused} refused, "
            f"p95 {quantile([answer.latency_s for answer in sent.answers], 0.95) * 1e3:,.0f} ms[/]"
        )
        if kept_up and not refused:
            return rate_per_s, sent
    console.print("[bold red]not even that is sustained; the machine is busy with other things[/]")
    return rate_per_s, sent


def _wrong(answers: Sequence[Answer], asked: Sequence[Row], reference: Sequence[tuple[float, ...]]) -> int:
    """Answers by another version than was asked for, or with other logits than that version gives the text alone."""
    wrong = 0
    for answer in answers:
        if answer.status != 200:
            continue
        content = json.loads(answer.body)
        logits, expected = content["logits"].values(), reference[answer.request]
        off = max(abs(own - other) for own, other in zip(logits, expected, strict=True))
        # Not `off > tolerance`: a NaN is wrong, too.
        wrong += content["adapter"] != str(asked[answer.request].adapter) or not off <= _TOLERANCE
    return wrong


def _full_speed_again_s(sent: Sent, overload_s: float, threshold_s: float) -> float | None:
    """From the end of the overload to the first second whose probes are all accepted, half of them this fast."""
    second = overload_s
    while (probes := sent.between(second, second + 1).answers) or sent.started_s + second < sent.ended_s:
        accepted = [probe.latency_s for probe in probes if probe.status == 200]
        if probes and len(accepted) == len(probes) and statistics.median(accepted) <= threshold_s:
            return second - overload_s
        second += 1
    return None


# rivals


def _rivals(made: Made, generator: Generator, options: Options) -> dict[str, Any]:
    try:
        with ExitStack() as stack:
            command = infinity.install(options.rival or made.root / "infinity-emb")
            model = made.root / "merged"
            adapter = made.asked[0].adapter
            infinity.merge(made.registry / adapter.name / str(adapter.version), model)
            rival = stack.enter_context(infinity.serving(command, model, made.root / "rival"))
            with rival.asleep():
                own = stack.enter_context(_service(made, "own"))
            theirs = [
                post("/classify", json.dumps({"model": infinity.MODEL, "input": [text]}).encode())
                for text in made.texts
            ]
            sides = {"infinity-emb, 1 merged classifier": rival, f"service, {_NAMES} adapters": own}
            requests = dict(zip(sides, (theirs, made.requests()), strict=True))
            found = closed_in_turn(sides, requests, generator, options.turns)
    except (infinity.NotInstalled, DidNotStart) as error:
        console.print(f"infinity-emb could not be measured here: {error}", markup=False)
        return {"infinity-emb": f"not measured: {error}"}
    print_rates(f"rivals: same texts, {options.turns.connections} connections", found)
    return {"sides": found}
