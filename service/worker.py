"""The inference worker: one process a device, one turn a batch.

    messages -> waiting rows -> (adapter not resident: parked while it loads) -> batch -> outcomes -> replies

The worker pulls: it looks at the registry and brings its bank in line with it, nobody tells it what to load. Nothing
that is wrong with a row, an adapter or a forward pass ends it: each becomes the outcome of the rows it concerns.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from adapters.errors import (
    AdapterError,
    BankFull,
    CallerGone,
    DeadlineExceeded,
    InferenceFailed,
    UnknownAdapter,
    VerificationError,
)
from adapters.reference import AdapterId, parse_reference, read_id
from adapters.store import Registry
from engine.engine import Engine
from engine.rows import Answer, BatchStats, Outcome, Report, Row
from service import metrics
from service.admission import estimated_tokens
from service.loader import Loaded, Loader, Look, Stamp
from service.messages import Envelope, Job, Reply, Timings, Withdrawal
from service.run_directory import Order, ResidentAdapter, RunDirectory, WorkerStatus
from service.settings import Settings
from service.turns import Turns

IDLE_TICK_S = 0.25
"""Longest sleep on the empty queue. A worker killed in it may take one last message with it within this time."""

_REPLY_EVERY_S = 0.02
_LOADING_TICK_S = 0.005
_SWITCH_INTERVAL_S = 0.0001
_HEARTBEAT_EVERY_S = 1.0
_STATUS_EVERY_S = 0.1
"""Shortest time between two statuses: with thousands resident, one takes milliseconds to write."""

_MOST_AHEAD = 64
"""Adapters loaded before anybody asks for them, at most, at a look."""

_NO_TIME = Timings(0, 0, 0)

Receive = Callable[[float], Envelope | None]
"""Waits up to so many seconds for a message."""

Send = Callable[[int, list[Reply]], None]
"""Sends replies to an API process, by its response queue."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _OpenJob:
    """A job until its last row is done."""

    job: Job
    response_queue_id: int
    sent_s: float
    outcomes: list[Outcome | None]
    left: int
    timings: Timings = _NO_TIME
    withdrawn: bool = False
    shadows: dict[int, Answer] = field(default_factory=dict)
    """By row: what the job's shadow said of it."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One row of an open job."""

    at: int
    open: _OpenJob
    tokens: int

    @property
    def row(self) -> Row:
        return self.open.job.rows[self.at]

    @property
    def adapter(self) -> AdapterId:
        return self.row.adapter


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why an adapter is not served, valid as long as its files keep their stamp."""

    stamp: Stamp
    error: VerificationError


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the worker remembers of an adapter in its bank, beside the engine's own."""

    stamp: Stamp
    shown: ResidentAdapter


