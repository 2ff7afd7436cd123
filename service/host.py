"""Everything that leans on LitServe's insides, in one place; tests/service/test_litserve_contract.py holds each to it.

LitServe gives the processes: it spawns the workers and restarts them, forks the API process, hosts the FastAPI app,
and owns the queues between them. The endpoints, the loop and what travels on the queues are ours.
"""

import asyncio
import os
import queue
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import structlog
from fastapi import FastAPI
from litserve import LitAPI, LitServer
from litserve.connector import check_cuda_with_nvidia_smi
from litserve.loops import LitLoop
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, LoopResponseType, WorkerSetupStatus

from adapters.base_model import find_base_model
from adapters.errors import TonearmError
from service.admission import Admission
from service.cores import engine_threads
from service.logs import adopt_library, configure_logs
from service.mailbox import REPLIES_UID, Mailbox, ReplySlot
from service.messages import Envelope, Job, Reply, Withdrawal
from service.run_directory import RunDirectory
from service.settings import Settings

API_PATH = "/classify"
_LITSERVE_ROUTES = ("/", "/litserve/health", "/litserve/info")
_MONITOR_EVERY_S = 0.25
_START_LOOK_EVERY_S = 0.05
"""How often LitServe looks for dead workers; its own 2 s would be most of a restart."""

log = structlog.get_logger(__name__)


class OwnEndpoints(LitSpec):  # type: ignore[misc]
    """A spec with no endpoints: it keeps LitServe from making its own, ours are on the app (`app.py`)."""

    def __init__(self) -> None:
        super().__init__()
        self.api_path = API_PATH  # with a spec, LitServe asks it and not the LitAPI

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:
        raise NotImplementedError("LitServe's own endpoint is not used")

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        raise NotImplementedError("LitServe's own endpoint is not used")


class WorkerLoop(LitLoop):  # type: ignore[misc]
    """LitServe calls `run` for ever in the worker process; each call is one turn."""

    def run(
        self,
        lit_api: "ClassifyApi",
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        def receive(timeout_s: float) -> Envelope | None:
            try:
                response_queue_id, _, sent_s, jobs = request_queue.get(timeout=timeout_s)
            except queue.Empty:
                return None
            except (EOFError, OSError):
                # The queues' process is gone, and with it every way to be of use.
                os._exit(1)
            return Envelope(response_queue_id, sent_s, jobs)

        def send(response_queue_id: int, replies: list[Reply]) -> None:
            try:
                self.put_response(
                    transport, response_queue_id, REPLIES_UID, replies, LitAPIStatus.OK, LoopResponseType.REGULAR
                )
            except (EOFError, OSError):
                os._exit(1)

        lit_api.leave_if_orphaned()
        lit_api.worker.turn(receive, send)


class ClassifyApi(LitAPI):  # type: ignore[misc]
    """What LitServe carries into the spawned worker, and sets up there."""

    def __init__(self, settings: Settings, run_directory: RunDirectory) -> None:
        super().__init__(api_path=API_PATH, loop=WorkerLoop(), spec=OwnEndpoints())
        self._settings = settings
        self._run_directory = run_directory

    def setup(self, device: str) -> None:
        """Runs first thing in the worker process; raising here keeps the service from starting."""
        worker_id = int(os.environ["LITSERVE_WORKER_ID"])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_terminate)
        configure_logs(self._settings.log_level)
        self._parent = os.getppid()
        self._lock = self._run_directory.lock_worker(worker_id)
        try:
            self.worker = _build_worker(worker_id, device, self._settings, self._run_directory)
        except TonearmError as error:
            self._run_directory.write_start_error(worker_id, str(error))
            raise
        self.worker.start()

    def _on_terminate(self, signum: int, frame: FrameType | None) -> None:
        # Sent to the whole process group, it must not cost the answers that are still due: main says when to leave.
        if self._run_directory.stopping or os.getppid() != self._parent:
            os._exit(0)

    def leave_if_orphaned(self) -> None:
        if os.getppid() != self._parent:
            os._exit(1)


def _build_worker(worker_id: int, device: str, settings: Settings, run_directory: RunDirectory) -> Any:
    # First, and before the seconds that importing torch takes: most failed starts fail here.
    base = find_base_model(settings.base_model)
    # Imported here: this module is main's and the API process's too, and they do without torch.
    import torch

    from engine.engine import Engine
    from service import metrics
    from service.worker import Worker

    metrics.configure(settings)
    if device.startswith("cuda") and settings.device == "auto" and not torch.cuda.is_available():
        log.warning("cuda_unusable", device=device, instead="cpu")
        device = "cpu"
    torch.set_num_threads(settings.cpu_threads or engine_threads(settings.workers_per_device))
    engine = Engine(
        base,
        capacity=settings.max_resident_adapters,
        bank_bytes=settings.bank_memory_mb * 2**20,
        max_rank=settings.max_rank,
        device=device,
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.dtype),
    )
    return Worker(worker_id, device, engine, settings, run_directory)


