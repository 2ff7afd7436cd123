"""What an experiment's numbers allow to be said. Pure: counts in, statements out.

Looks may be taken at any time and as often as wanted: the difference comes with an asymptotic confidence sequence
(Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences", arXiv 2103.06476, theorem 2.2), which holds at all looks at once. Texts of one unit are not independent, so
units are what is counted: an arm's accuracy is a ratio of sums over units, its variance by the delta method (Deng,
Knoblich and Lu, KDD 2018).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

ALPHA = 0.05
SAMPLE_RATIO_P = 0.001
"""Below it the split is not what was ordered, and nothing else that is seen can be trusted (GrowthBook's threshold)."""

_TUNED_FOR_UNITS = 5000
"""The look at which the confidence sequence is tightest; it holds at all others, too."""

_FEWEST_UNITS = 30
"""A central limit needs some terms; with fewer labelled units in an arm there is no interval."""

_BINS = 10


@dataclass(frozen=True, slots=True)
class UnitSums:
    """One unit of one arm: texts with feedback, and those answered right."""

    labelled: int
    correct: int


@dataclass(frozen=True, slots=True)
class ArmData:
    """All that the analysis reads of an arm.

    Attributes:
        weight: its share of the units as ordered, on any scale.
        texts, units: answered.
        sums: of every unit with feedback.
        confusion: (answered, truth) to texts.
        bins: for each tenth of the score: labelled texts, of these correct, sum of their scores.
    """

    name: str
    weight: float
    texts: int
    units: int
    sums: Sequence[UnitSums]
    confusion: Mapping[tuple[str, str], int]
    bins: Sequence[tuple[int, int, float]]
    mean_took_ms: float | None

    @property
    def labelled(self) -> int:
        return sum(unit.labelled for unit in self.sums)


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """An arm, in figures; None where there is no feedback to make one of.

    Attributes:
        coverage: share of the texts that have feedback.
        calibration_error: expected calibration error over ten bins (Guo et al., arXiv 1706.04599).
    """

    name: str
    texts: int
    units: int
    labelled: int
    coverage: float
    accuracy: float | None
    macro_f1: float | None
    calibration_error: float | None
    mean_took_ms: float | None


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm's accuracy less the first arm's.

    Attributes:
        anytime: holds at every look; what the verdict goes by.
        fixed: for one look at a number of units that was settled before; to compare with, not to stop by.
    """

    arm: str
    accuracy: float
    anytime: Interval
    fixed: Interval
    verdict: Literal["better", "worse", "undecided"]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What may be said now.

    Attributes:
        sample_ratio_p: chi-squared test of the units' split against the weights; None with one arm or no units.
        void: the split is not what was ordered: no difference is to be believed.
        warnings: what else makes a difference doubtful.
    """

    arms: tuple[ArmSummary, ...]
    differences: tuple[Difference, ...]
    sample_ratio_p: float | None
    void: bool
    warnings: tuple[str, ...]


def analyse(arms: Sequence[ArmData]) -> Analysis:
    """Compare every arm with the first."""
    p = sample_ratio_p(arms)
    void = p is not None and p < SAMPLE_RATIO_P
    warnings = []
    if void:
        shares = ", ".join(f"{arm.name} {arm.units}" for arm in arms)
        warnings.append(f"units are split {shares}, which the weights do not give (p = {p:.2g}): the results are void")
    coverage_p = label_coverage_p(arms)
    if coverage_p is not None and coverage_p < SAMPLE_RATIO_P:
        shares = ", ".join(f"{arm.name} {arm.labelled / arm.texts:.1%}" for arm in arms if arm.texts)
        warnings.append(
            f"feedback covers the arms unlike ({shares}, p = {coverage_p:.2g}): it may be chosen by outcome"
        )
    control = arms[0]
    found = [] if void else [_difference(control, arm) for arm in arms[1:]]
    differences = tuple(each for each in found if each is not None)
    return Analysis(tuple(map(_summary, arms)), differences, p, void, tuple(warnings))


def half_width(standard_error: float, units: int, *, alpha: float = ALPHA, tuned_for: int = _TUNED_FOR_UNITS) -> float:
    """Of the asymptotic confidence sequence at a look after so many units.

    Args:
        standard_error: of the estimate at this look.
        tuned_for: units at which the sequence is to be tightest; equation 10 of the paper's appendix gives rho.
    """
    rho_squared = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tuned_for
    scaled = units * rho_squared
    return standard_error * math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))


