"""The longer proofs: adapters that come and go under load, killed processes, signals, memory. `make soak`."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from adapters.base_model import BaseModelFiles
from adapters.reference import AdapterId
from adapters.store import Registry
from benchmarks.made import QUERY_VALUE, make_adapter
from engine.engine import Engine
from engine.rows import Answer, Row
from tests.service.load import Answered, Asked, Load
from tests.service.running import ROOT, Service, environment, free_port, run_service

pytestmark = pytest.mark.soak

TEXTS = [
    "meh",
    "a fine film",
    "The train leaves at nine from platform four.",
    "nobody answered my mail for two days, and then the battery died",
    "",
    "字字字 🙂",
    "word " * 20,
    "It was on time for once; I could hardly believe it myself, and neither could the driver, who waved at everybody.",
]
Logits = tuple[tuple[float, ...], ...]
"""Of every text."""


class Maker:
    """Makes adapter directories, and says which logits each must give: a plain engine's that serves one at a time."""

    def __init__(self, root: Path, base: BaseModelFiles) -> None:
        self._root, self._base, self._engine = root, base, Engine(base, capacity=1)
        self._made: dict[int, tuple[Path, Logits]] = {}

    def __call__(self, seed: int) -> tuple[Path, Logits]:
        if seed not in self._made:
            adapter = AdapterId(f"made-{seed}", 1)
            directory = make_adapter(
                self._root / adapter.name,
                self._base,
                self._engine.layout,
                rank=1 + seed % 4,
                targets=QUERY_VALUE,
                seed=seed,
            )
            self._engine.attach(self._engine.read(directory, adapter))
            outcomes, _ = self._engine.classify([Row(text, adapter) for text in TEXTS])
            self._engine.detach(adapter)
            logits = tuple(outcome.logits for outcome in outcomes if isinstance(outcome, Answer))
            assert len(logits) == len(TEXTS)
            self._made[seed] = directory, logits
        return self._made[seed]


@pytest.fixture(scope="module")
def make(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("soak-made"), base)


def published(make: Maker, root: Path, adapters: int) -> tuple[Registry, dict[str, Logits]]:
    """A registry of so many adapters, and the logits of each version in it."""
    registry, truth = Registry(root / "registry"), {}
    for at in range(adapters):
        directory, logits = make(at)
        truth[str(registry.publish(directory, f"a{at}"))] = logits
    return registry, truth


def questions(names: list[str], seed: int) -> Iterator[Asked]:
    """Texts for adapters by chance, for ever."""
    chance = random.Random(seed)
    while True:
        yield Asked(chance.choice(names), tuple(chance.choices(range(len(TEXTS)), k=chance.randint(1, 4))))


def check(answered: Answered, truth: dict[str, Logits]) -> None:
    """The logits are those of the very version that the answer names, and that one was asked for."""
    assert len(answered.items) == len(answered.asked.texts)
    for text, item in zip(answered.asked.texts, answered.items, strict=True):
        name, _, wanted = (answered.asked.adapter or "").partition("@")
        assert item["adapter"].partition("@")[0] == name
        if wanted.isdigit():
            assert item["adapter"] == answered.asked.adapter
        assert list(item["logits"].values()) == pytest.approx(truth[item["adapter"]][text], abs=1e-4)


class Churn:
    """Publishes, changes versions, moves aliases and removes, by chance; knows what every version must answer."""

    def __init__(self, registry: Registry, truth: dict[str, Logits], make: Maker) -> None:
        self.registry, self.truth, self.make = registry, truth, make
        self.chance = random.Random(1)
        self.live = {name: [1] for name in registry.names()}
        self.removed: set[str] = set()
        """Versions that are gone or about to go."""
        self.aliases: dict[str, int] = {}
        self.done: Counter[str] = Counter()
        self._seeds = itertools.cycle(range(100))
        self._new = itertools.count(len(self.live))

    def change(self) -> None:
        kind = self.chance.choices(("new version", "new name", "removal", "alias"), (40, 10, 40, 10))[0]
        name = self.chance.choice([name for name, versions in self.live.items() if versions])
        if kind == "new name":
            self._publish(f"a{next(self._new)}")
        elif kind == "new version":
            self._publish(name)
        elif kind == "alias":
            version = self.chance.choice(self.live[name])
            self.aliases[name] = version
            self.registry.set_alias(name, "champion", version)
        else:
            removable = [known for known in self.live[name] if known != self.aliases.get(name)]
            # A name loses its last version now and then, but not so often that most questions end in a 404.
            if not removable or (len(self.live[name]) == 1 and self.chance.random() < 0.8):
                kind = "new version"
                self._publish(name)
            else:
                version = self.chance.choice(removable)
                self.removed.add(f"{name}@{version}")
                self.live[name].remove(version)
                self.registry.remove(AdapterId(name, version))
        self.done[kind] += 1

    def _publish(self, name: str) -> None:
        directory, logits = self.make(next(self._seeds))
        adapter = self.registry.publish(directory, name)
        assert str(adapter) not in self.truth, "a version's number is given once"
        self.truth[str(adapter)] = logits
        self.live.setdefault(name, []).append(adapter.version)

    def questions(self) -> Iterator[Asked]:
        chance = random.Random(2)
        while True:
            name = chance.choice(list(self.live))
            kinds = [name, name, f"{name}@{chance.choice(self.live[name] or [1])}"]
            if chance.random() < 0.2:
                kinds.append(f"{name}@1")  # which may be gone
            if name in self.aliases:
                kinds.append(f"{name}@champion")
            yield Asked(chance.choice(kinds), tuple(chance.choices(range(len(TEXTS)), k=chance.randint(1, 4))))


