"""A directory for one run of the service, in which its processes say what they are doing.

    metrics/           prometheus_client's files, one set a process
    worker-<n>.json    a worker's status, replaced atomically
    worker-<n>.lock    held by the worker as long as it lives: the kernel drops it however the process ends
    worker-<n>.error   why a worker could not start
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
from typing import Any, NamedTuple


class ResidentAdapter(NamedTuple):
    """What the worker knows of an adapter it holds. A tuple, because thousands of them go into every status."""

    labels: tuple[str, ...]
    verified: bool


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker says of itself; times are on the monotonic clock. Adapters are written `name@version`."""

    pid: int
    device: str
    started_s: float
    heartbeat_s: float
    ready: bool
    resident: dict[str, ResidentAdapter] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    loading: tuple[str, ...] = ()
    waiting_rows: int = 0
    parked_rows: int = 0

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "WorkerStatus":
        resident = {
            adapter: ResidentAdapter(tuple(labels), verified)
            for adapter, (labels, verified) in content.pop("resident").items()
        }
        return cls(resident=resident, loading=tuple(content.pop("loading")), **content)

    def to_json(self) -> str:
        return json.dumps({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


class RunDirectory:
    """Paths and the few operations on them; every process opens the same one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = root / "metrics"
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
