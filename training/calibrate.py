"""Scores that mean what they say: one temperature for all logits (Guo et al., "On calibration of modern neural
networks", ICML 2017, arXiv 1706.04599). It changes no label, only how sure the adapter says it is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluate import Evaluation, cross_entropy, decisions

BINS = 10
_LOWEST, _HIGHEST = 0.05, 20.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """
    Attributes:
        temperature: what logits are divided by; 1 where another would not help.
        error_before, error_after: expected calibration error over ten bins of the highest score. After: each half of
            the texts with the temperature that fits the other half, so that none is judged by what it was fitted on.
    """

    temperature: float
    error_before: float
    error_after: float


def calibrate(evaluation: Evaluation) -> Calibration:
    """Fit a temperature to validation logits, and say what it is worth on texts that it was not fitted on.

    Of a multi-label task each label of a text counts as a decision between yes and no.
    """
    logits, targets = decisions(evaluation.logits, evaluation.targets)
    before = calibration_error(softmax(logits), targets)
    # By text: the decisions of one are not parted.
    halves = np.arange(len(targets)) // (len(targets) // len(evaluation.targets)) % 2
    scores = np.empty_like(logits)
    for half in (0, 1):
        fitted, judged = halves != half, halves == half
        own = fit_temperature(logits[fitted], targets[fitted]) if fitted.any() else 1.0
        scores[judged] = softmax(logits[judged] / own)
    after = calibration_error(scores, targets)
    if after >= before:
        return Calibration(1.0, before, before)
    return Calibration(round(fit_temperature(logits, targets), 4), before, after)


def fit_temperature(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """The temperature with the least cross-entropy.

    Args:
        logits: [M, K], of M decisions.
        targets: [M] which alternative is true.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: cross_entropy(logits / np.exp(log), targets),
        bounds=(np.log(_LOWEST), np.log(_HIGHEST)),
        method="bounded",
    )
    return float(np.exp(found.x))


def calibration_error(scores: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """Expected calibration error: how far accuracy and mean score lie apart in a bin, averaged over the texts."""
    return float(sum(abs(right - total) for _, right, total in reliability(scores, targets)) / len(targets))


def reliability(scores: NDArray[np.float64], targets: NDArray[np.int64]) -> list[tuple[int, float, float]]:
    """(texts, of these right, sum of their highest scores) of every tenth of the highest score that has any."""
    highest, right = scores.max(axis=1), scores.argmax(axis=1) == targets
    tenth = np.minimum((highest * BINS).astype(int), BINS - 1)
    return [
        (int((tenth == at).sum()), float(right[tenth == at].sum()), float(highest[tenth == at].sum()))
        for at in range(BINS)
        if (tenth == at).any()
    ]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scores
