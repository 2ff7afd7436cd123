"""The engine against PEFT, its oracle, and against itself one row at a time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from adapters.base_model import BaseModelFiles
from adapters.errors import InvalidText, TextTooLong, UnknownAdapter, VerificationError
from adapters.manifest import read_manifest, write_manifest
from adapters.reference import AdapterId
from adapters.store import Registry
from adapters.verify import LoraPair
from engine.engine import Engine
from engine.rows import Answer, BatchStats, Outcome, Row
from tests.factory import TEXTS, AdapterShape, peft_logits, peft_model, save_adapter

SHAPES = {
    "qv": AdapterShape(seed=1),
    "three": AdapterShape(labels=("negative", "neutral", "positive"), rank=2, seed=2),
    "all": AdapterShape(labels=tuple("abcdef"), rank=8, targets="all-linear", seed=3),
    "rslora": AdapterShape(rank=6, seed=4, peft={"use_rslora": True}),
    "patterns": AdapterShape(
        rank=4,
        seed=5,
        targets=("query", "key", "dense"),
        peft={"rank_pattern": {"key": 2, r"layer\.[01]\.output\.dense": 7}, "alpha_pattern": {"query": 3}},
    ),
    "pooler": AdapterShape(rank=3, seed=6, peft={"modules_to_save": ["classifier", "pooler"]}),
    "layers": AdapterShape(rank=3, seed=7, peft={"layers_to_transform": [1, 4]}),
    "head": AdapterShape(seed=8, targets="dummy-target-modules"),
    "left": AdapterShape(rank=5, seed=9, max_tokens=12, truncation_side="left"),
}


@pytest.fixture(scope="module")
def engine(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine with every shape resident, each verified by golden logits that PEFT computed."""
    registry = Registry(tmp_path_factory.mktemp("registry"))
    engine = Engine(base, capacity=16)
    for name, shape in SHAPES.items():
        source = save_adapter(tmp_path_factory.mktemp(name) / "adapter", base, shape, name=name)
        adapter = registry.publish(source, name)
        engine.attach(engine.read(registry.directory(adapter), adapter))
    return engine


