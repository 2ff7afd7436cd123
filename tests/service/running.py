"""A real service in processes of its own, on a free port, over a registry made for the tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from adapters.store import Registry
from tests.factory import AdapterShape

ROOT = Path(__file__).parents[2]
KEY, ADMIN_KEY = "a-caller's-key", "an-administrator's-key"
START_TIMEOUT_S = 120  # torch and the base load on whatever else runs on the machine

SHAPES = {
    "base": AdapterShape(seed=8, targets="dummy-target-modules"),
    "movies": AdapterShape(seed=1),
    "tone": AdapterShape(labels=("negative", "neutral", "positive"), rank=2, seed=2),
    "short": AdapterShape(seed=9, rank=5, max_tokens=12, truncation_side="left"),
}

EXPERIMENTS = """
- name: movies-2026-12
  salt: v1
  arms:
    - {name: control, adapter: base, weight: 50}
    - {name: treatment, adapter: movies, weight: 50}
"""


@dataclass
class Service:
    """A running service, as a caller and as its operator see it."""

    process: subprocess.Popen[bytes]
    url: str
    port: int
    registry: Registry
    log: Path
    client: httpx.Client

    def classify(self, text: str | list[str], adapter: str | None = None, **body: Any) -> httpx.Response:
        headers = {} if adapter is None else {"X-Adapter": adapter}
        return self.client.post("/classify", json={"text": text, **body}, headers=headers)

    def workers(self) -> list[psutil.Process]:
        """The inference workers' processes."""
        return [child for child in self.processes() if "spawn_main" in " ".join(child.cmdline())]

    def worker(self) -> psutil.Process:
        """The inference worker's process."""
        (found,) = self.workers()
        return found

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready within {timeout_s} s: {self.log.read_text()[-4000:]}")

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that carry these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            found = line.startswith(name) and line[len(name)] in " {"
            if found and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def log_lines(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(registry: Path, **settings: Any) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TONEARM_")}
    given = {f"TONEARM_{key.upper()}": str(value) for key, value in settings.items()}
    return {**inherited, "TONEARM_ADAPTERS_DIR": str(registry), "PYTHONPATH": str(ROOT), **given}


@contextmanager
def run_service(registry: Registry, directory: Path, **settings: Any) -> Iterator[Service]:
    """Start a service, and see to it that none of its processes outlives the block."""
    port, log = free_port(), directory / "service.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "--port", str(port)],
            cwd=directory,
            env=environment(registry.root, **settings),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    keys = str(settings.get("api_keys", "")).split(",")[0]
    headers = {"Authorization": f"Bearer {keys}"} if keys else {}
    with httpx.Client(base_url=url, timeout=60, headers=headers) as client:
        service = Service(process, url, port, registry, log, client)
        try:
            service.wait_ready()
            yield service
        finally:
            stop(service)


def stop(service: Service) -> None:
    if service.process.poll() is None:
        service.process.send_signal(signal.SIGTERM)
        try:
            service.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait()
            raise
