"""The worker's side thread: looks at the registry, and reads, proves and attaches adapters while batches run.

registry -> host cache or disk (every check) -> the bank's spare slot -> golden logits -> resident
"""

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass

import structlog

from adapters.errors import BankFull, TonearmError, VerificationError
from adapters.reference import AdapterId
from adapters.store import Registry
from adapters.verify import Adapter
from engine.engine import Engine
from service.run_directory import ResidentAdapter

LOOK_EVERY_S = 1.0

_LOOK_SHARE = 0.05
"""Largest share of the time spent looking: with very many adapters a look takes long, and comes less often then."""

Stamp = tuple[int, ...]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter that is resident now, or the reason why it is not.

    Attributes:
        stamp: the registry's stamp of the files, taken before they were read; () where there are none.
        read_s, attach_s: wall-clock time of the two halves of a load.
    """

    id: AdapterId
    stamp: Stamp
    result: ResidentAdapter | TonearmError
    read_s: float = 0.0
    attach_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """What the registry held at one moment.

    Attributes:
        newest: the newest version of every name.
        stamps: of the adapters that the worker keeps in mind; () means gone.
    """

    newest: tuple[AdapterId, ...]
    stamps: dict[AdapterId, Stamp]


class HostCache:
    """Adapters that were read and checked, in the host's memory: those evicted from the bank come back from here."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[AdapterId, tuple[Stamp, Adapter]] = OrderedDict()  # least recently used first
        self.bytes = 0

    def get(self, adapter: AdapterId, stamp: Stamp) -> Adapter | None:
        """What was read while the files had this stamp."""
        kept = self._kept.get(adapter)
        if kept is None or kept[0] != stamp:
            return None
        self._kept.move_to_end(adapter)
        return kept[1]

    def put(self, stamp: Stamp, adapter: Adapter) -> None:
        before = self._kept.pop(adapter.id, None)
        self.bytes += adapter.bytes - (before[1].bytes if before else 0)
        self._kept[adapter.id] = (stamp, adapter)
        while self.bytes > self._max_bytes:
            _, (_, gone) = self._kept.popitem(last=False)
            self.bytes -= gone.bytes


class Loader(threading.Thread):
    """Loads one adapter at a time, each once however often it is asked for meanwhile; what callers wait for first."""

    def __init__(self, registry: Registry, engine: Engine, cache_bytes: int) -> None:
        """
        Args:
            registry: used by this thread alone from now on.
            cache_bytes: size of the host cache.
        """
        super().__init__(name="loader", daemon=True)
        self._registry = registry
        self._engine = engine
        self._cache = HostCache(cache_bytes)
        self._wake = threading.Condition()
        self._asked: OrderedDict[AdapterId, None] = OrderedDict()
        self._ahead: OrderedDict[AdapterId, None] = OrderedDict()
        self._anew: set[AdapterId] = set()
        self._loaded: deque[Loaded] = deque()
        self._look: Look | None = None
        self._in_mind: frozenset[AdapterId] = frozenset()
        self.loading: set[AdapterId] = set()
        """Asked for and not yet taken; only the worker's main thread touches it."""

    def request(self, adapter: AdapterId, *, ahead: bool = False, anew: bool = False) -> None:
        """Ask for an adapter.

        Args:
            ahead: nobody waits for it yet, so it comes after those that somebody waits for.
            anew: read and check its files again, whatever the host cache holds.
        """
        with self._wake:
            if anew:
                self._anew.add(adapter)
            if adapter in self.loading and (ahead or adapter not in self._ahead):
                return
            self.loading.add(adapter)
            self._ahead.pop(adapter, None)
            (self._ahead if ahead else self._asked)[adapter] = None
            self._wake.notify()

    def take_loaded(self) -> Loaded | None:
        """The next load that is over, without waiting."""
        if not self._loaded:
            return None
        loaded = self._loaded.popleft()
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
            started_s = time.monotonic()
            if started_s >= next_look_s:
                self._look_around()
                now_s = time.monotonic()
                next_look_s = now_s + max(LOOK_EVERY_S, (now_s - started_s) / _LOOK_SHARE)
            adapter, awaited = self._next(next_look_s - time.monotonic())
            if adapter is not None:
                self._loaded.append(self._load(adapter, awaited))

    def _next(self, timeout_s: float) -> tuple[AdapterId | None, bool]:
        with self._wake:
            self._wake.wait_for(lambda: self._asked or self._ahead, max(0.0, timeout_s))
            awaited = bool(self._asked)
            wanted = self._asked or self._ahead
            return (wanted.popitem(last=False)[0] if wanted else None), awaited

    def _look_around(self) -> None:
        try:
            self._look = Look(
                tuple(self._registry.newest()), {adapter: self._registry.stamp(adapter) for adapter in self._in_mind}
            )
        except OSError as error:
            # A registry on a network disk can be away for a while; what is resident serves on.
            log.warning("registry_unreadable", error=repr(error))

    def _load(self, adapter: AdapterId, awaited: bool) -> Loaded:
        stamp = self._registry.stamp(adapter)
        started_s = time.monotonic()
        try:
            read = None if adapter in self._anew else self._cache.get(adapter, stamp)
            self._anew.discard(adapter)
            if read is None:
                read = self._engine.read(self._registry.directory(adapter), adapter)
                self._cache.put(stamp, read)
            read_s = time.monotonic() - started_s
            self._engine.attach(read, awaited=awaited)
        except (VerificationError, BankFull) as error:
            return Loaded(adapter, self._unless_gone(adapter, stamp), error)
        except Exception as error:
            stamp = self._unless_gone(adapter, stamp)
            if stamp:
                # Not a check that failed but a check that broke: as much a reason not to serve, and worth a look.
                log.exception("load_broke", adapter=str(adapter))
            reason = f"{type(error).__name__}: {error}"
            return Loaded(adapter, stamp, VerificationError(str(adapter), "load", "a readable adapter", reason))
        attach_s = time.monotonic() - started_s - read_s
        return Loaded(adapter, stamp, ResidentAdapter(read.labels, read.verified), read_s, attach_s)

    def _unless_gone(self, adapter: AdapterId, stamp: Stamp) -> Stamp:
        """Removed while it was read, an adapter is unknown and not refused."""
        return stamp if self._registry.stamp(adapter) else ()
