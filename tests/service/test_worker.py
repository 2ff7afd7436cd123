"""The worker's turns, with the real engine and a registry that holds more than the bank."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.base_model import BaseModelFiles
from adapters.errors import InferenceFailed, InvalidText, VerificationError
from adapters.reference import AdapterId
from adapters.store import Registry
from engine.engine import Engine
from engine.rows import Answer, Outcome, Report, Row
from service.messages import Envelope, Job, Reply
from service.run_directory import RunDirectory
from service.settings import Settings
from service.worker import Worker
from tests.service.running import SHAPES

CAPACITY = 2


class Unhashable(str):
    __hash__ = None  # type: ignore[assignment]


class Driver:
    """The other end of the worker's queues."""

    def __init__(self, worker: Worker, registry: Registry, run_directory: RunDirectory) -> None:
        self.worker, self.registry, self.run_directory = worker, registry, run_directory
        self.inbox: list[Envelope] = []
        self.replies: dict[int, Reply] = {}
        self._ids = itertools.count()

    def turn(self) -> None:
        self.worker.turn(self.receive, self.send)

    def receive(self, timeout_s: float) -> Envelope | None:
        if self.inbox:
            return self.inbox.pop(0)
        time.sleep(timeout_s)
        return None

    def send(self, response_queue_id: int, replies: list[Reply]) -> None:
        self.replies |= {reply.job_id: reply for reply in replies}

    def until(self, done: Callable[[], bool], timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline
            self.turn()

    def ask(
        self, *rows: Row, sent_s: float | None = None, timeout_s: float = 30, shadow: AdapterId | None = None
    ) -> int:
        job = Job(next(self._ids), time.monotonic() + timeout_s, rows, shadow)
        self.inbox.append(Envelope(0, time.monotonic() if sent_s is None else sent_s, (job,)))
        return job.id

    def answer(self, *rows: Row) -> tuple[Outcome, ...]:
        job = self.ask(*rows)
        self.until(lambda: job in self.replies)
        return self.replies.pop(job).outcomes


@pytest.fixture(scope="module")
def driver(base: BaseModelFiles, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Driver:
    root = tmp_path_factory.mktemp("worker")
    registry = Registry(root / "registry")
    for name, source in made.items():
        registry.publish(source, name)
    settings = Settings(adapters_dir=registry.root, max_resident_adapters=CAPACITY, batch_wait_ms=0, max_batch_texts=8)
    run_directory = RunDirectory(root)
    worker = Worker(0, "cpu", Engine(base, capacity=CAPACITY), settings, run_directory)
    driver = Driver(worker, registry, run_directory)
    worker.start()
    driver.until(lambda: worker._ready)
    return driver


def row(adapter: str, text: str = "meh") -> Row:
    return Row(text, AdapterId(adapter, 1))


def test_it_is_ready_with_the_default_adapter_first_and_a_full_bank(driver: Driver) -> None:
    driver.worker._write_status()
    status = driver.run_directory.read_status(0)
    assert status is not None and status.ready
    assert "base@1" in status.resident
    assert len(status.resident) <= CAPACITY


def test_more_adapters_than_slots_are_all_answered_by_the_right_one(driver: Driver) -> None:
    names = [*SHAPES, "plain"]
    expected = {name: driver.answer(row(name))[0] for name in names}
    assert all(isinstance(answer, Answer) for answer in expected.values())
    for name, outcome in zip(names * 5, driver.answer(*[row(name) for name in names * 5]), strict=True):
        assert isinstance(outcome, Answer)
        assert outcome.labels == expected[name].labels  # type: ignore[union-attr]
        assert outcome.logits == pytest.approx(expected[name].logits, abs=1e-4)  # type: ignore[union-attr]


def test_one_bad_row_hurts_no_other(driver: Driver) -> None:
    # A text that cannot be looked up breaks the engine on the whole batch: then each row runs alone.
    broken = row("base", Unhashable("meh"))
    alien, torn, failed, good = driver.answer(row("alien"), row("base", "\ud800"), broken, row("base"))
    assert isinstance(alien, VerificationError) and alien.check == "base model"
    assert isinstance(torn, InvalidText)
    assert isinstance(failed, InferenceFailed)
    assert isinstance(good, Answer)


def test_a_refused_adapter_is_read_once(driver: Driver) -> None:
    driver.answer(row("alien"))
    job = driver.ask(row("alien"))
    driver.turn()
    assert isinstance(driver.replies.pop(job).outcomes[0], VerificationError)
    assert not driver.worker._loader.loading


def test_what_nobody_waits_for_is_not_computed(driver: Driver) -> None:
    late = driver.ask(row("base"), timeout_s=-1)
    of_a_predecessor = driver.ask(row("base"), sent_s=0)
    good = driver.ask(row("base"))
    driver.until(lambda: good in driver.replies)
    assert not isinstance(driver.replies[late].outcomes[0], Answer)
    assert of_a_predecessor not in driver.replies


def test_a_shadow_reads_along_in_the_same_pass(driver: Driver) -> None:
    movies = AdapterId("movies", 1)
    expected = driver.answer(row("movies"), row("movies", "a fine film"))
    driver.answer(row("base"))  # both are resident now
    turns = driver.worker._engine.classify
    calls: list[int] = []

    def counted(rows: list[Row], report: Report) -> object:
        calls.append(len(rows))
        return turns(rows, report)

    driver.worker._engine.classify = counted  # type: ignore[method-assign, assignment]
    try:
        job = driver.ask(row("base"), row("base", "a fine film"), shadow=movies)
        driver.until(lambda: job in driver.replies)
    finally:
        driver.worker._engine.classify = turns  # type: ignore[method-assign]
    reply = driver.replies.pop(job)
    assert calls == [4] and all(isinstance(outcome, Answer) for outcome in reply.outcomes)
    for shadow, own in zip(reply.shadows, expected, strict=True):
        assert isinstance(own, Answer) and shadow is not None
        assert shadow.logits == pytest.approx(own.logits, abs=1e-4)


def test_a_shadow_is_shed_first(driver: Driver) -> None:
    movies, alien = AdapterId("movies", 1), AdapterId("alien", 1)
    driver.answer(row("movies"), row("base"))
    jobs = [driver.ask(*[row("base")] * 4, shadow=movies) for _ in range(3)]  # a batch holds 8 rows
    driver.until(lambda: all(job in driver.replies for job in jobs))
    shadows = [driver.replies.pop(job).shadows for job in jobs]
    assert [sum(shadow is not None for shadow in each) for each in shadows] == [0, 0, 4]
    # One that is not resident is loaded for later, and one that must not be served costs nobody anything.
    for name in ("tone", "short"):
        driver.answer(row(name))
    assert movies not in driver.worker._resident
    first = driver.ask(row("short"), shadow=movies)
    driver.until(lambda: first in driver.replies)
    assert driver.replies.pop(first).shadows == (None,)
    driver.until(lambda: not driver.worker._loader.loading)
    refused = driver.ask(row("base"), shadow=alien)
    driver.until(lambda: refused in driver.replies)
    reply = driver.replies.pop(refused)
    assert isinstance(reply.outcomes[0], Answer) and reply.shadows == (None,)


def test_removed_adapters_leave_the_bank(driver: Driver) -> None:
    driver.answer(row("tone"))
    assert AdapterId("tone", 1) in driver.worker._resident
    driver.registry.remove(AdapterId("tone", 1))
    driver.until(lambda: AdapterId("tone", 1) not in driver.worker._resident, timeout_s=5)
    assert AdapterId("tone", 1) not in driver.worker._engine.resident
