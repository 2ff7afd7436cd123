"""What the handlers share: one `Service` an API process, made in main and running after the fork."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import structlog

from adapters.errors import SettingsError
from adapters.store import Registry
from service import metrics
from service.conductor import LOOK_EVERY_S, Conductor
from service.experiments import Experiments
from service.mailbox import Mailbox
from service.run_directory import RunDirectory
from service.settings import PREFIX, Settings
from service.store import Store
from service.watch import Watch

if TYPE_CHECKING:
    from service.tracing import Tracing

_REFUSING_LOOKS = 5
_FLUSH_TIMEOUT_S = 5.0
_SWITCH_INTERVAL_S = 0.0005

log = structlog.get_logger(__name__)


class Service:
    """Settings, and the parts that answer with them."""

    def __init__(self, settings: Settings, run_directory: RunDirectory, worker_ids: range, mailbox: Mailbox) -> None:
        """
        Raises:
            SettingsError: the experiments file is wrong, the database cannot be used, or traces are on and cannot be.
        """
        metrics.configure(settings)
        self.settings = settings
        self.run_directory = run_directory
        self.registry = Registry(settings.adapters_dir)
        self.mailbox = mailbox
        self.watch = Watch(run_directory, worker_ids, mailbox)
        self.experiments = Experiments(settings.experiments_file, self.registry)
        self.store = Store(settings.database_url, settings.retention_days)
        self.store.migrate()
        self.conductor = Conductor(self.experiments, self.store, Registry(settings.adapters_dir))
        self.tracing = _tracing(settings)
        self._parent = os.getpid()
        self._refusing_since_s: float | None = None
        self._refusing_looks = 0

    @asynccontextmanager
    async def running(self, receiver: "asyncio.Task[None]") -> AsyncIterator[None]:
        """Keep watch as long as the API process serves.

        Args:
            receiver: the task that brings replies in.
        """
        # What the workers' messages and the store's thread need of Python's lock must not take 5 ms each time.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self.store.start()
        await asyncio.to_thread(self.conductor.look)  # what was stopped stays stopped from the first request on
        tasks = [asyncio.create_task(self.watch.follow(receiver, self._on_look), name="watch")]
        if self.settings.experiments_file is not None:
            tasks.append(asyncio.create_task(self._conduct(), name="conductor"))
        async with self.tracing.running() if self.tracing is not None else nullcontext():
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
                await asyncio.to_thread(self.store.stop, _FLUSH_TIMEOUT_S)

    async def _conduct(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.conductor.look)
                await asyncio.to_thread(self.conductor.check_splits)
            except Exception:
                # As with the looks below: one that fails must not end the conducting.
                log.exception("conductor_broke")
            await asyncio.sleep(LOOK_EVERY_S)

    def _on_look(self) -> None:
        self.experiments.refresh()
        if self.watch.draining:
            self._refuse_for_a_while()
        if os.getppid() != self._parent:
            log.critical("main_lost")
            self.run_directory.let_go()
            os.kill(os.getpid(), signal.SIGTERM)

    def _refuse_for_a_while(self) -> None:
        """Tell main when the port can close: what closes on a request that was sent but not read yet loses it.

        By this process's own clock and looks, however starved of CPU it is: between two looks every socket is read.
        """
        if self._refusing_since_s is None:
            self._refusing_since_s = time.monotonic()
        self._refusing_looks += 1
        long_enough = time.monotonic() - self._refusing_since_s >= self.settings.drain_delay_s
        if long_enough and self._refusing_looks >= _REFUSING_LOOKS:
            self.run_directory.note_refused()


def _tracing(settings: Settings) -> "Tracing | None":
    """
    Raises:
        SettingsError: OpenTelemetry is not installed, or one of its variables is wrong.
    """
    if settings.traces == "off":
        return None
    try:
        # Imported here: OpenTelemetry is an extra, and costs nothing where it is off.
        from service.tracing import Tracing

        return Tracing(settings.traces)
    except ImportError as error:
        expected = f"off, or pip install 'tonearm[otel]' ({error})"
    except ValueError as error:
        expected = f"OTEL_ variables that can be used ({error})"
    raise SettingsError(f"{PREFIX}TRACES", settings.traces, expected)