def test_churn(make: Maker, tmp_path: Path) -> None:
    """10,000 requests beside 200 changes of the registry: never a wrong answer, never a 5xx."""
    registry, truth = published(make, tmp_path, 50)
    assert len({make(seed)[1] for seed in range(100)}) == 100
    churn = Churn(registry, truth, make)
    settings = {"max_resident_adapters": 32, "default_adapter": "a0"}
    with run_service(registry, tmp_path, **settings) as service:
        load = Load(service, TEXTS, connections=8)

        async def run() -> None:
            async with load.running(itertools.islice(churn.questions(), 10_000)):
                for at in range(200):
                    await load.at(at * 48)
                    await asyncio.to_thread(churn.change)

        started_s = time.monotonic()
        asyncio.run(run())
        took_s = time.monotonic() - started_s
        assert len(load.answered) == 10_000
        statuses = Counter(answered.status for answered in load.answered)
        assert set(statuses) <= {200, 404}, statuses
        for answered in load.answered:
            if answered.status == 200:
                check(answered, truth)
            else:
                name = (answered.asked.adapter or "").partition("@")[0]
                assert any(gone.startswith(f"{name}@") for gone in churn.removed), answered
        loads = service.metric("tonearm_adapter_loads_total", outcome="loaded")
        print(f"\nchurn: {dict(statuses)} in {took_s:.0f} s, {dict(churn.done)}, {loads:.0f} loads")
        assert statuses[200] > 8_000
        for name, versions in churn.live.items():
            for version in versions:
                assert service.classify(["meh"], f"{name}@{version}", logits=True).status_code == 200
        for gone in churn.removed:
            assert service.classify(["meh"], gone).status_code == 404


