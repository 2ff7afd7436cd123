"""The analysis against published figures, other libraries, and simulated experiments of which the truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import f1_score

from service.analysis import (
    Analysis,
    ArmData,
    Label,
    PairData,
    UnitSums,
    analyse,
    compare_pairs,
    course,
    exceeds,
    half_width,
    required_units,
    required_units_anytime,
    sample_ratio_p,
)


def arm(name: str, labelled: list[int], correct: list[int], *, texts: int | None = None, weight: float = 1) -> ArmData:
    sums = [
        UnitSums(count, right, f"{name} {at}") for at, (count, right) in enumerate(zip(labelled, correct, strict=True))
    ]
    return arm_of(name, sums, texts=texts, weight=weight)


def arm_of(name: str, sums: list[UnitSums], *, texts: int | None = None, weight: float = 1) -> ArmData:
    total, right = sum(unit.labelled for unit in sums), sum(unit.correct for unit in sums)
    pairs = {("a", "a"): right, ("a", "b"): total - right}
    return ArmData(
        name=name,
        weight=weight,
        texts=texts or total,
        units=len(sums),
        errors=0,
        split=len(sums),
        sums=sums,
        confusion={pair: count for pair, count in pairs.items() if count},
        bins=[(total, right, 0.9 * total)],
        p50_ms=10.0,
        p99_ms=20.0,
    )


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
    twenty = [20 * one for one in ones]
    clustered = analyse([arm("a", [20] * 200, twenty), arm("b", [20] * 200, twenty)]).differences[0]
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


def test_the_verdict_in_words() -> None:
    good, bad = [1] * 900 + [0] * 100, [1] * 600 + [0] * 400
    one = [1] * 1000
    better = analyse([arm("control", one, bad), arm("treatment", one, good)]).sentence
    assert better.startswith("treatment is better than control: +30.0 points of accuracy, +2")
    assert analyse([arm("a", one, good), arm("b", one, bad)]).sentence.startswith("b is worse than a: -30.0 points")
    assert analyse([arm("a", one, good), arm("b", one, good)]).sentence.startswith("Undecided between b and a: +0.0")
    little = analyse([arm("a", [1] * 29, [1] * 29), arm("b", [1] * 40, [1] * 40)]).sentence
    assert little == "Too little feedback for a verdict: each arm needs 30 labelled units; a has 29, b has 40."
    assert analyse([arm("a", one, good)]).sentence.startswith("a is the only arm")
    split = analyse([arm("a", one, good), arm("b", [1] * 300, [1] * 300)])
    assert split.void and split.sentence.startswith("Void: ")


def test_a_look_back_is_what_was_seen_then() -> None:
    """Each look is the analysis of the labels there were; the last is that of all, over two periods of the weights."""
    draw = np.random.default_rng(3)
    right = draw.random(3000) < np.tile([0.7, 0.8], 1500)
    units = [f"unit {unit}" for unit in draw.integers(900, size=3000)]
    labels = [Label("ab"[at % 2], at // 1500, units[at], float(at), bool(right[at])) for at in range(3000)]

    def analysed(seen: list[Label]) -> Analysis:
        of_units: dict[str, dict[tuple[int, str], list[bool]]] = {"a": {}, "b": {}}
        for label in seen:
            of_units[label.arm].setdefault((label.period, label.unit), []).append(label.correct)
        return analyse(
            [
                arm_of(name, [UnitSums(len(found), sum(found), unit, period) for (period, unit), found in each.items()])
                for name, each in of_units.items()
            ]
        )

    looks = course(["a", "b"], labels)
    assert len(looks) == 40 and looks[-1].at_s == 2999
    for look in (looks[1], looks[20], looks[-1]):
        expected = analysed([label for label in labels if label.at_s <= look.at_s])
        assert look.labelled == tuple(found.labelled for found in expected.arms)
        assert look.accuracy == pytest.approx([found.accuracy for found in expected.arms])
        (now,), (then,) = look.differences, expected.differences
        assert (now.accuracy, now.anytime.low, now.fixed.high) == pytest.approx(
            (then.accuracy, then.anytime.low, then.fixed.high)
        )
    assert course(["a", "b"], []) == ()
    assert [look.differences for look in course(["a", "b"], labels[:3])] == [()] * 3
    assert len(course(["a", "b"], [label for label in labels for _ in range(30)])) == 11


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
    data = replace(arm_of("a", [UnitSums(100, 65, "u")]), confusion=confusion, bins=[(60, 30, 54.0), (40, 35, 24.0)])
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


def test_the_planned_units_are_enough_and_not_too_many() -> None:
    """1,000 experiments of the planned size, looked at after every 100 units: so many see it as promised."""
    draw = np.random.default_rng(9)
    planned = required_units_anytime(0.80, 0.06, power=0.8)
    assert planned > required_units(0.80, 0.06, power=0.8)
    seen, right, n = np.zeros(1000, bool), np.zeros((2, 1000)), 0
    while n < planned:
        step = min(100, planned - n)
        n += step
        right += draw.binomial(step, np.array([[0.80], [0.86]]), (2, 1000))
        accuracy = right / n
        error = np.sqrt((accuracy * (1 - accuracy) / (n - 1)).sum(0))
        seen |= accuracy[1] - accuracy[0] > half_width(1.0, 2 * n) * error
    print(f"of experiments with the planned {planned} units an arm, {seen.mean():.1%} see the difference")
    assert 0.78 <= seen.mean() <= 0.88
    with pytest.raises(ValueError, match="between 0 and 1"):
        required_units_anytime(0.5, 0.0)


def test_changed_weights_do_not_confound_the_arms() -> None:
    """Simpson's paradox: a bad week in which the treatment had most units is not the treatment's fault."""
    draw = np.random.default_rng(3)

    def week(name: str, period: int, units: int, accuracy: float) -> list[UnitSums]:
        right = draw.binomial(1, accuracy, units).tolist()
        return [UnitSums(1, each, f"{name} {period} {at}", period) for at, each in enumerate(right)]

    control = [*week("c", 0, 4000, 0.90), *week("c", 1, 1000, 0.60)]
    treatment = [*week("t", 0, 1000, 0.92), *week("t", 1, 4000, 0.62)]
    pooled = sum(unit.correct for unit in treatment) / 5000 - sum(unit.correct for unit in control) / 5000
    (found,) = analyse([arm_of("control", control), arm_of("treatment", treatment)]).differences
    assert pooled < -0.1 and found.verdict != "worse"
    assert found.accuracy == pytest.approx(0.02, abs=0.03) and found.fixed.low < 0.02 < found.fixed.high


def test_a_unit_that_comes_back_in_the_next_period_counts_once() -> None:
    draw = np.random.default_rng(4)
    ones = {name: draw.binomial(1, 0.8, 300).tolist() for name in "ab"}
    once = [arm_of(name, [UnitSums(1, one, f"{name}{at}") for at, one in enumerate(ones[name])]) for name in "ab"]
    twice = [
        arm_of(
            name, [UnitSums(1, one, f"{name}{at}", period) for period in (0, 1) for at, one in enumerate(ones[name])]
        )
        for name in "ab"
    ]
    first, second = (analyse(arms).differences[0] for arms in (once, twice))
    assert second.fixed.low == pytest.approx(first.fixed.low) and second.anytime.low == pytest.approx(first.anytime.low)


def test_mcnemar_is_the_textbooks() -> None:
    """Agresti, "Categorical Data Analysis", table 10.1: 86 and 150 changed their minds; and statsmodels' exact test."""
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    found = compare_pairs(PairData(1600, 1364, 0.0, [], 150, 86))
    assert found.mcnemar_p == pytest.approx(tables.mcnemar([[794, 150], [86, 570]], exact=True).pvalue)
    assert found.mcnemar_p is not None and found.mcnemar_p < 0.001 and found.anytime is None