class Worker:
    """State of one worker; `turn` is called for ever."""

    def __init__(
        self, worker_id: int, device: str, engine: Engine, settings: Settings, run_directory: RunDirectory
    ) -> None:
        self._worker_id = worker_id
        self._device = device
        self._engine = engine
        self._settings = settings
        self._run_directory = run_directory
        self._first = parse_reference(settings.default_adapter).name
        self._aliases = Registry(settings.adapters_dir)
        self._loader = Loader(Registry(settings.adapters_dir), engine, settings.host_cache_mb * 2**20)
        self._waiting: Turns[_Item] = Turns()
        self._open_jobs: dict[tuple[int, int], _OpenJob] = {}
        """By response queue and job: each API process counts its own."""
        self._parked: dict[AdapterId, list[_Item]] = {}
        self._resident: dict[AdapterId, _Facts] = {}
        self._failed: dict[AdapterId, _Failure] = {}
        self._done: list[_OpenJob] = []
        self._fresh: set[AdapterId] = set()
        """Loaded because rows wait for them; they may make room once those rows have run."""
        self._newest: frozenset[AdapterId] = frozenset()
        self._orders: deque[Order] = deque()
        self._orders_stamp = 0
        self._heard = self._begun = self._obeyed = 0
        self._pinned_by_order: frozenset[AdapterId] = frozenset()
        self._pinned_by_setting: frozenset[AdapterId] = frozenset()
        self._pinned_absent: str | None = None
        self._starting: set[AdapterId] | None = None
        """Adapters that must be tried before the worker is ready; None until the first look at the registry."""
        self._registered = 0
        self._ready = False
        self._started_s = time.monotonic()
        self._status_due_s = 0.0
        self._status_written_s = 0.0

    def start(self) -> None:
        orders = self._run_directory.orders()
        if orders.last:  # of a predecessor's time; its pins hold on
            self._heard = self._obeyed = orders.last[-1].number
        # The loader's Python must not keep the batches' waiting for Python's default 5 ms at a time.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._loader.start()
        self._write_status()

    def turn(self, receive: Receive, send: Send) -> None:
        """One batch, or one idle tick."""
        self._follow_registry()
        self._take_loaded()
        self._follow_orders()
        self._gather(receive)
        self._run_batch(send)
        self._release_fresh()
        self._send_replies(send)
        self._write_status_if_due()

    # The registry

    def _follow_registry(self) -> None:
        look = self._loader.take_look()
        if look is None:
            return
        if self._registered != len(look.newest):
            self._registered = len(look.newest)
            self._status_due_s = 0
        self._drop_changed(look)
        self._pinned_by_setting = self._pins_among(look.newest)
        wanted = {*self._load_ahead(look.newest), *self._load_pinned()}
        if self._starting is None:
            self._starting = wanted
            self._become_ready_if_started()
        self._loader.keep_in_mind(frozenset(self._resident) | frozenset(self._failed))

    def _drop_changed(self, look: Look) -> None:
        """Versions never change by contract; one that was removed or replaced all the same is not served on."""
        for adapter, facts in list(self._resident.items()):
            if look.stamps.get(adapter, facts.stamp) != facts.stamp:
                self._engine.detach(adapter)
                del self._resident[adapter]
                log.info("adapter_dropped", adapter=str(adapter), gone=look.stamps[adapter] == ())
                self._status_due_s = 0
        for adapter, failure in list(self._failed.items()):
            if look.stamps.get(adapter, failure.stamp) != failure.stamp:
                del self._failed[adapter]
                self._status_due_s = 0

    def _load_ahead(self, newest: Sequence[AdapterId]) -> list[AdapterId]:
        """Ask for what was published since the last look while there is room; all else comes when asked for.

        At the first look everything is new: of very many, a few are loaded before anybody asks.
        """
        free = self._engine.capacity - len(self._resident) - len(self._loader.loading)
        known = self._newest | self._resident.keys() | self._failed.keys() | self._loader.loading
        missing = [adapter for adapter in newest if adapter not in known]
        self._newest = frozenset(newest)
        missing.sort(key=lambda adapter: adapter.name != self._first)
        wanted = missing[: max(0, min(free, _MOST_AHEAD))]
        for adapter in wanted:
            self._loader.request(adapter, ahead=True)
        return wanted

    def _pins_among(self, newest: Sequence[AdapterId]) -> frozenset[AdapterId]:
        """What the setting pins: `name` follows the newest version, `name@3` and aliases stay."""
        by_name = {adapter.name: adapter for adapter in newest}
        found = set()
        self._pinned_absent = None
        for text in self._settings.pinned_adapters:
            reference = parse_reference(text)
            if reference.version is None and reference.alias is None and reference.name in by_name:
                found.add(by_name[reference.name])
                continue
            try:
                found.add(self._aliases.resolve(text))
            except AdapterError:
                self._pinned_absent = text
        return frozenset(found)

    def _load_pinned(self) -> list[AdapterId]:
        """Pin what is resident, unpin what need not stay, and ask for what is missing."""
        pinned = self._pinned_by_setting | self._pinned_by_order
        for adapter in self._engine.pinned - pinned:
            self._engine.unpin(adapter)
        missing = []
        for adapter in pinned:
            if adapter in self._resident:
                self._pin(adapter)
            elif adapter not in self._failed:
                missing.append(adapter)
                self._loader.request(adapter)
        return missing

    def _pin(self, adapter: AdapterId) -> None:
        try:
            self._engine.pin(adapter)
        except UnknownAdapter:
            self._resident.pop(adapter, None)  # evicted a moment ago; the next look asks for it again

    def _not_ready_because(self) -> str | None:
        """The first pinned adapter that cannot be made resident."""
        for adapter in self._pinned_by_setting:
            if adapter in self._failed:
                return f"the pinned {self._failed[adapter].error}"
            if adapter not in self._resident:
                return f"the pinned adapter {adapter} is not loaded yet"
        if self._pinned_absent is not None:
            return f"the pinned adapter {self._pinned_absent} is not in the registry"
        return None

    def _become_ready_if_started(self) -> None:
        if not self._ready and self._starting is not None and not self._starting and self._not_ready_because() is None:
            self._ready = True
            self._status_due_s = 0
            log.info("worker_ready", resident=len(self._resident), failed=len(self._failed))

    def _take_loaded(self) -> None:
        while (loaded := self._loader.take_loaded()) is not None:
            self._note_loaded(loaded)
            if self._starting is not None:
                self._starting.discard(loaded.id)
            self._status_due_s = 0
            self._unpark(loaded)
        self._become_ready_if_started()

    def _note_loaded(self, loaded: Loaded) -> None:
        if isinstance(loaded.result, VerificationError):
            if loaded.stamp:  # else it was removed before it was read: unknown, not failed
                self._failed[loaded.id] = _Failure(loaded.stamp, loaded.result)
                metrics.loads.labels("refused").inc()
                log.warning("adapter_refused", adapter=str(loaded.id), reason=loaded.result.reason)
            return
        if not isinstance(loaded.result, ResidentAdapter):
            log.warning("adapter_not_loaded", adapter=str(loaded.id), reason=str(loaded.result))
            return
        self._resident[loaded.id] = _Facts(loaded.stamp, loaded.result)
        if loaded.id in self._pinned_by_setting | self._pinned_by_order:
            self._pin(loaded.id)
        self._forget_evicted()
        metrics.loads.labels("loaded").inc()
        metrics.load_seconds.labels("read").observe(loaded.read_s)
        metrics.load_seconds.labels("attach").observe(loaded.attach_s)
        read_ms, attach_ms = round(loaded.read_s * 1e3, 1), round(loaded.attach_s * 1e3, 1)
        log.info("adapter_loaded", adapter=str(loaded.id), read_ms=read_ms, attach_ms=attach_ms)

    def _forget_evicted(self) -> None:
        for adapter in self._resident.keys() - set(self._engine.resident):
            del self._resident[adapter]
            metrics.evictions.inc()
            log.info("adapter_evicted", adapter=str(adapter))

    def _unpark(self, loaded: Loaded) -> None:
        """Rows that waited for it run next, or get its error."""
        items = self._parked.pop(loaded.id, [])
        if isinstance(loaded.result, ResidentAdapter):
            self._fresh.add(loaded.id)
            self._waiting.put_first(loaded.id, [(item.tokens, item) for item in items])
            return
        error = loaded.result if loaded.stamp or isinstance(loaded.result, BankFull) else UnknownAdapter(str(loaded.id))
        for item in items:
            self._settle(item, error)

    def _release_fresh(self) -> None:
        if self._fresh:
            for adapter in self._fresh - set(self._waiting.adapters()):
                self._engine.release(adapter)
                self._fresh.discard(adapter)

    # Orders

    def _follow_orders(self) -> None:
        stamp = self._run_directory.orders_stamp()
        if stamp != self._orders_stamp:
            self._orders_stamp = stamp
            orders = self._run_directory.orders()
            self._orders.extend(order for order in orders.last if order.number > self._heard)
            self._heard = max(self._heard, orders.last[-1].number)
            self._pinned_by_order = frozenset(map(read_id, orders.pinned))
            self._load_pinned()
        while self._orders and read_id(self._orders[0].adapter) not in self._loader.loading:
            self._obey(self._orders[0])

    def _obey(self, order: Order) -> None:
        """Begin an order, or note that it is carried out: called until its adapter is no longer loading."""
        adapter = read_id(order.adapter)
        if order.number == self._begun:
            self._orders.popleft()
            self._obeyed = order.number
            self._status_due_s = 0
            return
        self._begun = order.number
        log.info("order", verb=order.verb, adapter=order.adapter)
        if order.verb in ("unload", "verify"):
            self._engine.detach(adapter)
            self._resident.pop(adapter, None)
        if order.verb != "unload":
            self._failed.pop(adapter, None)
            if adapter not in self._resident:
                self._loader.request(adapter, anew=order.verb == "verify")

    # The queue

    def _gather(self, receive: Receive) -> None:
        """Fill a batch: block for the first message, then stay open for a while counted from when it was sent."""
        if self._waiting:
            wait_s = 0.0
        elif self._loader.loading or self._orders:
            wait_s = _LOADING_TICK_S
        else:
            wait_s = IDLE_TICK_S
        closes_s: float | None = None
        while True:
            # With a full batch at hand what has come is read all the same: it may withdraw what waits.
            message = receive(0.0 if self._full(len(self._waiting), self._waiting.tokens) else wait_s)
            if message is None:
                return
            self._open(message)
            if closes_s is None:
                closes_s = message.sent_s + self._settings.batch_wait_ms / 1e3
            wait_s = max(0.0, closes_s - time.monotonic())

    def _full(self, texts: int, tokens: int) -> bool:
        return texts >= self._settings.max_batch_texts or tokens >= self._settings.max_batch_tokens

    def _open(self, message: Envelope) -> None:
        if message.sent_s < self._started_s:
            return  # sent to a predecessor that died: the API process has failed it already
        for job in message.jobs:
            if isinstance(job, Withdrawal):
                withdrawn = self._open_jobs.get((message.response_queue_id, job.job_id))
                if withdrawn is not None:
                    withdrawn.withdrawn = True
                continue
            rows = len(job.rows)
            opened = _OpenJob(job, message.response_queue_id, message.sent_s, [None] * rows, rows)
            self._open_jobs[message.response_queue_id, job.id] = opened
            for at, row in enumerate(job.rows):
                tokens = estimated_tokens(row)
                self._waiting.put(row.adapter, tokens, _Item(at, opened, tokens))

    def _run_batch(self, send: Send) -> None:
        batch: list[_Item] = []
        tokens = 0
        while self._waiting and not self._full(len(batch), tokens):
            cost, item = self._waiting.pop()
            if not self._wanted(item):
                continue
            if item.adapter in self._resident:
                batch.append(item)
                tokens += cost
            elif item.adapter in self._failed:
                self._settle(item, self._failed[item.adapter].error)
            else:
                self._park(item)
        self._classify(batch, self._shadows_of(batch, tokens), send)

    def _shadows_of(self, batch: list[_Item], tokens: int) -> list[_Item]:
        """The items that a shadow reads along: only where nothing else waits, there is room, and it is resident."""
        if self._waiting:
            return []
        followed: list[_Item] = []
        for item in batch:
            shadow = item.open.job.shadow
            if shadow is None or self._full(len(batch) + len(followed), tokens):
                continue
            if shadow in self._resident:
                followed.append(item)
                tokens += item.tokens
            elif shadow not in self._failed:
                self._loader.request(shadow, ahead=True)
        return followed

    def _park(self, item: _Item) -> None:
        self._parked.setdefault(item.adapter, []).append(item)
        self._loader.request(item.adapter)

    def _wanted(self, item: _Item) -> bool:
        """Whether anybody waits for the row; otherwise it is settled."""
        if item.open.withdrawn:
            self._settle(item, CallerGone("the client closed its connection"))
            return False
        if item.open.job.deadline_s <= time.monotonic():
            self._settle(item, DeadlineExceeded(item.open.job.deadline_s - item.open.sent_s))
            return False
        return True

    # The engine

    def _classify(self, items: list[_Item], followed: list[_Item], send: Send) -> None:
        """
        Args:
            followed: items that a shadow reads, too.
        """
        if not items:
            return
        started_s = time.monotonic()
        for opened in {id(item.open): item.open for item in items}.values():
            metrics.stage_seconds.labels("queue").observe(started_s - opened.sent_s)
        for item in followed:
            item.open.left += 1  # a reply holds what the shadow says, too
        rows = [item.row for item in items]
        rows += [item.row._replace(adapter=item.open.job.shadow) for item in followed]  # type: ignore[arg-type]
        sent_s = started_s

        def report(found: list[tuple[int, Outcome]], stats: BatchStats) -> None:
            nonlocal sent_s
            for at, outcome in found:
                item = items[at] if at < len(items) else followed[at - len(items)]
                item.open.timings = Timings(started_s - item.open.sent_s, stats.tokenise_s, stats.forward_s, started_s)
                if at < len(items):
                    self._take_outcome(item, outcome)
                else:
                    self._take_shadow(item, outcome)
            # A message takes about a millisecond: not for every few rows.
            if self._done and time.monotonic() - sent_s >= _REPLY_EVERY_S:
                sent_s = time.monotonic()
                self._send_replies(send)

        stats = self._classify_safely(rows, report)
        metrics.batch_rows.observe(len(rows))
        metrics.micro_batches.inc(stats.micro_batches)
        metrics.batch_tokens.inc(stats.tokens)
        metrics.padded_tokens.inc(stats.padded_tokens)
        metrics.stage_seconds.labels("tokenise").observe(stats.tokenise_s)
        metrics.stage_seconds.labels("forward").observe(stats.forward_s)

    def _take_outcome(self, item: _Item, outcome: Outcome) -> None:
        if isinstance(outcome, UnknownAdapter):
            # The loader has given its slot to another since we looked.
            self._resident.pop(item.adapter, None)
            self._park(item)
        else:
            self._settle(item, outcome)

    def _take_shadow(self, item: _Item, outcome: Outcome) -> None:
        if isinstance(outcome, Answer):
            item.open.shadows[item.at] = outcome
        self._count_down(item.open)

    def _classify_safely(self, rows: list[Row], report: Report) -> BatchStats:
        """Report the engine's outcomes; where it breaks on a batch, each row alone, so that only the bad one pays."""
        left = dict(enumerate(rows))

        def note(found: list[tuple[int, Outcome]], stats: BatchStats) -> None:
            for at, _ in found:
                del left[at]
            report(found, stats)

        try:
            return self._engine.classify(rows, note)[1]
        except Exception:
            log.exception("batch_broke", rows=len(rows))
        stats = BatchStats(len(rows), 0, 0, 0, 0.0, 0.0)
        for at, row in left.items():
            try:
                outcome = self._engine.classify([row])[0][0]
            except Exception as error:
                log.exception("row_broke")
                outcome = InferenceFailed(f"the text could not be read: {type(error).__name__}")
            report([(at, outcome)], stats)
        return stats

    def _settle(self, item: _Item, outcome: Outcome) -> None:
        opened = item.open
        opened.outcomes[item.at] = outcome
        adapter = metrics.adapter_label(str(item.adapter))
        metrics.texts.labels(adapter, _kind(outcome)).inc()
        if isinstance(outcome, Answer):
            # Of an adapter that is `other`, labels would mix those of many.
            label = metrics.OTHER if adapter == metrics.OTHER else metrics.label_label(outcome.label)
            metrics.answers.labels(adapter, label).inc()
            metrics.confidence.labels(adapter).observe(max(outcome.scores))
        self._count_down(opened)

    def _count_down(self, opened: _OpenJob) -> None:
        opened.left -= 1
        if not opened.left:
            del self._open_jobs[opened.response_queue_id, opened.job.id]
            self._done.append(opened)

    # What others see

    def _send_replies(self, send: Send) -> None:
        """One message for each API process, however many jobs are done."""
        done, self._done = self._done, []
        by_queue: dict[int, list[Reply]] = {}
        for opened in done:
            outcomes = tuple(outcome for outcome in opened.outcomes if outcome is not None)
            shadows: tuple[Answer | None, ...] = ()
            if opened.job.shadow is not None:
                shadows = tuple(opened.shadows.get(at) for at in range(len(outcomes)))
            reply = Reply(opened.job.id, outcomes, opened.timings, shadows)
            by_queue.setdefault(opened.response_queue_id, []).append(reply)
        for response_queue_id, replies in by_queue.items():
            send(response_queue_id, replies)

    def _write_status_if_due(self) -> None:
        if time.monotonic() >= max(self._status_due_s, self._status_written_s + _STATUS_EVERY_S):
            self._write_status()

    def _write_status(self) -> None:
        now_s = time.monotonic()
        self._status_written_s = now_s
        self._status_due_s = now_s + _HEARTBEAT_EVERY_S
        self._run_directory.write_status(
            self._worker_id,
            WorkerStatus(
                pid=os.getpid(),
                device=self._device,
                started_s=self._started_s,
                heartbeat_s=now_s,
                ready=self._ready,
                resident={str(adapter): facts.shown for adapter, facts in self._resident.items()},
                failed={str(adapter): failure.error.reason for adapter, failure in self._failed.items()},
                loading=tuple(str(adapter) for adapter in self._loader.loading),
                pinned=tuple(str(adapter) for adapter in self._engine.pinned),
                obeyed=self._obeyed,
                registered=self._registered,
                capacity=self._engine.capacity,
                waiting_rows=len(self._waiting),
                parked_rows=sum(map(len, self._parked.values())),
                not_ready_because=None if self._ready else self._not_ready_because(),
            ),
        )


def _kind(outcome: Outcome) -> str:
    return "answered" if isinstance(outcome, Answer) else type(outcome).__name__
