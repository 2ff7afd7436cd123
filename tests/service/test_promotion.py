"""When a promotion steps, and whole promotions of simulated candidates of which the truth is known."""

import math

import numpy as np
import pytest

from service.analysis import Difference, Interval, half_width
from service.promotion import decide
from service.results import Evidence
from service.routing import Promotion

RAILS = {"error_rate": 0.01, "p99_ms": 200, "accuracy": 0.02}
PROMOTION = Promotion.model_validate({"stages": [1, 5, 25, 100], "guardrails": RAILS, "hold_s": 60, "units": 100})
GOOD = Evidence(units=500, texts=1000, errors=1, slow=2)


def difference(middle: float, half: float) -> Difference:
    interval = Interval(middle - half, middle + half)
    return Difference("candidate", middle, interval, interval, "undecided")


@pytest.mark.parametrize(
    ("percent", "held_s", "seen", "found", "void", "towards", "reason"),
    [
        (1, 30, GOOD, difference(0, 0.1), False, "wait", "30 of 60 s"),
        (1, 90, GOOD._replace(units=99), difference(0, 0.1), False, "wait", "99 of 100 units"),
        (1, 90, GOOD, None, False, "wait", "too few units with feedback"),
        (1, 90, GOOD, difference(0, 0.1), True, "wait", "split"),
        (1, 90, GOOD, difference(0, 0.1), False, "forward", "at 5 % it may cost all traffic 0.0050"),
        (5, 90, GOOD, difference(0, 0.1), False, "wait", "at 25 % it may cost all traffic 0.0250 of accuracy, 0.02"),
        (25, 90, GOOD, difference(0.01, 0.02), False, "forward", "500 units"),
        (25, 90, GOOD._replace(errors=12), difference(0.01, 0.02), False, "wait", "12 of 1000 texts failed"),
        (25, 90, GOOD._replace(slow=12), difference(0.01, 0.02), False, "wait", "more than 200 ms"),
        (25, 10, GOOD._replace(errors=60), difference(0.01, 0.02), False, "back", "error rate: 60 of 1000"),
        (25, 10, GOOD._replace(slow=60), difference(0.01, 0.02), False, "back", "p99: 60 of 1000"),
        (25, 10, GOOD, difference(-0.05, 0.02), False, "back", "accuracy: -0.0700 to -0.0300"),
        (100, 90, GOOD, difference(0.0, 0.02), False, "finish", "held at 100 %"),
        (100, 90, GOOD._replace(errors=60), None, False, "back", "error rate"),
    ],
)
def test_a_step_and_its_reason(
    percent: float, held_s: float, seen: Evidence, found: Difference | None, void: bool, towards: str, reason: str
) -> None:
    step = decide(PROMOTION, percent, held_s, seen, found, void)
    assert step.towards == towards and reason in step.reason


def test_without_guardrails_time_and_units_are_enough() -> None:
    plain = Promotion(stages=(50, 100), hold_s=0, units=1)
    assert decide(plain, 50, 0, Evidence(1, 1, 1, 1), None, False).towards == "forward"
    assert decide(plain, 100, 0, Evidence(1, 1, 1, 1), None, False).towards == "finish"


def test_harm_rarely_gets_through_and_quality_does() -> None:
    """300 candidates each: as good as the control, and worse by twice what may be lost."""
    draw = np.random.default_rng(8)
    ended = {true: [_promote(draw, 0.85 + true) for _ in range(300)] for true in (0.0, -0.04)}
    shares = {true: [found.count(end) / 300 for end in ("finish", "back")] for true, found in ended.items()}
    print(f"as good: promoted {shares[0.0][0]:.1%}, back {shares[0.0][1]:.1%}")
    print(f"worse by 0.04: promoted {shares[-0.04][0]:.1%}, back {shares[-0.04][1]:.1%}")
    assert shares[0.0][0] > 0.9 and shares[0.0][1] <= 0.05
    assert shares[-0.04][0] <= 0.05 and shares[-0.04][1] > 0.9


def _promote(draw: np.random.Generator, accuracy: float) -> str:
    """One promotion: 2,000 labelled units between two looks, for 100 looks, then whatever it is."""
    percent, right, seen = 1.0, np.zeros(2), np.zeros(2)
    for _ in range(100):
        units = np.array([2000 * (1 - percent / 100), 2000 * percent / 100]).astype(int)
        seen += units
        right += draw.binomial(units, (0.85, accuracy))
        found = None
        if seen.min() >= 30:
            means = right / seen
            half = half_width(math.sqrt((means * (1 - means) / (seen - 1)).sum()), int(seen.sum()))
            found = difference(float(means[1] - means[0]), half)
        step = decide(PROMOTION, percent, 100, Evidence(1000, 1000, 0, 0), found, False)
        if step.towards in ("finish", "back"):
            return step.towards
        percent = step.percent
    return "undecided"