def test_pairs_see_what_two_groups_cannot() -> None:
    draw = np.random.default_rng(6)
    arm_right = draw.binomial(1, 0.85, 3000)
    shadow_right = np.where(draw.random(3000) < 0.05, 1, arm_right)  # the same, but for a few that it has right
    sums = [
        UnitSums(1, int(b) - int(a), f"{at}") for at, (a, b) in enumerate(zip(arm_right, shadow_right, strict=True))
    ]
    only_shadow = int(((shadow_right == 1) & (arm_right == 0)).sum())
    paired = compare_pairs(PairData(3000, 3000 - only_shadow, 0.01, sums, 0, only_shadow))
    grouped = analyse([arm("a", [1] * 3000, arm_right.tolist()), arm("b", [1] * 3000, shadow_right.tolist())])
    assert paired.verdict == "better" and grouped.differences[0].verdict == "undecided"
    assert compare_pairs(PairData(0, 0, None, [], 0, 0)).verdict == "undecided"


def test_a_guardrail_looked_at_often_is_rarely_wrong() -> None:
    """1,000 services whose true error rate is the limit, a look after every 20 requests."""
    draw = np.random.default_rng(7)
    ever = 0
    for _ in range(1000):
        errors = np.cumsum(draw.binomial(20, 0.01, 100))
        ever += any(exceeds(int(count), 20 * look, 0.01) for look, count in enumerate(errors, 1))
    print(f"guardrail crossed at some look although it was kept: {ever / 1000:.1%}")
    assert ever / 1000 <= 0.05
    assert exceeds(20, 200, 0.01) and not exceeds(0, 200, 0.01) and not exceeds(0, 0, 0.01)
    assert not exceeds(2, 100, 0.01)
