"""The analysis against published figures, other libraries, and simulated experiments of which the truth is known."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import f1_score

from service.analysis import ArmData, UnitSums, analyse, half_width, required_units, sample_ratio_p


def arm(name: str, labelled: list[int], correct: list[int], *, texts: int | None = None, weight: float = 1) -> ArmData:
    sums = [UnitSums(count, right) for count, right in zip(labelled, correct, strict=True)]
    total, right = sum(labelled), sum(correct)
    pairs = {("a", "a"): right, ("a", "b"): total - right}
    confusion = {pair: count for pair, count in pairs.items() if count}
    return ArmData(name, weight, texts or total, len(sums), sums, confusion, [(total, right, 0.9 * total)], 10.0)


def test_the_confidence_sequence_is_the_papers() -> None:
    """Tightest where it was tuned to be, wider than the fixed interval everywhere, and never by much."""
    factors = {units: half_width(1.0, units, tuned_for=5000) for units in (100, 500, 5000, 50_000, 500_000)}
    assert all(factor > norm.ppf(0.975) for factor in factors.values())
    assert factors[5000] == pytest.approx(3.035, abs=0.001)
    # Theorem 2.2 written out for one point.
    units, rho_squared = 1234, (-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / 5000
    scaled = units * rho_squared
    expected = math.sqrt(2 * (scaled + 1) / (units**2 * rho_squared) * math.log(math.sqrt(scaled + 1) / 0.05))
    assert half_width(0.7 / math.sqrt(units), units) == pytest.approx(0.7 * expected)


def test_looking_often_is_harmless_and_would_not_be_naively() -> None:
    """1,000 experiments without a difference, a look after every 100 labels: who is ever wrong?"""
    draw = np.random.default_rng(5)
    experiments, looks, each = 1000, 50, 50  # 50 labels an arm between two looks
    ever_anytime, ever_naive = np.zeros(experiments, bool), np.zeros(experiments, bool)
    right = np.zeros((2, experiments))
    for look in range(1, looks + 1):
        right += draw.binomial(each, 0.85, (2, experiments))
        n = look * each
        accuracy = right / n
        error = np.sqrt((accuracy * (1 - accuracy) / (n - 1)).sum(0))
        difference = np.abs(accuracy[1] - accuracy[0])
        ever_naive |= difference > norm.ppf(0.975) * error
        ever_anytime |= difference > half_width(1.0, 2 * n) * error
    print(f"wrong at some look: anytime {ever_anytime.mean():.1%}, naive {ever_naive.mean():.1%}")
    assert ever_anytime.mean() <= 0.05
    assert ever_naive.mean() > 0.20


def test_a_real_difference_is_found_and_its_direction() -> None:
    draw = np.random.default_rng(1)
    worse, better = (draw.binomial(1, p, 4000).tolist() for p in (0.80, 0.90))
    found = analyse([arm("control", [1] * 4000, worse), arm("treatment", [1] * 4000, better)])
    (difference,) = found.differences
    assert difference.verdict == "better" and difference.anytime.low > 0
    assert difference.fixed.low > difference.anytime.low and difference.fixed.high < difference.anytime.high
    (other,) = analyse([arm("control", [1] * 4000, better), arm("treatment", [1] * 4000, worse)]).differences
    assert other.verdict == "worse" and not found.warnings and not found.void


def test_texts_of_one_unit_do_not_count_as_many() -> None:
    """200 units of 20 texts each, all right or all wrong: as uncertain as 200 texts, not as 4,000."""
    draw = np.random.default_rng(2)
    ones = draw.binomial(1, 0.8, 200).tolist()
    alone = analyse([arm("a", [1] * 200, ones), arm("b", [1] * 200, ones)]).differences[0]
    clustered = analyse([arm("a", [20] * 200, [20 * one for one in ones])] * 2).differences[0]
    assert clustered.fixed.high == pytest.approx(alone.fixed.high)
    assert alone.fixed.high == pytest.approx(1.96 * math.sqrt(2 * np.var(ones, ddof=1) / 200), rel=1e-3)


def test_a_wrong_split_voids_the_result() -> None:
    """Half and half ordered: 4,850 to 5,150 is three standard errors off, p = 0.0027."""
    exact = sample_ratio_p([arm("a", [1] * 4850, [1] * 4850), arm("b", [1] * 5150, [1] * 5150)])
    assert exact == pytest.approx(2 * norm.sf(300 / math.sqrt(10_000)), rel=1e-6)
    far = analyse([arm("a", [1] * 4000, [1] * 4000), arm("b", [1] * 5000, [0] * 5000)])
    assert far.void and not far.differences and "void" in far.warnings[0]
    ordered = analyse(
        [
            arm("a", [1] * 4000, [1] * 3600 + [0] * 400, weight=4),
            arm("b", [1] * 5000, [1] * 3500 + [0] * 1500, weight=5),
        ]
    )
    assert not ordered.void and ordered.differences[0].verdict == "worse"


def test_feedback_that_depends_on_the_arm_is_pointed_out() -> None:
    found = analyse(
        [arm("a", [1] * 500, [1] * 400 + [0] * 100, texts=1000), arm("b", [1] * 500, [1] * 400 + [0] * 100, texts=2000)]
    )
    assert any("feedback" in warning for warning in found.warnings)


def test_too_little_says_nothing() -> None:
    assert analyse([arm("a", [1] * 29, [1] * 29), arm("b", [1] * 500, [1] * 500)]).differences == ()
    empty = analyse([arm("a", [], []), arm("b", [], [])])
    assert empty.arms[0].accuracy is None and empty.sample_ratio_p is None and not empty.void


def test_macro_f1_and_calibration_are_the_known_ones() -> None:
    said = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    true = ["a"] * 40 + ["b"] * 10 + ["b"] * 25 + ["a"] * 5 + ["b"] * 20
    confusion: dict[tuple[str, str], int] = {}
    for pair in zip(said, true, strict=True):
        confusion[pair] = confusion.get(pair, 0) + 1
    data = ArmData("a", 1, 100, 100, [UnitSums(100, 65)], confusion, [(60, 30, 54.0), (40, 35, 24.0)], 1.0)
    summary = analyse([data]).arms[0]
    assert summary.macro_f1 == pytest.approx(f1_score(true, said, average="macro"))
    assert summary.calibration_error == pytest.approx(0.6 * abs(0.5 - 0.9) + 0.4 * abs(0.875 - 0.6))


def test_required_units_are_statsmodels() -> None:
    power = pytest.importorskip("statsmodels.stats.proportion")
    found = required_units(0.85, 0.03)
    reached = power.power_proportions_2indep(0.03, 0.85, found, alternative="two-sided").power
    assert reached == pytest.approx(0.8, abs=0.005)
    for accuracy, difference in ((0.0, 0.1), (0.95, 0.1), (0.5, 0.0)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            required_units(accuracy, difference)
