"""A directory for one run of the service, in which its processes say what they are doing.

    metrics/           prometheus_client's files, one set a process
    worker-<n>.json    a worker's status, replaced atomically
    worker-<n>.lock    held by the worker as long as it lives: the kernel drops it however the process ends
    worker-<n>.error   why a worker could not start
    orders.json        what administrators ask of the workers
    draining           the service takes no new work
    refused            the API process has refused new work for as long as it was to before the port closes
    stopping           all answers are out: processes may leave

Main makes it and takes it away.
"""

import dataclasses
import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Verb = Literal["load", "unload", "pin", "verify"]


class Order(NamedTuple):
    """What an administrator asks of every worker.

    Attributes:
        number: counts up within a run.
        adapter: `name@version`.
    """

    number: int
    verb: Verb
    adapter: str


class Orders(NamedTuple):
    """The orders of a run. A worker that starts later keeps the pins, and leaves the rest to the requests that come.

    Attributes:
        last: the latest orders, oldest first.
        pinned: what is to stay resident.
    """

    last: tuple[Order, ...] = ()
    pinned: tuple[str, ...] = ()


_KEPT_ORDERS = 1000


class ResidentAdapter(NamedTuple):
    """What the worker knows of an adapter it holds. A tuple, because thousands of them go into every status."""

    labels: tuple[str, ...]
    verified: bool


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker says of itself; times are on the monotonic clock. Adapters are written `name@version`.

    Attributes:
        obeyed: number of the last order that is carried out, as all before it.
        registered: names in the registry, as of the last look at it.
        capacity: adapters that can be resident at once.
        not_ready_because: what keeps it from being ready, where that is more than time.
    """

    pid: int
    device: str
    started_s: float
    heartbeat_s: float
    ready: bool
    resident: dict[str, ResidentAdapter] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    loading: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    obeyed: int = 0
    registered: int = 0
    capacity: int = 0
    waiting_rows: int = 0
    parked_rows: int = 0
    not_ready_because: str | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "WorkerStatus":
        resident = {
            adapter: ResidentAdapter(tuple(labels), verified)
            for adapter, (labels, verified) in content.pop("resident").items()
        }
        return cls(
            resident=resident, loading=tuple(content.pop("loading")), pinned=tuple(content.pop("pinned")), **content
        )

    def to_json(self) -> str:
        return json.dumps({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


class RunDirectory:
    """Paths and the few operations on them; every process opens the same one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = root / "metrics"
        self._orders = root / "orders.json"
        self._draining = root / "draining"
        self._refused = root / "refused"
        self._stopping = root / "stopping"

    def start_draining(self) -> None:
        self._draining.touch()

    @property
    def draining(self) -> bool:
        return self._draining.exists()

    def note_refused(self) -> None:
        self._refused.touch()

    @property
    def refused(self) -> bool:
        return self._refused.exists()

    def let_go(self) -> None:
        """All answers are out: from now on the other processes heed SIGTERM."""
        self._stopping.touch()

    @property
    def stopping(self) -> bool:
        return self._stopping.exists()

    def order(self, verb: Verb, adapter: str) -> int:
        """Ask every worker for something; returns the order's number."""
        with (self.root / "orders.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self.orders()
            number = before.last[-1].number + 1 if before.last else 1
            pinned = tuple(kept for kept in before.pinned if kept != adapter or verb not in ("pin", "unload"))
            if verb == "pin":
                pinned = (*pinned, adapter)
            orders = Orders((*before.last, Order(number, verb, adapter))[-_KEPT_ORDERS:], pinned)
            beside = self._orders.with_suffix(".json.new")
            beside.write_text(json.dumps(orders))
            beside.replace(self._orders)
        return number

    def orders(self) -> Orders:
        try:
            last, pinned = json.loads(self._orders.read_bytes())
        except FileNotFoundError:
            return Orders()
        return Orders(tuple(Order(*order) for order in last), tuple(pinned))

    def orders_stamp(self) -> int:
        """Changes with every order; 0 before the first."""
        try:
            return self._orders.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def lock_worker(self, worker_id: int) -> int:
        """Hold the worker's lock until the process ends; returns the open descriptor."""
        descriptor = os.open(self._worker_file(worker_id, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def worker_alive(self, worker_id: int) -> bool:
        """Whether some process holds the worker's lock. A killed process not yet reaped by its parent does not."""
        try:
            descriptor = os.open(self._worker_file(worker_id, "lock"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def write_status(self, worker_id: int, status: WorkerStatus) -> None:
        path = self._worker_file(worker_id, "json")
        beside = path.with_suffix(".json.new")
        beside.write_text(status.to_json())
        beside.replace(path)

    def read_status(self, worker_id: int) -> WorkerStatus | None:
        try:
            return WorkerStatus.from_json(json.loads(self._worker_file(worker_id, "json").read_bytes()))
        except FileNotFoundError:
            return None

    def status_stamp(self, worker_id: int) -> int:
        """Changes with every `write_status`; 0 before the first."""
        try:
            return self._worker_file(worker_id, "json").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def write_start_error(self, worker_id: int, message: str) -> None:
        self._worker_file(worker_id, "error").write_text(message)

    def start_errors(self) -> list[str]:
        return [path.read_text() for path in sorted(self.root.glob("worker-*.error"))]

    def _worker_file(self, worker_id: int, suffix: str) -> Path:
        return self.root / f"worker-{worker_id}.{suffix}"
