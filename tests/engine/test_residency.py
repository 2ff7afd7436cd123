"""The bank's state after any history: who is resident, what the slots hold, and that every answer is the right one."""

import threading
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from adapters.base_model import BaseModelFiles
from adapters.errors import BankFull, UnknownAdapter, VerificationError
from adapters.reference import AdapterId
from adapters.store import Registry
from adapters.verify import Adapter
from engine.engine import Engine
from engine.rows import Answer, Row
from engine.slots import Slots
from tests.engine.test_bases import make_base
from tests.factory import TEXTS, AdapterShape, peft_logits, peft_model, save_adapter

SHAPES = (
    AdapterShape(seed=1, rank=2, max_tokens=80),
    AdapterShape(seed=2, rank=5, labels="abcde", targets=("query",), max_tokens=80),
    AdapterShape(seed=3, rank=3, labels="xyz", targets="all-linear", max_tokens=80),
    AdapterShape(seed=4, targets="dummy-target-modules", max_tokens=80),
    AdapterShape(seed=5, rank=1, max_tokens=80, peft={"modules_to_save": ["classifier", "pooler"]}),
    AdapterShape(seed=6, rank=8, targets=("value", "dense"), max_tokens=80),
)
IDS = tuple(AdapterId(f"a{index}", 1) for index in range(len(SHAPES)))
TEXT = TEXTS[0]


@pytest.fixture(scope="module")
def tiny(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> BaseModelFiles:
    return make_base(tmp_path_factory.mktemp("base"), "bert", base)


@pytest.fixture(scope="module")
def made(tiny: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, torch.Tensor]]:
    """Directories, and PEFT's own logits of one text."""
    root = tmp_path_factory.mktemp("made")
    registry = Registry(root / "registry")
    found = []
    for adapter, shape in zip(IDS, SHAPES, strict=True):
        registry.publish(save_adapter(root / adapter.name, tiny, shape), adapter.name)
        found.append((registry.directory(adapter), peft_logits(peft_model(tiny, shape), tiny, [TEXT], shape)[0]))
    return found


def read_all(engine: Engine, made: list[tuple[Path, torch.Tensor]]) -> list[Adapter]:
    return [engine.read(directory, adapter) for adapter, (directory, _) in zip(IDS, made, strict=True)]


adapters = st.integers(0, len(SHAPES) - 1)


