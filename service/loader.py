"""The worker's side thread: reads adapters from disk and looks at the registry, so that no batch waits for either."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from adapters.errors import VerificationError
from adapters.reference import AdapterId
from adapters.store import Registry
from adapters.verify import Adapter

LOOK_EVERY_S = 1.0

Stamp = tuple[int, ...]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A directory that was read, or the reason why it must not be served.

    Attributes:
        stamp: the registry's stamp of the files, taken before they were read.
    """

    id: AdapterId
    stamp: Stamp
    result: Adapter | VerificationError
    read_s: float


@dataclass(frozen=True, slots=True)
class Look:
    """What the registry held at one moment.

    Attributes:
        newest: the newest version of every name.
        stamps: of the adapters that the worker keeps in mind; () means gone.
    """

    newest: tuple[AdapterId, ...]
    stamps: dict[AdapterId, Stamp]


class Loader(threading.Thread):
    """Reads one adapter at a time, each at most once however often it is asked for meanwhile."""

    def __init__(self, registry: Registry, read: Callable[[Path, AdapterId], Adapter]) -> None:
        """
        Args:
            registry: used by this thread alone from now on.
            read: the engine's `read`; raises VerificationError.
        """
        super().__init__(name="loader", daemon=True)
        self._registry = registry
        self._read = read
        self._wanted: queue.SimpleQueue[AdapterId] = queue.SimpleQueue()
        self._loaded: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._look: Look | None = None
        self._in_mind: frozenset[AdapterId] = frozenset()
        self.loading: set[AdapterId] = set()
        """Asked for and not yet taken; only the worker's main thread touches it."""

    def request(self, adapter: AdapterId) -> None:
        if adapter not in self.loading:
            self.loading.add(adapter)
            self._wanted.put(adapter)

    def take_loaded(self) -> Loaded | None:
        """The next adapter that was read, without waiting."""
        try:
            loaded = self._loaded.get_nowait()
        except queue.Empty:
            return None
        self.loading.discard(loaded.id)
        return loaded

    def take_look(self) -> Look | None:
        """The latest look at the registry, once each."""
        look, self._look = self._look, None
        return look

    def keep_in_mind(self, adapters: frozenset[AdapterId]) -> None:
        """Whose stamps the next looks report."""
        self._in_mind = adapters

    def run(self) -> None:
        next_look_s = 0.0
        while True:
            if time.monotonic() >= next_look_s:
                self._look_around()
                next_look_s = time.monotonic() + LOOK_EVERY_S
            try:
                adapter = self._wanted.get(timeout=max(0.0, next_look_s - time.monotonic()))
            except queue.Empty:
                continue
            self._loaded.put(self._load(adapter))

    def _look_around(self) -> None:
        try:
            self._look = Look(
                tuple(self._registry.newest()), {adapter: self._registry.stamp(adapter) for adapter in self._in_mind}
            )
        except OSError as error:
            # A registry on a network disk can be away for a while; what is resident serves on.
            log.warning("registry_unreadable", error=repr(error))

    def _load(self, adapter: AdapterId) -> Loaded:
        stamp = self._registry.stamp(adapter)
        started_s = time.monotonic()
        result: Adapter | VerificationError
        try:
            result = self._read(self._registry.directory(adapter), adapter)
        except VerificationError as error:
            result = error
        except Exception as error:
            # Not a check that failed but a check that broke: as much a reason not to serve, and worth a look.
            log.exception("load_broke", adapter=str(adapter))
            result = VerificationError(str(adapter), "load", "a readable adapter", f"{type(error).__name__}: {error}")
        return Loaded(adapter, stamp, result, time.monotonic() - started_s)
