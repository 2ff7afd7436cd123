"""What an experiment's numbers allow to be said. Pure: counts in, statements out.

Looks may be taken at any time and as often as wanted: the difference comes with an asymptotic confidence sequence
(Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences", arXiv 2103.06476, theorem 2.2), which holds at all looks at once. Texts of one unit are not independent, so
units are what is counted: an arm's accuracy is a ratio of sums over units, its variance by the delta method (Deng,
Knoblich and Lu, KDD 2018).

Where the weights have changed, the times between two changes are compared each for itself and the differences averaged,
with weights n1 n2 / (n1 + n2) as Cochran's (Biometrics 10(4), 1954): pooled, a week in which accuracy was low and the
treatment's share was high would count against the treatment.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Verdict = Literal["better", "worse", "undecided"]

ALPHA = 0.05
SAMPLE_RATIO_P = 0.001
"""Below it the split is not what was ordered, and nothing else that is seen can be trusted (GrowthBook's threshold)."""

_TUNED_FOR_UNITS = 5000
"""The look at which the confidence sequence is tightest; it holds at all others, too."""

_FEWEST_UNITS = 30
"""A central limit needs some terms; with fewer labelled units in an arm there is no interval."""

_MOST_LOOKS, _FEWEST_LOOKS = 40, 8
_LABELS_OF_ALL_LOOKS = 1_000_000
"""A look back goes over all labels before it; with many of them there are fewer looks."""

_NORMAL_975 = 1.959963984540054


class UnitSums(NamedTuple):
    """One unit of one arm between two changes of the weights: texts with feedback, and those answered right."""

    labelled: int
    correct: int
    unit: str
    period: int = 0


@dataclass(frozen=True, slots=True)
class ArmData:
    """All that the analysis reads of an arm.

    Attributes:
        weight: its share of the units as ordered now, on any scale.
        texts, units: answered.
        errors: texts that ended in an error of the service's own, not among `texts`.
        split: units assigned since the weights are what they are now.
        sums: of every unit with feedback.
        confusion: (answered, truth) to texts.
        bins: for each tenth of the score: labelled texts, of these correct, sum of their scores.
        p50_ms, p99_ms: of the answers' times.
    """

    name: str
    weight: float
    texts: int
    units: int
    errors: int
    split: int
    sums: Sequence[UnitSums]
    confusion: Mapping[tuple[str, str], int]
    bins: Sequence[tuple[int, int, float]]
    p50_ms: float | None
    p99_ms: float | None

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
    errors: int
    labelled: int
    labelled_units: int
    coverage: float
    accuracy: float | None
    accuracy_interval: "Interval | None"
    macro_f1: float | None
    calibration_error: float | None
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class PairData:
    """Texts that both an arm and the shadow answered.

    Attributes:
        pairs, same: texts, and those given the same label by both.
        mean_shift: of the highest score, the shadow's less the arm's.
        sums: of every unit with feedback: its texts, and how many more of them the shadow answered right.
        only_arm, only_shadow: labelled texts that one alone answered right.
    """

    pairs: int
    same: int
    mean_shift: float | None
    sums: Sequence[UnitSums]
    only_arm: int
    only_shadow: int


@dataclass(frozen=True, slots=True)
class PairSummary:
    """A shadow beside what was answered; None where there is nothing to say it from.

    Attributes:
        accuracy: the shadow's less the arms', on the same labelled texts.
        anytime: holds at every look; what the verdict goes by.
        mcnemar_p: exact test of the texts that one alone answered right (McNemar, Psychometrika 12, 1947); for one
            look, and for texts that do not depend on each other.
    """

    pairs: int
    agreement: float | None
    mean_shift: float | None
    labelled: int
    only_arm: int
    only_shadow: int
    accuracy: float | None
    anytime: "Interval | None"
    mcnemar_p: float | None
    verdict: Verdict


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
    verdict: Verdict


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

    @property
    def sentence(self) -> str:
        """The verdict, for people."""
        control = self.arms[0].name
        if self.void:
            return "Void: the units are not split as the weights have it, so no difference can be believed."
        if len(self.arms) < 2:
            return f"{control} is the only arm: there is nothing to compare it with."
        if not self.differences:
            seen = ", ".join(f"{arm.name} has {arm.labelled_units:,}" for arm in self.arms)
            return f"Too little feedback for a verdict: each arm needs {_FEWEST_UNITS} labelled units; {seen}."
        return " ".join(_in_words(each, control) for each in self.differences)


class Label(NamedTuple):
    """A piece of feedback, for one answer.

    Attributes:
        arm, period, unit: of the answer, as of `UnitSums`.
        at_s: when it was given, as Unix time.
    """

    arm: str
    period: int
    unit: str
    at_s: float
    correct: bool


@dataclass(frozen=True, slots=True)
class Look:
    """What might have been said at some time; accuracies and counts are in the arms' order."""

    at_s: float
    labelled: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    differences: tuple[Difference, ...]


def analyse(arms: Sequence[ArmData]) -> Analysis:
    """Compare every arm with the first."""
    p = sample_ratio_p(arms)
    void = p is not None and p < SAMPLE_RATIO_P
    warnings = []
    if void:
        shares = ", ".join(f"{arm.name} {arm.split}" for arm in arms)
        warnings.append(f"units are split {shares}, which the weights do not give (p = {p:.2g}): the results are void")
    coverage_p = label_coverage_p(arms)
    if coverage_p is not None and coverage_p < SAMPLE_RATIO_P:
        shares = ", ".join(f"{arm.name} {arm.labelled / arm.texts:.1%}" for arm in arms if arm.texts)
        warnings.append(
            f"feedback covers the arms unlike ({shares}, p = {coverage_p:.2g}): it may be chosen by outcome"
        )
    control = arms[0]
    found = [] if void else [_difference(control.sums, arm.name, arm.sums) for arm in arms[1:]]
    differences = tuple(each for each in found if each is not None)
    return Analysis(tuple(map(_summary, arms)), differences, p, void, tuple(warnings))


def course(arms: Sequence[str], labels: Sequence[Label]) -> tuple[Look, ...]:
    """The differences as they would have been seen on the way, after equal numbers of labels; the last is now.

    Args:
        arms: names, the first is the one compared with.
        labels: oldest first. What was corrected since counts as it is now.
    """
    if not labels:
        return ()
    looks = max(_FEWEST_LOOKS, min(_MOST_LOOKS, _LABELS_OF_ALL_LOOKS // len(labels)))
    sums: dict[str, dict[tuple[int, str], list[int]]] = {arm: {} for arm in arms}
    found, seen = [], 0
    for number in range(1, looks + 1):
        until = len(labels) * number // looks
        if until == seen:
            continue
        for label in labels[seen:until]:
            of_unit = sums[label.arm].setdefault((label.period, label.unit), [0, 0])
            of_unit[0] += 1
            of_unit[1] += label.correct
        seen = until
        found.append(_look(labels[until - 1].at_s, sums))
    return tuple(found)


def _look(at_s: float, of_units: Mapping[str, Mapping[tuple[int, str], Sequence[int]]]) -> Look:
    sums = {
        arm: [UnitSums(count, correct, unit, period) for (period, unit), (count, correct) in units.items()]
        for arm, units in of_units.items()
    }
    labelled = [sum(unit.labelled for unit in each) for each in sums.values()]
    correct = [sum(unit.correct for unit in each) for each in sums.values()]
    control, *others = sums.values()
    differences = (_difference(control, arm, each) for arm, each in zip(list(sums)[1:], others, strict=True))
    return Look(
        at_s,
        tuple(labelled),
        tuple(right / count if count else None for right, count in zip(correct, labelled, strict=True)),
        tuple(each for each in differences if each is not None),
    )


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


def required_units_anytime(accuracy: float, difference: float, *, power: float = 0.8, alpha: float = ALPHA) -> int:
    """As `required_units`, for a verdict by the confidence sequence: at this look or a sooner one, with this chance.

    Raises:
        ValueError: as of `required_units`.
    """
    at_least = required_units(accuracy, difference, power=power, alpha=alpha)  # checks, too
    from scipy.stats import norm

    other, z_power = accuracy + difference, float(norm.ppf(power))
    spread = math.sqrt(accuracy * (1 - accuracy) + other * (1 - other))

    def enough(units: int) -> bool:
        error = spread / math.sqrt(units)
        return half_width(error, 2 * units, alpha=alpha) + z_power * error <= abs(difference)

    low, high = 1, max(_FEWEST_UNITS, at_least)
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return max(high, _FEWEST_UNITS)


def sample_ratio_p(arms: Sequence[ArmData]) -> float | None:
    """Chance of a split at least as far from the weights, were they obeyed."""
    counted = [arm for arm in arms if arm.weight > 0]
    total, weights = sum(arm.split for arm in counted), sum(arm.weight for arm in counted)
    if not total or len(counted) < 2:
        return None
    from scipy.stats import chisquare

    expected = [total * arm.weight / weights for arm in counted]
    return float(chisquare([arm.split for arm in counted], expected).pvalue)


def label_coverage_p(arms: Sequence[ArmData]) -> float | None:
    """Chance of shares with feedback that differ at least as much, were feedback given alike to all arms."""
    table = [(arm.labelled, arm.texts - arm.labelled) for arm in arms if arm.texts]
    if len(table) < 2 or not all(sum(column) for column in zip(*table, strict=True)):
        return None
    from scipy.stats import chi2_contingency

    return float(chi2_contingency(table).pvalue)


def exceeds(successes: int, trials: int, limit: float, *, alpha: float = ALPHA) -> bool:
    """Whether a share is above a limit, however often it is asked: a binomial confidence sequence lies above it.

    A mixture of likelihood ratios under a uniform prior (Robbins, Annals of Mathematical Statistics 41(5), 1970); by
    Ville's inequality it exceeds 1 / alpha at any time with a chance of at most alpha where the share is the limit.
    """
    if not trials or successes / trials <= limit:
        return False
    failures = trials - successes
    log_mixture = math.lgamma(successes + 1) + math.lgamma(failures + 1) - math.lgamma(trials + 2)
    log_limit = successes * math.log(limit) + failures * math.log1p(-limit)
    return log_mixture - log_limit >= -math.log(alpha)


def compare_pairs(data: PairData) -> PairSummary:
    """A shadow with what was answered in its stead."""
    labelled = sum(unit.labelled for unit in data.sums)
    accuracy: float | None = None
    anytime: Interval | None = None
    verdict: Verdict = "undecided"
    p: float | None = None
    if labelled:
        accuracy = sum(unit.correct for unit in data.sums) / labelled
    if data.only_arm + data.only_shadow:
        from scipy.stats import binomtest

        p = float(binomtest(data.only_shadow, data.only_arm + data.only_shadow).pvalue)
    if len(data.sums) >= _FEWEST_UNITS and accuracy is not None:
        deviations = [(unit.correct - accuracy * unit.labelled) / labelled for unit in data.sums]
        error = _standard_error(deviations)
        anytime = _around(accuracy, half_width(error, len(deviations)))
        verdict = _verdict(accuracy, anytime, error)
    return PairSummary(
        pairs=data.pairs,
        agreement=data.same / data.pairs if data.pairs else None,
        mean_shift=data.mean_shift,
        labelled=labelled,
        only_arm=data.only_arm,
        only_shadow=data.only_shadow,
        accuracy=accuracy,
        anytime=anytime,
        mcnemar_p=p,
        verdict=verdict,
    )


def _difference(control: Sequence[UnitSums], arm: str, of_arm: Sequence[UnitSums]) -> Difference | None:
    periods = _periods(control, of_arm)
    if not periods:
        return None
    sizes = [len(first) * len(second) / (len(first) + len(second)) for first, second in periods]
    difference = 0.0
    deviations: defaultdict[str, float] = defaultdict(float)
    for (first, second), size in zip(periods, sizes, strict=True):
        share = size / sum(sizes)
        for sums, sign in ((first, -1), (second, 1)):
            labelled = sum(unit.labelled for unit in sums)
            accuracy = sum(unit.correct for unit in sums) / labelled
            difference += sign * share * accuracy
            # What the unit adds to the estimate; summed over periods and arms, for it is the same unit in all.
            for unit in sums:
                deviation = (unit.correct - accuracy * unit.labelled) / labelled
                deviations[unit.unit] += sign * share * deviation * math.sqrt(len(sums) / (len(sums) - 1))
    error = math.sqrt(sum(deviation**2 for deviation in deviations.values()))
    anytime = _around(difference, half_width(error, len(deviations)))
    fixed = _around(difference, _NORMAL_975 * error)
    return Difference(arm, difference, anytime, fixed, _verdict(difference, anytime, error))


def _periods(control: Sequence[UnitSums], of_arm: Sequence[UnitSums]) -> list[tuple[list[UnitSums], list[UnitSums]]]:
    """The two arms' units between two changes of the weights, where there are enough of both."""
    by_period: defaultdict[int, tuple[list[UnitSums], list[UnitSums]]] = defaultdict(lambda: ([], []))
    for at, sums in enumerate((control, of_arm)):
        for unit in sums:
            by_period[unit.period][at].append(unit)
    return [both for _, both in sorted(by_period.items()) if min(map(len, both)) >= _FEWEST_UNITS]


def _in_words(difference: Difference, control: str) -> str:
    points, low, high = (
        f"{100 * value:+.1f}" for value in (difference.accuracy, difference.anytime.low, difference.anytime.high)
    )
    seen = f"{points} points of accuracy, {low} to {high} at every look"
    if difference.verdict == "undecided":
        return f"Undecided between {difference.arm} and {control}: {seen}."
    return f"{difference.arm} is {difference.verdict} than {control}: {seen}."


def _standard_error(deviations: Sequence[float]) -> float:
    """Of an estimate to which each unit adds its deviation."""
    return math.sqrt(sum(each**2 for each in deviations) * len(deviations) / (len(deviations) - 1))


def _around(middle: float, half: float) -> Interval:
    return Interval(middle - half, middle + half)


def _verdict(difference: float, anytime: Interval, error: float) -> Verdict:
    if error == 0 or not anytime.excludes_zero():
        return "undecided"
    return "better" if difference > 0 else "worse"


def _summary(arm: ArmData) -> ArmSummary:
    labelled = arm.labelled
    accuracy, interval = _accuracy(arm.sums)
    return ArmSummary(
        name=arm.name,
        texts=arm.texts,
        units=arm.units,
        errors=arm.errors,
        labelled=labelled,
        labelled_units=len({unit.unit for unit in arm.sums}),
        coverage=labelled / arm.texts if arm.texts else 0.0,
        accuracy=accuracy,
        accuracy_interval=interval,
        macro_f1=_macro_f1(arm.confusion) if labelled else None,
        calibration_error=_calibration_error(arm.bins) if labelled else None,
        p50_ms=arm.p50_ms,
        p99_ms=arm.p99_ms,
    )


def _accuracy(sums: Sequence[UnitSums]) -> tuple[float | None, Interval | None]:
    """A ratio of sums over units, and its confidence sequence where there are enough units."""
    labelled = sum(unit.labelled for unit in sums)
    if not labelled:
        return None, None
    accuracy = sum(unit.correct for unit in sums) / labelled
    deviations: defaultdict[str, float] = defaultdict(float)
    for unit in sums:
        deviations[unit.unit] += (unit.correct - accuracy * unit.labelled) / labelled
    if len(deviations) < _FEWEST_UNITS:
        return accuracy, None
    half = half_width(_standard_error(list(deviations.values())), len(deviations))
    return accuracy, Interval(max(0.0, accuracy - half), min(1.0, accuracy + half))


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
