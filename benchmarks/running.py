"""Servers to be measured, each in processes of its own on a free port, over a registry made for measuring."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

_START_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 40
_LOG_SHOWN_CHARACTERS = 2000

SPIN_COUNT = "200000"
"""As `service/serve.py` sets it for its workers: every side that computes gets the same."""


class DidNotStart(Exception):
    """A server ended, or was not ready in time; with the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        main = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
        return sum(own.user + own.system for own in times)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Stopped for the length of the block: a side that waits for its turn must not cost the other one CPU."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)


@contextmanager
def running(
    command: Sequence[str], directory: Path, *, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a server, wait until it is ready, and see to it that none of its processes outlives the block.

    Args:
        command: `{port}` in it is replaced.
        directory: where its log goes.
        ready: path that answers 200 when it is.

    Raises:
        DidNotStart: with the end of its log.
    """
    port = _free_port()
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "server.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TONEARM_")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            env={"GOMP_SPINCOUNT": SPIN_COUNT, **inherited, **(environment or {})},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_ready(process, f"http://127.0.0.1:{port}{ready}", log)
        yield Server(process, port)
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise DidNotStart(f"ended with {process.returncode}: {log.read_text()[-_LOG_SHOWN_CHARACTERS:]}")
        try:
            if httpx.get(url, timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise DidNotStart(f"not ready within {_START_TIMEOUT_S} s: {log.read_text()[-_LOG_SHOWN_CHARACTERS:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to its main process, then SIGKILL to the whole group: stock LitServe leaves orphans otherwise."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