class TonearmServer(LitServer):  # type: ignore[misc]
    """LitServe with our endpoints, our mailbox and an end that loses nothing."""

    def __init__(self, settings: Settings, run_directory: RunDirectory) -> None:
        accelerator, devices = _devices(settings.device)
        super().__init__(
            ClassifyApi(settings, run_directory),
            accelerator=accelerator,
            devices=devices,
            timeout=False,
            healthcheck_path=_LITSERVE_ROUTES[1],
            info_path=_LITSERVE_ROUTES[2],
            restart_workers=True,
            workers_per_device=settings.workers_per_device,
        )
        self.settings = settings
        self.run_directory = run_directory
        self.listening = False
        self.api_processes: list[Any] = []
        admission = Admission(
            settings.max_queued_texts,
            settings.max_queued_tokens,
            max_wait_s=settings.max_queue_wait_s,
            least_tokens=settings.max_batch_tokens,
        )
        self.mailbox = Mailbox(admission)
        self.monitor_internal = _MONITOR_EVERY_S
        self.uvicorn_graceful_timeout = settings.drain_timeout_s
        self._take_out_routes()

    @property
    def worker_ids(self) -> range:
        return range(len(self.devices) * self.settings.workers_per_device)

    def _take_out_routes(self) -> None:
        """LitServe's own pages: not problem-shaped, not ours to promise, and `/` is wanted."""
        routes = self.app.router.routes
        routes[:] = [route for route in routes if getattr(route, "path", None) not in _LITSERVE_ROUTES]

    def _init_manager(self, num_api_servers: int) -> Any:
        # The first thing LitServe calls after it has given its logger a handler of its own.
        adopt_library("litserve")
        return super()._init_manager(num_api_servers)

    def verify_worker_status(self) -> None:
        """Wait for the first worker. LitServe's own would wait for ever for one that died before it could say anything.

        Raises:
            RuntimeError: a worker could not be set up, or is gone.
        """
        while not any(status == WorkerSetupStatus.READY for status in self.workers_setup_status.values()):
            gone = [process.exitcode for process in self.inference_workers if process.exitcode is not None]
            if any(status == WorkerSetupStatus.ERROR for status in self.workers_setup_status.values()):
                raise RuntimeError("an inference worker could not be set up")
            if gone:
                how = f"was killed by signal {-gone[0]}" if gone[0] < 0 else f"ended with {gone[0]}"
                raise RuntimeError(f"an inference worker {how} while it started; is there memory enough?")
            time.sleep(_START_LOOK_EVERY_S)

    def _start_server(self, *args: Any, **kwargs: Any) -> Any:
        processes = super()._start_server(*args, **kwargs)
        self.api_processes = list(processes.values())
        self.listening = True
        return processes

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Runs in the API process, around its serving."""
        self._hold_signals()
        async with super().lifespan(app):
            response_queue_id: int = app.response_queue_id  # type: ignore[attr-defined]
            self._connect_mailbox(response_queue_id)
            async with app.state.service.running(self._receiver(response_queue_id)):
                yield

    def _connect_mailbox(self, response_queue_id: int) -> None:
        request_queue = self._get_request_queue(API_PATH)

        def put(jobs: tuple[Job | Withdrawal, ...]) -> None:
            request_queue.put((response_queue_id, REPLIES_UID, time.monotonic(), jobs))

        self.mailbox.connect(put)
        self.response_buffer[REPLIES_UID] = ReplySlot(self.mailbox)

    @staticmethod
    def _receiver(response_queue_id: int) -> asyncio.Task[None]:
        """LitServe's task that brings replies in. It ends for good at its first exception, so it is watched."""
        name = f"response_queue_to_buffer-{response_queue_id}"
        return next(task for task in asyncio.all_tasks() if task.get_name() == name)

    def _hold_signals(self) -> None:
        """A signal to the whole process group must not close the port before main has drained."""
        leave = signal.getsignal(signal.SIGTERM)

        def on_terminate(signum: int, frame: FrameType | None) -> None:
            if self.run_directory.stopping and callable(leave):
                leave(signum, frame)

        signal.signal(signal.SIGTERM, on_terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _devices(device: str) -> tuple[str, int | str]:
    """LitServe's accelerator and device count. Its own `auto` sees a GPU only where torch is imported already."""
    gpus = 0 if device == "cpu" else check_cuda_with_nvidia_smi()
    if device == "cuda" or gpus:
        return "cuda", max(gpus, 1)
    return "cpu", 1