def required_units(accuracy: float, difference: float, *, power: float = 0.8, alpha: float = ALPHA) -> int:
    """Labelled units that each of two equal arms needs for a difference to be seen, at one look settled before.

    The usual normal approximation (statsmodels' `samplesize_proportions_2indep_onetail` is its one-sided form).

    Raises:
        ValueError: an accuracy outside 0 to 1, or no difference.
    """
    other = accuracy + difference
    if not (0 < accuracy < 1 and 0 < other < 1) or difference == 0:
        raise ValueError(f"accuracies {accuracy:g} and {other:g}: both must lie between 0 and 1, and differ")
    from scipy.stats import norm

    z_alpha, z_power = float(norm.ppf(1 - alpha / 2)), float(norm.ppf(power))
    pooled = (accuracy + other) / 2
    spread = z_alpha * math.sqrt(2 * pooled * (1 - pooled)) + z_power * math.sqrt(
        accuracy * (1 - accuracy) + other * (1 - other)
    )
    return math.ceil((spread / difference) ** 2)


def sample_ratio_p(arms: Sequence[ArmData]) -> float | None:
    """Chance of a split at least as far from the weights, were they obeyed."""
    total, weights = sum(arm.units for arm in arms), sum(arm.weight for arm in arms)
    counted = [arm for arm in arms if arm.weight > 0]
    if not total or len(counted) < 2 or any(arm.units for arm in arms if arm.weight == 0):
        return None
    from scipy.stats import chisquare

    expected = [total * arm.weight / weights for arm in counted]
    return float(chisquare([arm.units for arm in counted], expected).pvalue)


def label_coverage_p(arms: Sequence[ArmData]) -> float | None:
    """Chance of shares with feedback that differ at least as much, were feedback given alike to all arms."""
    table = [(arm.labelled, arm.texts - arm.labelled) for arm in arms if arm.texts]
    if len(table) < 2 or not all(sum(column) for column in zip(*table, strict=True)):
        return None
    from scipy.stats import chi2_contingency

    return float(chi2_contingency(table).pvalue)


def _difference(control: ArmData, arm: ArmData) -> Difference | None:
    if min(len(control.sums), len(arm.sums)) < _FEWEST_UNITS:
        return None
    (base, base_variance), (own, own_variance) = _accuracy(control.sums), _accuracy(arm.sums)
    difference, error = own - base, math.sqrt(base_variance + own_variance)
    anytime = half_width(error, len(control.sums) + len(arm.sums))
    fixed = 1.959963984540054 * error
    interval = Interval(difference - anytime, difference + anytime)
    verdict: Literal["better", "worse", "undecided"] = "undecided"
    if error > 0 and interval.excludes_zero():
        verdict = "better" if difference > 0 else "worse"
    return Difference(arm.name, difference, interval, Interval(difference - fixed, difference + fixed), verdict)


def _accuracy(sums: Sequence[UnitSums]) -> tuple[float, float]:
    """A ratio of sums over units, and its variance by the delta method."""
    labelled = sum(unit.labelled for unit in sums)
    accuracy = sum(unit.correct for unit in sums) / labelled
    squares = sum((unit.correct - accuracy * unit.labelled) ** 2 for unit in sums)
    return accuracy, squares / labelled**2 * len(sums) / (len(sums) - 1)


def _summary(arm: ArmData) -> ArmSummary:
    labelled = arm.labelled
    correct = sum(unit.correct for unit in arm.sums)
    return ArmSummary(
        name=arm.name,
        texts=arm.texts,
        units=arm.units,
        labelled=labelled,
        coverage=labelled / arm.texts if arm.texts else 0.0,
        accuracy=correct / labelled if labelled else None,
        macro_f1=_macro_f1(arm.confusion) if labelled else None,
        calibration_error=_calibration_error(arm.bins) if labelled else None,
        mean_took_ms=arm.mean_took_ms,
    )


def _macro_f1(confusion: Mapping[tuple[str, str], int]) -> float:
    labels = {label for pair in confusion for label in pair}
    scores = []
    for label in sorted(labels):
        hits = confusion.get((label, label), 0)
        answered = sum(count for (said, _), count in confusion.items() if said == label)
        true = sum(count for (_, truth), count in confusion.items() if truth == label)
        scores.append(2 * hits / (answered + true))
    return sum(scores) / len(scores)


def _calibration_error(bins: Sequence[tuple[int, int, float]]) -> float:
    total = sum(count for count, _, _ in bins)
    return sum(abs(correct - scores) for count, correct, scores in bins if count) / total
