"""The lean pass in static shapes gives what it gives in the batch's own shape, whatever the bank has been through."""

import threading
from pathlib import Path

import pytest
import torch

from adapters.base_model import BaseModelFiles
from adapters.reference import AdapterId
from adapters.store import Registry
from adapters.verify import Adapter
from engine.engine import Engine
from tests.engine.test_bases import make_base
from tests.factory import AdapterShape, save_adapter

SHAPES = (
    AdapterShape(seed=1, rank=2, max_tokens=80),
    AdapterShape(seed=2, rank=5, labels="abcde", targets="all-linear", max_tokens=80),
    AdapterShape(seed=3, targets="dummy-target-modules", max_tokens=80),
)


def load(base: BaseModelFiles, root: Path) -> list[Adapter]:
    reader = Engine(base, capacity=1)
    registry = Registry(root / "registry")
    found = []
    for shape in SHAPES:
        adapter = registry.publish(save_adapter(root / str(shape.seed), base, shape), f"a{shape.seed}")
        found.append(reader.read(registry.directory(adapter), adapter))
    return found


def batch(rows: int, longest: int, slots: int) -> tuple[list[list[int]], list[int]]:
    draw = torch.Generator().manual_seed(rows * 1000 + longest)
    lengths = [longest, *torch.randint(1, longest + 1, (rows - 1,), generator=draw).tolist()]
    ids = [torch.randint(1000, 29000, (length,), generator=draw).tolist() for length in lengths]
    return ids, torch.randint(0, slots, (rows,), generator=draw).tolist()


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_static_shapes_answer_as_the_own_shape(name: str, base: BaseModelFiles, tmp_path: Path) -> None:
    tiny = make_base(tmp_path / "base", name, base)
    adapters = load(tiny, tmp_path)
    static, own = Engine(tiny, capacity=4, buckets=True), Engine(tiny, capacity=4, buckets=False)
    assert static._buckets is not None
    for count, adapter in enumerate(adapters, 1):
        static.attach(adapter)
        own.attach(adapter)
        slots = [0, *(own.slot(known) for known in own.resident)]
        assert slots == [0, *(static.slot(known) for known in static.resident)]
        for rows, longest in ((1, 1), (1, 16), (3, 17), (7, 80), (25, 33)):
            ids, chosen = batch(rows, longest, count + 1)
            chosen = [slots[index] for index in chosen]
            torch.testing.assert_close(static.forward(ids, chosen), own.forward(ids, chosen), atol=1e-5, rtol=0)
        assert 0 < len(static._buckets.shapes) <= 5
    base_only = [0] * 3
    ids, _ = batch(3, 9, 1)
    torch.testing.assert_close(
        static.forward(ids, base_only, lora=False), own.forward(ids, base_only, lora=False), atol=1e-5, rtol=0
    )


def test_a_slot_written_in_place_keeps_the_shapes_and_a_growing_bank_does_not(
    base: BaseModelFiles, tmp_path: Path
) -> None:
    tiny = make_base(tmp_path / "base", "bert", base)
    small, large, _ = load(tiny, tmp_path)
    engine = Engine(tiny, capacity=2, buckets=True)
    assert engine._buckets is not None
    engine.attach(small)
    engine.forward([[101, 102]], [engine.slot(small.id)])
    engine.detach(small.id)
    engine.attach(small)
    engine.forward([[101, 102]], [engine.slot(small.id)])
    assert len(engine._buckets.shapes) == 1
    before = engine.forward([[101, 2000, 102]], [engine.slot(small.id)])
    engine.attach(large)
    after = engine.forward([[101, 2000, 102]], [engine.slot(small.id)])
    torch.testing.assert_close(after[:, :2], before, atol=1e-5, rtol=0)


def test_what_is_beyond_the_ladder_runs_in_its_own_shape(base: BaseModelFiles, tmp_path: Path) -> None:
    engine = Engine(make_base(tmp_path / "base", "bert", base), capacity=1, buckets=True)
    assert engine._buckets is not None
    assert engine.forward([[101, 102]] * 600, [0] * 600, lora=False).shape[0] == 600
    assert not engine._buckets.shapes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_captured_graphs_on_cuda_while_adapters_come_and_go(base: BaseModelFiles, tmp_path: Path) -> None:
    tiny = make_base(tmp_path / "base", "bert", base)
    adapters = load(tiny, tmp_path)
    engine = Engine(tiny, capacity=2, device="cuda", dtype=torch.float32)
    own = Engine(tiny, capacity=2)
    kept = adapters[0]
    engine.attach(kept)
    engine.pin(kept.id)
    own.attach(kept)
    ids, _ = batch(7, 40, 1)
    expected = own.forward(ids, [own.slot(kept.id)] * 7)
    stop = threading.Event()

    def load_others() -> None:
        while not stop.is_set():
            for adapter in adapters[1:]:
                engine.attach(adapter)

    loading = threading.Thread(target=load_others)
    loading.start()
    try:
        for _ in range(300):
            with engine._turn:
                found = engine.forward(ids, [engine.slot(kept.id)] * 7)
            torch.testing.assert_close(found[:, :2], expected, atol=1e-3, rtol=0)
    finally:
        stop.set()
        loading.join()
    assert engine._buckets is not None and engine._buckets.shapes
    engine.check_integrity()
    assert AdapterId("a1", 1) in engine.pinned
