"""Fair shares: of the worker's time between adapters, and of the queue."""

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from adapters.errors import Overloaded, TooManyTokens
from adapters.reference import AdapterId
from engine.rows import Row
from service.admission import Admission, Pace, estimated_tokens
from service.turns import Turns

FLOOD, QUIET, LONG = (AdapterId(name, 1) for name in ("flood", "quiet", "long"))


def rows(count: int, adapter: AdapterId = FLOOD, text: str = "a text") -> list[Row]:
    return [Row(text, adapter)] * count


def admit(max_rows: int, max_tokens: int) -> Admission:
    return Admission(max_rows, max_tokens, max_wait_s=3, least_tokens=64)


def test_a_flooding_adapter_does_not_keep_another_waiting() -> None:
    turns: Turns[int] = Turns()
    for at in range(1000):
        turns.put(FLOOD, 10, at)
    for at in range(3):
        turns.put(QUIET, 10, 10_000 + at)
    taken = [turns.pop()[1] for _ in range(40)]
    assert {10_000, 10_001, 10_002} <= set(taken)
    assert [item for item in taken if item < 1000] == list(range(37))


def test_turns_are_worth_tokens_and_not_texts() -> None:
    turns: Turns[AdapterId] = Turns()
    for _ in range(200):
        turns.put(LONG, 500, LONG)
    for _ in range(4000):
        turns.put(QUIET, 20, QUIET)
    tokens = {LONG: 0, QUIET: 0}
    for _ in range(2000):
        cost, adapter = turns.pop()
        tokens[adapter] += cost
    assert 0.9 < tokens[LONG] / tokens[QUIET] < 1.1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 600)), max_size=120), st.integers(0, 2**16))
def test_nothing_is_lost_and_each_adapter_keeps_its_order(items: list[tuple[int, int]], seed: int) -> None:
    draw, turns = random.Random(seed), Turns[int]()
    waiting, taken = list(enumerate(items)), []
    while waiting or len(turns):
        if waiting and (draw.random() < 0.5 or not len(turns)):
            at, (adapter, tokens) = waiting.pop(0)
            turns.put(AdapterId(f"a{adapter}", 1), tokens, at)
        else:
            taken.append(turns.pop()[1])
        assert turns.tokens == sum(items[at][1] for at in turns)
    assert sorted(taken) == list(range(len(items)))
    for adapter in range(5):
        own = [at for at in taken if items[at][0] == adapter]
        assert own == sorted(own)


def test_what_waited_elsewhere_goes_first() -> None:
    turns: Turns[str] = Turns()
    turns.put(FLOOD, 1, "flood")
    turns.put(QUIET, 1, "third")
    turns.put_first(QUIET, [(1, "first"), (1, "second")])
    assert [turns.pop()[1] for _ in range(3)] == ["first", "second", "third"]


def test_one_adapter_leaves_room_in_the_queue_for_others() -> None:
    admission = admit(100, 100_000)
    admitted = 0
    with pytest.raises(Overloaded, match="adapter flood") as caught:
        while True:
            admission.enter(rows(1), 7)
            admitted += 1
    assert admitted == 75 and caught.value.retry_after_s == 7
    place = admission.enter(rows(20, QUIET), 1)
    with pytest.raises(Overloaded):
        admission.enter(rows(1), 1)
    admission.leave(place)
    assert (admission.rows, set(admission._by_adapter)) == (75, {"flood"})


def test_an_empty_queue_takes_any_request_that_it_can_hold() -> None:
    admit(100, 100_000).enter(rows(100), 1)


def test_the_queue_is_bounded_in_tokens_too() -> None:
    admission = admit(1000, 1000)
    long = "word " * 300  # 502 tokens as estimated
    admission.enter(rows(1, text=long), 1)
    with pytest.raises(Overloaded):
        admission.enter(rows(1, QUIET, long), 1)
    with pytest.raises(TooManyTokens):
        admission.enter(rows(2, QUIET, long), 1)
    admission.enter(rows(1, QUIET), 1)


def test_the_pace_is_of_the_time_in_which_something_waited() -> None:
    pace = Pace()
    assert pace.tokens_per_s is None
    for second in range(100):  # 50 ms of work a second, then nothing to do
        pace.work(second)
        pace.answer(10, second + 0.05, idle=True)
    assert pace.tokens_per_s == pytest.approx(200)
    pace.work(200.0)
    for tenth in range(1, 61):  # then a rush
        pace.answer(100, 200 + tenth / 10, idle=tenth == 60)
    assert pace.tokens_per_s == pytest.approx(1000)


def test_the_queue_is_bounded_in_time() -> None:
    """At 100 tokens a second, 300 may wait for 3 s; what is asked for in one piece may be more."""
    admission = admit(10_000, 100_000)
    admission.pace.work(0.0)
    admission.pace.answer(100, 1.0, idle=True)
    assert estimated_tokens(rows(1)[0]) == 4
    whole = admission.enter(rows(1000), 1)
    with pytest.raises(Overloaded, match="4000 tokens are waiting, at most 10000 of 300 may") as caught:
        admission.enter(rows(1, QUIET), 9)
    assert caught.value.retry_after_s == 9
    admission.leave(whole)
    admitted = 0
    with pytest.raises(Overloaded, match="adapter flood"):
        while True:
            admission.enter(rows(1), 1)
            admitted += 1
    assert admitted == pytest.approx(0.75 * 300 / 4, abs=1)
    admission.enter(rows(1, QUIET), 1)


def test_a_slow_pace_still_leaves_room_for_a_batch() -> None:
    admission = admit(10_000, 100_000)
    admission.pace.work(0.0)
    admission.pace.answer(1, 1.0, idle=True)
    for _ in range(11):
        admission.enter(rows(1), 1)


@pytest.mark.parametrize("text", ["", "a stirring, funny film", "一部动人的电影", "\ud800", "x" * 100_000])
def test_estimates_are_bounded_where_a_text_is_cut(text: str) -> None:
    assert 2 <= estimated_tokens(Row(text, FLOOD)) <= 512
    assert estimated_tokens(Row("x" * 100_000, FLOOD, "windows")) > 30_000
