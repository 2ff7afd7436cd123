"""Two workers on one CPU: each with a bank of its own, and nobody can tell which one answered."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from adapters.store import Registry
from tests.factory import TEXTS
from tests.service.running import START_TIMEOUT_S, Service, run_service


@pytest.fixture(scope="module")
def two(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("two")
    registry = Registry(directory / "registry")
    for name in ("base", "movies", "tone"):
        registry.publish(made[name], name)
    with run_service(registry, directory, workers_per_device=2) as running:
        # Ready is the service with the first of them; these tests are about both.
        deadline = time.monotonic() + START_TIMEOUT_S
        while running.metric("tonearm_worker_up") < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        yield running


def ask_all(service: Service, adapter: str) -> list[list[float]]:
    def ask(text: str) -> list[float]:
        found = service.classify(text, adapter, logits=True).json()
        return list(found["logits"].values())

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(ask, TEXTS * 10))


def test_both_answer_alike(two: Service) -> None:
    workers = two.workers()
    assert len(workers) == 2
    before = [sum(worker.cpu_times()[:2]) for worker in workers]
    answers = ask_all(two, "movies")
    for at, logits in enumerate(answers):
        assert logits == pytest.approx(answers[at % len(TEXTS)], abs=1e-4)
    spent = [sum(worker.cpu_times()[:2]) - at for worker, at in zip(workers, before, strict=True)]
    assert min(spent) > 0.05, spent
    assert two.metric("tonearm_worker_up") == 2


def test_orders_and_publishes_reach_both(two: Service, made: dict[str, Path]) -> None:
    unloaded = two.client.post("/adapters/tone/unload").json()
    assert unloaded["state"] == "registered"
    assert two.client.post("/adapters/tone/pin").json() == unloaded | {"state": "resident", "pinned": True}
    two.registry.publish(made["short"], "tone")
    assert len(ask_all(two, "tone@2")) == len(TEXTS) * 10


@pytest.mark.harmful
def test_one_is_killed(two: Service) -> None:
    victim, survivor = two.workers()
    victim.kill()
    victim.wait(10)
    deadline_s = time.monotonic() + 10
    while two.metric("tonearm_workers_lost_total") < 1:  # what is asked before that may fail with it
        assert time.monotonic() < deadline_s
        time.sleep(0.05)

    def keep_asking() -> int:
        return two.classify(TEXTS[0], "movies").status_code

    two.wait_ready()
    with ThreadPoolExecutor(8) as pool:
        assert {future.result() for future in [pool.submit(keep_asking) for _ in range(60)]} == {200}
    assert survivor.is_running() and survivor.status() != psutil.STATUS_ZOMBIE
    assert httpx.get(f"{two.url}/livez").status_code == 200
