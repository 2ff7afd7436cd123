"""The API process's view of the workers: what they say of themselves, and whether they live."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from adapters.errors import NotReady, WorkerLost
from service import metrics
from service.mailbox import Mailbox
from service.run_directory import ResidentAdapter, RunDirectory, WorkerStatus

LOOK_EVERY_S = 0.1
HEARTBEAT_STALE_S = 60.0
WORKER_GRACE_S = 60.0
"""How long a dead worker may stay dead (it is replaced within seconds) before the service calls itself dead."""

MOST_CRASHES = 5
CRASHES_WITHIN_S = 300.0
"""So many losses in so short a time are no accident any more, and a fresh start may help."""

_AFTERMATH_S = 0.5
"""A worker killed while it waited for a message may take one along shortly after its death: nothing is sent then."""

log = structlog.get_logger(__name__)


class Watch:
    """Looks at the run directory ten times a second; everything else reads its memory."""

    def __init__(self, run_directory: RunDirectory, worker_ids: range, mailbox: Mailbox) -> None:
        self._run_directory = run_directory
        self._mailbox = mailbox
        self._stamps = dict.fromkeys(worker_ids, 0)
        self._living: dict[int, WorkerStatus] = {}  # the status in which a living worker was first seen
        self._last_lost_s: dict[int, float] = {}  # when the worker that was lost last had started
        self._dead_since_s = dict.fromkeys(worker_ids, time.monotonic())
        self._last_loss_s = float("-inf")
        self._losses_s: deque[float] = deque(maxlen=MOST_CRASHES)
        self._receiver: asyncio.Task[None] | None = None
        self.statuses: dict[int, WorkerStatus] = {}
        self.draining = False

    async def follow(self, receiver: asyncio.Task[None], on_look: Callable[[], None]) -> None:
        """Look for ever.

        Args:
            receiver: the task that brings replies in; without it no question is ever answered.
            on_look: called after every look.
        """
        self._receiver = receiver
        while True:
            try:
                self.look()
                on_look()
            except Exception:
                # A look that fails (a full disk, say) must not end the looking.
                log.exception("watch_broke")
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        self.draining = self._run_directory.draining
        for worker_id in self._stamps:
            self._look_at(worker_id)

    def _look_at(self, worker_id: int) -> None:
        alive = self._run_directory.worker_alive(worker_id)
        stamp = self._run_directory.status_stamp(worker_id)
        if stamp != self._stamps[worker_id]:
            self._stamps[worker_id] = stamp
            status = self._run_directory.read_status(worker_id)
            if status is not None:
                self.statuses[worker_id] = status
        status = self.statuses.get(worker_id)
        born_s = None if status is None else status.started_s
        living = self._living.get(worker_id)
        if living is not None and (not alive or born_s != living.started_s):
            del self._living[worker_id]
            self._dead_since_s[worker_id] = time.monotonic()
            self._lose(worker_id, living)
        # A successor holds the lock a little before it has a status of its own.
        if alive and status is not None and born_s != self._last_lost_s.get(worker_id):
            self._living[worker_id] = status
            self._dead_since_s.pop(worker_id, None)

    def _lose(self, worker_id: int, dead: WorkerStatus) -> None:
        """Fail all that waits at once: which jobs the dead worker held cannot be known, and all can be sent again."""
        self._last_lost_s[worker_id] = dead.started_s
        self._last_loss_s = time.monotonic()
        self._losses_s.append(self._last_loss_s)
        if self._run_directory.stopping:
            return  # not a loss: all answers are out
        lost = self._mailbox.fail_all(
            lambda: WorkerLost("the inference worker that held the request died; try again in a moment")
        )
        metrics.workers_lost.inc()
        metrics.forget_process(dead.pid)
        log.error("worker_lost", worker=worker_id, pid=dead.pid, requests_failed=lost)

    # What the handlers ask

    @property
    def ready(self) -> bool:
        """Some worker takes work, and none has died just now."""
        return (
            not self.draining
            and any(status.ready for worker_id, status in self.statuses.items() if self._lives(worker_id))
            and time.monotonic() - self._last_loss_s > _AFTERMATH_S
        )

    def check_ready(self) -> None:
        """
        Raises:
            NotReady: with the reason.
        """
        if self.draining:
            raise NotReady("the service is shutting down; try again, another instance may answer")
        if not self.ready:
            reasons = [status.not_ready_because for status in self.statuses.values() if status.not_ready_because]
            raise NotReady(reasons[0] if reasons else "no inference worker is ready yet; try again in a moment")

    def death(self) -> str | None:
        """Why the service should be restarted, or None."""
        now_s = time.monotonic()
        if self._receiver is not None and self._receiver.done() and not self.draining:
            return "replies of the workers no longer arrive"
        recent = sum(now_s - lost_s < CRASHES_WITHIN_S for lost_s in self._losses_s)
        if recent >= MOST_CRASHES:
            return f"inference workers died {recent} times within {CRASHES_WITHIN_S:.0f} s"
        for worker_id, since_s in self._dead_since_s.items():
            if now_s - since_s > WORKER_GRACE_S:
                return f"worker {worker_id} is dead for {now_s - since_s:.0f} s"
        for worker_id, status in self.statuses.items():
            if self._lives(worker_id) and now_s - status.heartbeat_s > HEARTBEAT_STALE_S:
                return f"worker {worker_id} gives no sign of life for {now_s - status.heartbeat_s:.0f} s"
        return None

    def resident(self) -> dict[str, ResidentAdapter]:
        """What some living worker has in its bank, by `name@version`."""
        return {
            adapter: facts
            for worker_id, status in self.statuses.items()
            if self._lives(worker_id)
            for adapter, facts in status.resident.items()
        }

    def failed(self) -> dict[str, str]:
        """Reasons why adapters are refused, by `name@version`."""
        return {adapter: reason for status in self.statuses.values() for adapter, reason in status.failed.items()}

    def pinned(self) -> frozenset[str]:
        """What some living worker keeps resident whatever else is used."""
        return frozenset(
            adapter
            for worker_id, status in self.statuses.items()
            if self._lives(worker_id)
            for adapter in status.pinned
        )

    def obeyed(self, order: int) -> bool:
        """Whether every living worker has carried out an order, and there is one."""
        living = [status for worker_id, status in self.statuses.items() if self._lives(worker_id)]
        return bool(living) and all(status.obeyed >= order for status in living)

    def gauges(self) -> metrics.Gauges:
        now_s = time.monotonic()
        workers = [({"worker": str(worker_id)}, status) for worker_id, status in self.statuses.items()]
        return {
            "tonearm_ready": ("1 if the service takes work.", [({}, float(self.ready))]),
            "tonearm_queued_rows": ("Texts times adapters not answered yet.", [({}, float(self._mailbox.queued_rows))]),
            "tonearm_queued_tokens": (
                "Tokens not answered yet, estimated.",
                [({}, float(self._mailbox.queued_tokens))],
            ),
            "tonearm_adapters": (
                "Adapter versions that a worker knows, by state.",
                [
                    ({"state": "resident"}, float(len(self.resident()))),
                    ({"state": "failed"}, float(len(self.failed()))),
                    ({"state": "loading"}, float(sum(len(status.loading) for _, status in workers))),
                ],
            ),
            "tonearm_adapters_registered": (
                "Names in the registry.",
                [({}, float(max((status.registered for _, status in workers), default=0)))],
            ),
            "tonearm_adapters_capacity": (
                "Adapters that a worker can hold at once.",
                [(labels, float(status.capacity)) for labels, status in workers],
            ),
            "tonearm_process_resident_bytes": (
                "Memory of a process.",
                [
                    ({"process": name}, float(resident))
                    for name, pid in (("api", os.getpid()), *self._worker_pids())
                    if (resident := _resident_bytes(pid)) is not None
                ],
            ),
            "tonearm_worker_up": (
                "1 if the worker process lives.",
                [(labels, float(self._lives(int(labels["worker"])))) for labels, _ in workers],
            ),
            "tonearm_worker_heartbeat_age_seconds": (
                "Time since the worker last said anything.",
                [(labels, now_s - status.heartbeat_s) for labels, status in workers],
            ),
            "tonearm_worker_parked_rows": (
                "Rows that wait for their adapter to load.",
                [(labels, float(status.parked_rows)) for labels, status in workers],
            ),
        }

    def _worker_pids(self) -> list[tuple[str, int]]:
        return [(f"worker-{at}", status.pid) for at, status in self.statuses.items() if self._lives(at)]

    def _lives(self, worker_id: int) -> bool:
        return worker_id in self._living


def _resident_bytes(pid: int) -> int | None:
    """Resident memory of a process; None where it is gone, or the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
