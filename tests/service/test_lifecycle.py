"""What an operator does to a service, and the world: keys, overload, a killed worker, a stuck one, SIGTERM."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from adapters.store import Registry
from tests.service.running import ROOT, Service, environment, free_port, run_service

KEY, ADMIN_KEY = "a-caller's-key", "an-administrator's-key"


@pytest.fixture(scope="module")
def guarded(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of its own, with keys, a short queue and a short deadline. The tests run in the order they stand."""
    directory = tmp_path_factory.mktemp("guarded")
    registry = Registry(directory / "registry")
    registry.publish(made["base"], "base")
    registry.publish(made["movies"], "movies")
    settings = {"max_queued_texts": 8, "max_texts_per_request": 8, "request_timeout_s": 8, "drain_delay_s": 0.7}
    with run_service(
        registry, directory, api_keys=f"{KEY},another-key", admin_keys=ADMIN_KEY, log_text=1, **settings
    ) as service:
        service.classify("warm")
        yield service


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def ask(pool: ThreadPoolExecutor, service: Service, count: int) -> list[Future[httpx.Response]]:
    asked = [pool.submit(service.classify, f"text {index}") for index in range(count)]
    deadline = time.monotonic() + 10
    while service.metric("tonearm_queued_rows") < count:
        assert time.monotonic() < deadline
    return asked


@pytest.mark.parametrize(
    "path", ["/classify", "/adapters", "/experiments", "/metrics", "/docs", "/openapi.json", "/", "/nope"]
)
def test_every_route_but_the_probes_wants_a_key(guarded: Service, path: str) -> None:
    method = "POST" if path == "/classify" else "GET"
    for headers in ({}, {"X-API-Key": "not-the-key"}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": KEY[:-1]}):
        response = httpx.request(method, guarded.url + path, headers=headers)
        assert response.status_code == 401
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["WWW-Authenticate"] == "Bearer"
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"bearer {KEY}"}, {"X-API-Key": ADMIN_KEY}):
        assert httpx.request(method, guarded.url + path, headers=headers).status_code != 401


def test_probes_are_open_and_texts_are_logged_when_asked(guarded: Service) -> None:
    assert httpx.get(guarded.url + "/livez").status_code == 200
    assert httpx.get(guarded.url + "/readyz").status_code == 200
    guarded.classify("to be found in the log")
    assert any(line.get("texts") == ["to be found in the log"] for line in guarded.log_lines())


def test_a_full_queue_is_429_for_one_as_for_many(guarded: Service, pool: ThreadPoolExecutor) -> None:
    worker = guarded.worker()
    worker.suspend()
    try:
        waiting = ask(pool, guarded, 8)
        for text in ("one", ["one", "two"]):
            refused = guarded.classify(text)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["Retry-After"]) <= 30
    finally:
        worker.resume()
    assert [future.result().status_code for future in waiting] == [200] * 8
    assert guarded.classify("again").status_code == 200


def test_a_stuck_worker_costs_its_callers_the_deadline_and_no_more(guarded: Service, pool: ThreadPoolExecutor) -> None:
    worker = guarded.worker()
    worker.suspend()
    try:
        late = ask(pool, guarded, 1)[0].result()
    finally:
        worker.resume()
    assert late.status_code == 504
    assert guarded.classify("again").status_code == 200
    assert guarded.metric("tonearm_queued_rows") == 0


def test_a_killed_worker_is_replaced_and_what_it_held_fails_at_once(guarded: Service, pool: ThreadPoolExecutor) -> None:
    worker = guarded.worker()
    worker.suspend()
    waiting = ask(pool, guarded, 6)
    worker.kill()
    killed_s = time.monotonic()
    lost = [future.result() for future in waiting]
    assert time.monotonic() - killed_s < 2
    assert {response.status_code for response in lost} == {503}
    assert {response.json()["type"] for response in lost} == {"urn:tonearm:problem:worker-lost"}
    assert all(int(response.headers["Retry-After"]) >= 1 for response in lost)
    assert guarded.client.get("/readyz").status_code == 503
    refused = guarded.classify("meanwhile")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:tonearm:problem:not-ready")
    assert guarded.client.get("/livez").status_code == 200
    guarded.wait_ready()
    assert guarded.worker().pid != worker.pid
    assert guarded.classify("again", "movies").status_code == 200
    assert guarded.metric("tonearm_workers_lost_total") == 1


def test_sigterm_under_load_loses_no_answer(guarded: Service) -> None:
    processes = guarded.processes()
    run_directories = {path for child in processes for path in _run_directories(child)}
    statuses: list[int] = []
    broken: list[Exception] = []

    def keep_asking() -> None:
        # As a load balancer would: until the service says that it is going.
        with httpx.Client(base_url=guarded.url, timeout=60, headers={"X-API-Key": KEY}) as client:
            while True:
                try:
                    response = client.post("/classify", json={"text": "a text"}, headers={"X-Adapter": "movies"})
                except httpx.TransportError as error:
                    broken.append(error)
                    return
                statuses.append(response.status_code)
                if response.status_code == 503:
                    return

    asking = [threading.Thread(target=keep_asking) for _ in range(6)]
    for thread in asking:
        thread.start()
    deadline = time.monotonic() + 60
    while len(statuses) < 20:
        assert time.monotonic() < deadline and not broken
        time.sleep(0.01)
    # To the whole group, as a terminal or a careless supervisor sends it.
    os.killpg(guarded.process.pid, signal.SIGTERM)
    for thread in asking:
        thread.join(30)
    assert guarded.process.wait(30) == 0
    assert not broken
    assert statuses.count(503) == 6 and statuses.count(200) == len(statuses) - 6 >= 20
    assert not [child for child in processes if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", guarded.port))
    assert run_directories and not any(path.exists() for path in run_directories)


def _run_directories(process: psutil.Process) -> list[Path]:
    found = process.environ().get("PROMETHEUS_MULTIPROC_DIR")
    return [Path(found).parent] if found else []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"host": "0.0.0.0"}, "TONEARM_API_KEYS is '', expected at least one key"),
        ({"port": "eighty"}, "TONEARM_PORT is 'eighty', expected"),
        ({"experiments_file": "nowhere.yaml"}, "TONEARM_EXPERIMENTS_FILE is 'nowhere.yaml', expected"),
        ({"base_model": "."}, "holds no model.safetensors"),
    ],
)
def test_it_does_not_start_and_says_why(
    registry: Registry, tmp_path: Path, settings: dict[str, str], expected: str
) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=tmp_path,
        env=environment(registry.root, **{"port": free_port(), **settings}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 2, process.stderr
    assert expected in process.stderr.splitlines()[-1]


def test_importing_the_api_process_brings_no_torch() -> None:
    code = "import sys, service.app, service.host; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