def test_a_worker_killed_again_and_again(make: Maker, tmp_path: Path) -> None:
    registry, truth = published(make, tmp_path, 8)
    with run_service(registry, tmp_path, default_adapter="a0") as service:
        names, rounds = registry.names(), 5
        for round_ in range(rounds):
            load = Load(service, TEXTS, connections=12)

            async def run(load: Load = load, round_: int = round_) -> None:
                async with load.running(questions(names, seed=round_)):
                    await load.at(150)
                    await asyncio.sleep(0.1 * round_)
                    await asyncio.to_thread(lambda: service.worker().kill())
                    await asyncio.sleep(1)
                    load.stop()

            asyncio.run(run())
            statuses = Counter(answered.status for answered in load.answered)
            print(f"\nkilled: {dict(statuses)}, slowest {max(answered.took_s for answered in load.answered):.2f} s")
            assert set(statuses) <= {200, 503}, statuses
            assert statuses[503] >= 1
            for answered in load.answered:
                assert answered.took_s < 5, answered
                if answered.status == 200:
                    check(answered, truth)
                else:
                    kind = answered.body["type"].rpartition(":")[2]
                    assert kind in ("worker-lost", "not-ready")
            service.wait_ready(60)
            after = Load(service, TEXTS, connections=4)

            async def ask(after: Load = after, round_: int = round_) -> None:
                async with after.running(itertools.islice(questions(names, seed=100 + round_), 100)):
                    pass

            asyncio.run(ask())
            assert after.count(200) == 100
            for answered in after.answered:
                check(answered, truth)
        assert service.metric("tonearm_workers_lost_total") == rounds


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run, given a few seconds to be gone."""
    return [process for process in psutil.wait_procs(processes, timeout=5)[1] if process.is_running()]


def test_sigterm_under_load(make: Maker, tmp_path: Path) -> None:
    """Whatever was taken is answered; the load stops where it is refused."""
    registry, truth = published(make, tmp_path, 8)
    with run_service(registry, tmp_path, default_adapter="a0", drain_delay_s=1, drain_timeout_s=20) as service:
        processes = service.processes()
        load = Load(service, TEXTS, connections=24)

        async def run() -> None:
            async with load.running(questions(registry.names(), seed=3), until_refused=True):
                await load.at(200)
                service.process.send_signal(signal.SIGTERM)

        asyncio.run(run())
        signalled_s = time.monotonic()
        assert service.process.wait(21) == 0
        statuses = Counter(answered.status for answered in load.answered)
        print(f"\nSIGTERM: {dict(statuses)}, over after {time.monotonic() - signalled_s:.1f} s")
        assert not [answered.error for answered in load.answered if answered.error is not None]
        assert set(statuses) == {200, 503} and statuses[503] == 24
        for answered in load.answered:
            if answered.status == 200:
                check(answered, truth)
            else:
                assert answered.body["type"].endswith(":not-ready")
        assert not alive(processes)


@pytest.mark.parametrize("after_s", [0.2, 1.5, 3, 5])
def test_sigterm_while_it_starts(make: Maker, tmp_path: Path, after_s: float) -> None:
    registry, _ = published(make, tmp_path, 2)
    with (tmp_path / "log").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "--port", str(free_port())],
            cwd=ROOT,
            env=environment(registry.root, default_adapter="a0"),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    time.sleep(after_s)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    # Before the handler is there, Python ends by the signal itself.
    assert process.wait(20) in (0, -signal.SIGTERM), (tmp_path / "log").read_text()[-2000:]
    assert not alive([*started, *session(process.pid)])


def session(leader: int) -> list[psutil.Process]:
    """Every process of a session, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                found.append(process)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def test_a_killed_api_process_ends_the_whole_service(make: Maker, tmp_path: Path) -> None:
    registry, _ = published(make, tmp_path, 2)
    with run_service(registry, tmp_path, default_adapter="a0") as service:
        processes = service.processes()
        api_process(service).kill()
        assert service.process.wait(30) == 1
        assert not alive([*processes, *session(service.process.pid)])
        assert any(line.get("event") == "api_process_lost" for line in service.log_lines())


def api_process(service: Service) -> psutil.Process:
    """The process that answers: it alone has connections of the client's."""
    service.client.get("/livez")
    for process in service.processes():
        connections = process.net_connections()
        if any(at.status == psutil.CONN_ESTABLISHED and at.laddr.port == service.port for at in connections):
            return process
    raise AssertionError("no process holds the client's connection")


def test_memory_does_not_grow(make: Maker, tmp_path: Path) -> None:
    """20,000 requests, and at least 200 loads that each evict another adapter."""
    registry, truth = published(make, tmp_path, 60)
    settings = {"max_resident_adapters": 8, "host_cache_mb": 2, "default_adapter": "a0"}
    with run_service(registry, tmp_path, **settings) as service:
        worker, api = service.worker(), api_process(service)
        names = registry.names()

        def serve(requests: int, seed: int) -> None:
            # Few adapters at a time, so that most requests find theirs resident.
            chance = random.Random(seed)
            for _ in range(requests // 250):
                load = Load(service, TEXTS, connections=8)
                some = questions(chance.sample(names, 6), seed=chance.randrange(2**30))

                async def run(load: Load = load, some: Iterator[Asked] = some) -> None:
                    async with load.running(itertools.islice(some, 250)):
                        pass

                asyncio.run(run())
                assert load.count(200) == 250
                check(load.answered[-1], truth)

        # What is met for the first time is kept: labels of metrics, torch's workspaces for each shape.
        serve(5_000, seed=1)
        before = {process: process.memory_info().rss / 2**20 for process in (worker, api)}
        loads = service.metric("tonearm_adapter_loads_total", outcome="loaded")
        started_s = time.monotonic()
        serve(20_000, seed=2)
        took_s = time.monotonic() - started_s
        loads = service.metric("tonearm_adapter_loads_total", outcome="loaded") - loads
        grown = {process: process.memory_info().rss / 2**20 - before[process] for process in (worker, api)}
        sizes = [f"{name} {before[of]:.0f} MiB {grown[of]:+.1f}" for name, of in (("worker", worker), ("API", api))]
        print(f"\nmemory: {', '.join(sizes)}, {loads:.0f} loads, 20,000 requests in {took_s:.0f} s")
        assert loads >= 200
        assert grown[worker] < 40 and grown[api] < 15