def logits(engine: Engine, rows: list[Row]) -> list[torch.Tensor]:
    outcomes, _ = engine.classify(rows)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    assert len(answers) == len(rows), outcomes
    return [torch.tensor(answer.logits) for answer in answers]


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_pefts_own(engine: Engine, base: BaseModelFiles, name: str) -> None:
    expected = peft_logits(peft_model(base, SHAPES[name]), base, TEXTS, SHAPES[name])
    found = torch.stack(logits(engine, [Row(text, AdapterId(name, 1)) for text in TEXTS]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    # The adapters must differ from the base by more than the tolerance, or the comparison says nothing.
    assert expected.std() > 1e-2


def test_mixed_batch_is_one_by_one(engine: Engine) -> None:
    rows = [Row(text, AdapterId(name, 1)) for text in TEXTS for name in SHAPES]
    together = logits(engine, rows)
    for row, mixed in zip(rows, together, strict=True):
        (alone,) = logits(engine, [row])
        torch.testing.assert_close(mixed, alone, atol=1e-4, rtol=0)


def test_the_fast_path_is_the_plain_loop(engine: Engine) -> None:
    lora = next(iter(engine._bank.lora.values()))
    x = torch.randn(5, 7, lora.a.shape[1])
    for slots in ([1, 2, 3, 4, 5], [3] * 5, [0, 1, 0, 2, 0]):
        engine._bank.select(slots, lora=True)
        torch.testing.assert_close(lora(x), lora.reference(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "side"), [("left", "left"), ("all", "right")])
def test_what_was_read_of_a_cut_text(engine: Engine, name: str, side: str) -> None:
    """Read alone, the characters that were kept give the same answer, and no character more would have fitted."""
    text = "Ünïcode 🎬 first, " + ", ".join(f"word{at} said" for at in range(150)) + " and the very last 🎬"
    adapter = AdapterId(name, 1)
    (cut,), _ = engine.classify([Row(text, adapter)])
    assert isinstance(cut, Answer) and cut.truncated and cut.kept is not None
    start, end = cut.kept
    assert (start == 0) == (side == "right") and (end == len(text)) == (side == "left")
    (same, longer), _ = engine.classify(
        [Row(text[start:end], adapter), Row(text[max(0, start - 6) : end + 6], adapter)]
    )
    assert isinstance(same, Answer) and isinstance(longer, Answer)
    assert (same.truncated, same.kept, same.tokens, longer.truncated) == (False, None, cut.tokens, True)
    assert same.logits == pytest.approx(cut.logits, abs=1e-4)


def test_rows_fail_alone(engine: Engine) -> None:
    outcomes, stats = engine.classify(
        [
            Row("fine", AdapterId("qv", 1)),
            Row("fine", AdapterId("nobody", 1)),
            Row("word " * 50, AdapterId("left", 1), long_text="refuse"),
            Row("word " * 50, AdapterId("left", 1)),
        ]
    )
    assert isinstance(outcomes[0], Answer)
    assert isinstance(outcomes[1], UnknownAdapter)
    assert isinstance(outcomes[2], TextTooLong)
    assert isinstance(outcomes[3], Answer)
    assert (outcomes[0].truncated, outcomes[3].truncated, outcomes[3].tokens) == (False, True, 12)
    assert stats.rows == 2


def test_half_a_surrogate_pair_touches_no_other_row(engine: Engine) -> None:
    outcomes, _ = engine.classify([Row("half \ud800", AdapterId("qv", 1)), Row("whole \U0001f600", AdapterId("qv", 1))])
    assert isinstance(outcomes[0], InvalidText)
    assert isinstance(outcomes[1], Answer)


def test_nothing_to_do(engine: Engine) -> None:
    told: list[list[tuple[int, Outcome]]] = []
    assert engine.classify([], lambda found, _: told.append(found))[0] == []
    assert told == [[]]


def test_short_rows_are_reported_before_long_ones(engine: Engine) -> None:
    """Each row once, and what is reported is what is returned; a row in windows when its last one is there."""
    qv, left = AdapterId("qv", 1), AdapterId("left", 1)
    rows = [Row("word " * 100, qv)] * 8 + [Row("fine", qv)] * 8 + [Row("fine", AdapterId("nobody", 1))]
    rows.append(Row("word " * 40, left, "windows"))
    told: list[list[tuple[int, Outcome]]] = []
    seen: list[BatchStats] = []

    def report(found: list[tuple[int, Outcome]], stats: BatchStats) -> None:
        told.append(found)
        seen.append(stats)

    outcomes, stats = engine.classify(rows, report)
    reported = [at for found in told for at, _ in found]
    assert sorted(reported) == list(range(len(rows))) and len(told) > 1
    assert set(range(8, 17)) <= {at for at, _ in told[0]} and set(range(8)) <= {at for at, _ in told[-1]}
    assert dict(pair for found in told for pair in found) == dict(enumerate(outcomes))
    assert seen[-1] == stats and [each.micro_batches for each in seen] == list(range(1, stats.micro_batches + 1))


def test_least_recently_used_makes_room(base: BaseModelFiles, registry: Registry, tmp_path: Path) -> None:
    engine = Engine(base, capacity=2)
    ids = []
    for seed in range(3):
        source = save_adapter(tmp_path / str(seed), base, AdapterShape(seed=seed))
        ids.append(registry.publish(source, f"a{seed}"))
    for adapter in ids[:2]:
        engine.attach(engine.read(registry.directory(adapter), adapter))
    engine.classify([Row("touch", ids[0])])
    before = logits(engine, [Row(TEXTS[0], ids[0])])[0]
    engine.attach(engine.read(registry.directory(ids[2]), ids[2]))
    assert set(engine.resident) == {ids[0], ids[2]}
    torch.testing.assert_close(logits(engine, [Row(TEXTS[0], ids[0])])[0], before, atol=1e-6, rtol=0)


def test_wrong_golden_logits_are_refused_and_evict_nobody(
    base: BaseModelFiles, registry: Registry, tmp_path: Path
) -> None:
    engine = Engine(base, capacity=1)
    good = registry.publish(save_adapter(tmp_path / "good", base, AdapterShape(seed=1)), "good")
    engine.attach(engine.read(registry.directory(good), good))
    before = logits(engine, [Row(TEXTS[0], good)])[0]
    source = save_adapter(tmp_path / "bad", base, AdapterShape(seed=2))
    manifest = read_manifest(source)
    wrong = manifest.golden[0].model_copy(update={"logits": (9.0, -9.0)})
    write_manifest(source, manifest.model_copy(update={"golden": (wrong,)}))
    bad = registry.publish(source, "bad")
    with pytest.raises(VerificationError, match=r"bad@1.*golden logits"):
        engine.attach(engine.read(registry.directory(bad), bad))
    assert engine.resident == (good,)
    torch.testing.assert_close(logits(engine, [Row(TEXTS[0], good)])[0], before, atol=1e-6, rtol=0)


def test_whatever_breaks_in_attach_gives_the_slot_back(
    base: BaseModelFiles, registry: Registry, tmp_path: Path
) -> None:
    engine = Engine(base, capacity=1)
    good, broken = (
        registry.publish(save_adapter(tmp_path / name, base, AdapterShape(seed=seed)), name)
        for seed, name in enumerate(("good", "broken"))
    )
    engine.attach(engine.read(registry.directory(good), good))
    before = logits(engine, [Row(TEXTS[0], good)])[0]
    read = engine.read(registry.directory(broken), broken)
    misshapen = {key: LoraPair(pair.a[:5], pair.b) for key, pair in read.lora.items()}
    with pytest.raises(ValueError, match="does not fit a slot"):
        engine.attach(replace(read, lora=misshapen))
    engine.check_integrity()
    assert engine.resident == (good,)
    torch.testing.assert_close(logits(engine, [Row(TEXTS[0], good)])[0], before, atol=1e-6, rtol=0)
    engine.attach(read)
    assert engine.resident == (broken,)


@pytest.mark.parametrize("name", ["left", "all"])
def test_windows_pool_pefts_own_logits(engine: Engine, base: BaseModelFiles, name: str) -> None:
    """Every token is read, each window as PEFT reads it, and the pooled logits weigh windows by their tokens."""
    shape = SHAPES[name]
    words = [f"word{at % 7} fine" if at % 3 else "dull" for at in range(20 if name == "left" else 180)]
    text = " ".join(words)
    tokenizer = AutoTokenizer.from_pretrained(base.directory)
    inner = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    room = shape.max_tokens - 2
    starts, stride = [0], room - room // 4
    while starts[-1] + room < len(inner):
        starts.append(starts[-1] + stride)
    model = peft_model(base, shape)
    weighted, total = torch.zeros(len(shape.labels)), 0
    with torch.inference_mode():
        for start in starts:
            ids = [tokenizer.cls_token_id, *inner[start : start + room], tokenizer.sep_token_id]
            weighted += len(ids) * model(input_ids=torch.tensor([ids])).logits[0]
            total += len(ids)
    (outcome,), _ = engine.classify([Row(text, AdapterId(name, 1), "windows")])
    assert isinstance(outcome, Answer)
    assert (outcome.windows, outcome.tokens, outcome.truncated) == (len(starts), total, False)
    torch.testing.assert_close(torch.tensor(outcome.logits), weighted / total, atol=1e-4, rtol=0)


def test_windows_are_for_long_texts_and_bounded(engine: Engine) -> None:
    short, endless = Row(TEXTS[0], AdapterId("qv", 1), "windows"), Row("word " * 9000, AdapterId("qv", 1), "windows")
    (answer, refused), _ = engine.classify([short, endless])
    assert isinstance(answer, Answer) and answer.windows == 1
    assert isinstance(refused, TextTooLong)
    torch.testing.assert_close(
        torch.tensor(answer.logits), logits(engine, [short._replace(long_text="truncate")])[0], atol=1e-6, rtol=0
    )