@pytest.mark.parametrize(("bank_kib", "buckets"), [(None, False), (None, True), (120, False)])
def test_every_history_leaves_the_bank_whole(
    tiny: BaseModelFiles, made: list[tuple[Path, torch.Tensor]], bank_kib: int | None, buckets: bool
) -> None:
    capacities = set()

    class Histories(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            bank_bytes = None if bank_kib is None else bank_kib * 1024
            self.engine = Engine(tiny, capacity=3, bank_bytes=bank_bytes, buckets=buckets)
            self.read = read_all(self.engine, made)
            self.recent: list[AdapterId] = []
            """Model of the books: resident, least recently used first."""
            self.pinned: set[AdapterId] = set()

        @rule(index=adapters)
        def attach(self, index: int) -> None:
            known = IDS[index] in self.recent
            try:
                self.engine.attach(self.read[index])
            except BankFull:
                assert len(self.pinned) >= self.engine.capacity or bank_kib is not None
                return
            if not known:
                self.recent.append(IDS[index])
                while len(self.recent) > self.engine.capacity:
                    self.recent.remove(next(gone for gone in self.recent if gone not in self.pinned))

        @rule(wanted=st.lists(adapters, min_size=1, max_size=5))
        def classify(self, wanted: list[int]) -> None:
            outcomes, _ = self.engine.classify([Row(TEXT, IDS[index]) for index in wanted])
            for index, outcome in zip(wanted, outcomes, strict=True):
                if IDS[index] in self.recent:
                    assert isinstance(outcome, Answer)
                    torch.testing.assert_close(torch.tensor(outcome.logits), made[index][1], atol=1e-4, rtol=0)
                    self.recent.remove(IDS[index])
                    self.recent.append(IDS[index])
                else:
                    assert isinstance(outcome, UnknownAdapter)

        @rule(index=adapters)
        def pin(self, index: int) -> None:
            if IDS[index] in self.recent:
                self.engine.pin(IDS[index])
                self.pinned.add(IDS[index])
            else:
                with pytest.raises(UnknownAdapter):
                    self.engine.pin(IDS[index])

        @rule(index=adapters)
        def unpin(self, index: int) -> None:
            self.engine.unpin(IDS[index])
            self.pinned.discard(IDS[index])

        @rule(index=adapters)
        def detach(self, index: int) -> None:
            self.engine.detach(IDS[index])
            self.pinned.discard(IDS[index])
            if IDS[index] in self.recent:
                self.recent.remove(IDS[index])

        @invariant()
        def whole(self) -> None:
            self.engine.check_integrity()
            capacities.add(self.engine.capacity)
            assert self.engine.pinned == self.pinned
            assert self.engine.resident == tuple(self.recent)
            if bank_kib is not None:
                assert self.engine.bytes_per_adapter() * (self.engine.capacity + 2) <= bank_kib * 1024

    rules = settings(
        max_examples=12,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    run_state_machine_as_test(Histories, settings=rules)  # type: ignore[no-untyped-call]
    assert (min(capacities) < 3) == (bank_kib is not None)


def test_the_bank_takes_what_it_holds(tiny: BaseModelFiles, made: list[tuple[Path, torch.Tensor]]) -> None:
    """Memory of a resident adapter: its own weights, padded to the bank's rank and classes."""
    engine = Engine(tiny, capacity=4)
    first = read_all(engine, made)[0]
    engine.attach(first)
    assert engine.bytes_per_adapter() == first.bytes


def test_a_bank_too_small_for_one_says_so(tiny: BaseModelFiles, made: list[tuple[Path, torch.Tensor]]) -> None:
    engine = Engine(tiny, capacity=4, bank_bytes=16 * 1024)
    with pytest.raises(VerificationError, match="memory"):
        engine.attach(read_all(engine, made)[2])
    engine.check_integrity()


def test_what_is_awaited_does_not_make_room_before_it_was_used(
    tiny: BaseModelFiles, made: list[tuple[Path, torch.Tensor]]
) -> None:
    engine = Engine(tiny, capacity=1)
    first, second = read_all(engine, made)[:2]
    engine.attach(first, awaited=True)
    attaching = threading.Thread(target=engine.attach, args=(second,))
    attaching.start()
    attaching.join(0.5)
    assert attaching.is_alive() and engine.resident == (IDS[0],)
    outcomes, _ = engine.classify([Row(TEXT, IDS[0])])
    assert isinstance(outcomes[0], Answer)
    attaching.join(10)
    assert engine.resident == (IDS[1],)
    engine.attach(first, awaited=True)
    attaching = threading.Thread(target=engine.attach, args=(second,))
    attaching.start()
    engine.release(IDS[0])
    attaching.join(10)
    assert engine.resident == (IDS[1],)
    engine.pin(IDS[1])
    with pytest.raises(BankFull, match="unpin"):
        engine.attach(first)
    engine.check_integrity()


def test_the_integrity_check_can_fail(tiny: BaseModelFiles, made: list[tuple[Path, torch.Tensor]]) -> None:
    engine = Engine(tiny, capacity=2)
    engine.attach(read_all(engine, made)[0])
    lora = next(iter(engine._bank.lora.values()))
    lora.a[0, 0, 0] = 1.0
    with pytest.raises(AssertionError, match="slot 0 is not the base"):
        engine.check_integrity()
    slots = Slots(2)
    slots.settle(IDS[0], slots.spare(), awaited=False)
    slots._held[IDS[1]] = slots.slot(IDS[0])
    with pytest.raises(AssertionError, match="lost or double"):
        slots.check_integrity()


def test_batches_run_while_another_adapter_is_proved(
    tiny: BaseModelFiles, made: list[tuple[Path, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny, capacity=3)
    first, second = read_all(engine, made)[:2]
    engine.attach(first)
    proving, go_on = threading.Event(), threading.Event()
    check = engine._check_golden

    def slow_check(adapter: Adapter, slot: int) -> None:
        check(adapter, slot)
        proving.set()
        assert go_on.wait(10)

    monkeypatch.setattr(engine, "_check_golden", slow_check)
    attaching = threading.Thread(target=engine.attach, args=(second,))
    attaching.start()
    assert proving.wait(10)
    outcomes, _ = engine.classify([Row(TEXT, IDS[0]), Row(TEXT, IDS[1])])
    go_on.set()
    attaching.join(10)
    assert isinstance(outcomes[0], Answer) and isinstance(outcomes[1], UnknownAdapter)
    torch.testing.assert_close(torch.tensor(outcomes[0].logits), made[0][1], atol=1e-4, rtol=0)
    assert engine.resident == (IDS[0], IDS[1])
