"""Main: settings -> run directory -> LitServe -> drain."""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import structlog

from adapters.errors import TonearmError
from service.logs import configure_logs
from service.run_directory import RunDirectory
from service.settings import Settings

if TYPE_CHECKING:
    from service.host import TonearmServer

log = structlog.get_logger(__name__)


def serve(settings: Settings) -> int:
    """Serve until a signal; returns the exit status.

    Raises:
        TonearmError: it cannot start, and why.
    """
    configure_logs(settings.log_level)
    from service.head import BoundedHead

    with _run_directory() as run_directory:
        server = _build(settings, run_directory)
        drain = Drain(server, settings, run_directory)
        drain.install()
        try:
            server.run(
                host=settings.host,
                port=settings.port,
                num_api_servers=1,
                log_level=settings.log_level,
                generate_client_file=False,
                log_config=None,
                access_log=False,
                http=BoundedHead,
            )
        except RuntimeError as error:
            _kill_children()
            raise TonearmError("; ".join(run_directory.start_errors()) or str(error)) from error
        return drain.exit_status


@contextmanager
def _run_directory() -> Iterator[RunDirectory]:
    root = Path(tempfile.mkdtemp(prefix="tonearm-"))
    try:
        run_directory = RunDirectory(root)
        run_directory.metrics.mkdir()
        # Before torch loads, in the workers that inherit it: endless spinning costs dear on busy cores, and sleeping at
        # once a third of a small batch's time (docs/decisions/0004).
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", "200000")
        # Before the first import of prometheus_client, here and (inherited) in every other process.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(run_directory.metrics)
        yield run_directory
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _build(settings: Settings, run_directory: RunDirectory) -> "TonearmServer":
    # Imported here: both import prometheus_client.
    from service.app import furnish
    from service.host import TonearmServer
    from service.service import Service

    server = TonearmServer(settings, run_directory)
    furnish(server.app, Service(settings, run_directory, server.worker_ids, server.mailbox))
    return server


class Drain:
    """Ends the service on SIGTERM or SIGINT without losing an answer; a second signal ends it at once.

    readyz turns, new work is refused -> a pause in which that gets about -> the port closes, answers still due go
    out -> workers leave.
    """

    def __init__(self, server: "TonearmServer", settings: Settings, run_directory: RunDirectory) -> None:
        self._server = server
        self._settings = settings
        self._run_directory = run_directory
        self._main = os.getpid()
        self._begun = False
        self.exit_status = 0

    def install(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        threading.Thread(target=self._watch_api_processes, name="api-watch", daemon=True).start()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        # Forked processes inherit this handler; what they are to do about signals is main's to say.
        if os.getpid() != self._main:
            return
        if self._begun:
            _leave(128 + signum)
        self._begin()

    def _begin(self) -> None:
        self._begun = True
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        log.info("draining")
        self._run_directory.start_draining()
        if not self._server.listening:
            _leave(self.exit_status)
        self._wait_refused()
        self._run_directory.let_go()
        # From a thread: LitServe's monitor must see it before any worker is gone, or it would start another.
        self._server._shutdown_event.set()

    def _wait_refused(self) -> None:
        """Wait for the API process to say that new work has been refused long enough, as long as it lives."""
        deadline_s = time.monotonic() + self._settings.drain_delay_s + self._settings.drain_timeout_s
        while not self._run_directory.refused and time.monotonic() < deadline_s:
            if wait([process.sentinel for process in self._server.api_processes], timeout=0.05):
                return

    def _watch_api_processes(self) -> None:
        """LitServe never notices that its HTTP process died; nobody could reach the service then."""
        while not self._server.listening:
            time.sleep(0.1)
        wait([process.sentinel for process in self._server.api_processes])
        if not self._begun:
            log.critical("api_process_lost")
            self.exit_status = 1
            self._begin()


def _kill_children() -> None:
    for child in multiprocessing.active_children():
        child.kill()


def _leave(status: int) -> None:
    """Out, now: without exit handlers, which would wait for the workers."""
    _kill_children()
    shutil.rmtree(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).parent, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
