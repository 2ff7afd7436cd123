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
from tests.service.running import ADMIN_KEY, KEY, ROOT, Service, environment, free_port


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def ask(pool: ThreadPoolExecutor, service: Service, requests: int, texts: int = 1) -> list[Future[httpx.Response]]:
    asked = [pool.submit(service.classify, [f"text {index}"] * texts) for index in range(requests)]
    deadline = time.monotonic() + 10
    while service.metric("tonearm_queued_rows") < requests * texts:
        assert time.monotonic() < deadline
    return asked


@pytest.mark.parametrize(
    "path", ["/classify", "/adapters", "/experiments", "/metrics", "/docs", "/openapi.json", "/consoles", "/nope"]
)
def test_every_route_but_the_probes_wants_a_key(service: Service, path: str) -> None:
    method = "POST" if path == "/classify" else "GET"
    for headers in ({}, {"X-API-Key": "not-the-key"}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": KEY[:-1]}):
        response = httpx.request(method, service.url + path, headers=headers)
        assert response.status_code == 401
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["WWW-Authenticate"] == "Bearer"
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"bearer {KEY}"}, {"X-API-Key": ADMIN_KEY}):
        assert httpx.request(method, service.url + path, headers=headers).status_code != 401


def test_probes_and_the_console_are_open(service: Service) -> None:
    assert "Tonearm" in httpx.get(service.url + "/").text
    assert httpx.get(service.url + "/livez").status_code == 200
    assert httpx.get(service.url + "/readyz").status_code == 200


def test_a_full_queue_is_429_for_one_as_for_many(service: Service, pool: ThreadPoolExecutor) -> None:
    worker = service.worker()
    worker.suspend()
    try:
        waiting = ask(pool, service, 6, texts=128)  # all that one adapter may hold of a queue of 1,024
        for text in ("one", ["one", "two"]):
            refused = service.classify(text)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["Retry-After"]) <= 30
        let_in = service.client.post(
            "/classify", json={"text": "one"}, headers={"X-Adapter": "movies", "X-Request-Timeout-Ms": "200"}
        )
        assert let_in.status_code == 504  # another adapter's text waits, as long as it wants to
    finally:
        worker.resume()
    assert [future.result().status_code for future in waiting] == [200] * 6
    assert service.classify("again").status_code == 200


def test_a_stuck_worker_costs_its_callers_the_deadline_and_no_more(service: Service) -> None:
    worker = service.worker()
    worker.suspend()
    try:
        asked_s = time.monotonic()
        late = service.client.post("/classify", json={"text": "late"}, headers={"X-Request-Timeout-Ms": "400"})
        assert 0.4 <= time.monotonic() - asked_s < 5
    finally:
        worker.resume()
    assert (late.status_code, late.json()["detail"]) == (504, "no answer within 0.4 s")
    assert service.classify("again").status_code == 200
    assert service.metric("tonearm_queued_rows") == 0


@pytest.mark.harmful
def test_a_killed_worker_is_replaced_and_what_it_held_fails_at_once(service: Service, pool: ThreadPoolExecutor) -> None:
    earlier = service.metric("tonearm_workers_lost_total")
    worker = service.worker()
    worker.suspend()
    waiting = ask(pool, service, 6)
    worker.kill()
    killed_s = time.monotonic()
    lost = [future.result() for future in waiting]
    assert time.monotonic() - killed_s < 2
    assert {response.status_code for response in lost} == {503}
    assert {response.json()["type"] for response in lost} == {"urn:tonearm:problem:worker-lost"}
    assert all(int(response.headers["Retry-After"]) >= 1 for response in lost)
    assert service.client.get("/readyz").status_code == 503
    refused = service.classify("meanwhile")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:tonearm:problem:not-ready")
    assert service.client.get("/livez").status_code == 200
    service.wait_ready()
    assert service.worker().pid != worker.pid
    assert service.classify("again", "movies").status_code == 200
    assert service.metric("tonearm_workers_lost_total") == earlier + 1


@pytest.mark.harmful
def test_sigterm_under_load_loses_no_answer(service: Service) -> None:
    processes = service.processes()
    run_directories = {path for child in processes for path in _run_directories(child)}
    statuses: list[int] = []
    broken: list[Exception] = []

    def keep_asking() -> None:
        # As a load balancer would: until the service says that it is going.
        with httpx.Client(base_url=service.url, timeout=60, headers={"X-API-Key": KEY}) as client:
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
    os.killpg(service.process.pid, signal.SIGTERM)
    for thread in asking:
        thread.join(30)
    assert service.process.wait(30) == 0
    assert not broken
    assert statuses.count(503) == 6 and statuses.count(200) == len(statuses) - 6 >= 20
    _, alive = psutil.wait_procs(processes, timeout=5)  # on a busy machine the last may still be on its way out
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", service.port))
    assert run_directories and not any(path.exists() for path in run_directories)


def _run_directories(process: psutil.Process) -> list[Path]:
    found = process.environ().get("PROMETHEUS_MULTIPROC_DIR")
    return [Path(found).parent] if found else []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"host": "0.0.0.0"}, "TONEARM_API_KEYS is '', expected at least one key"),
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


def test_a_worker_that_dies_while_it_starts_is_named(registry: Registry, tmp_path: Path) -> None:
    """As one does for which there is too little memory: nobody hears from it, and nobody would wait for it in vain."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service"],
        cwd=tmp_path,
        env=environment(registry.root, port=free_port()),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        deadline = time.monotonic() + 60
        while not (started := [child for child in psutil.Process(process.pid).children() if _is_worker(child)]):
            assert process.poll() is None and time.monotonic() < deadline
        started[0].kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "an inference worker was killed by signal 9 while it started" in errors.splitlines()[-1]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_importing_the_api_process_brings_no_torch() -> None:
    code = "import sys, service.app, service.host; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
