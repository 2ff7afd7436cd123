"""Temperatures against what made the logits, and the calibration error against counting by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adapters.manifest import Metric
from training.calibrate import calibrate, calibration_error, fit_temperature, softmax
from training.evaluate import Evaluation

NONE = Metric(value=0, low=0, high=0, n=1)


def evaluation(logits: NDArray[np.float64], targets: NDArray[Any]) -> Evaluation:
    return Evaluation(logits.astype(np.float32), targets, 0.0, NONE, NONE, np.zeros((2, 2), np.int64))


def drawn(n: int, times: float) -> Evaluation:
    """Texts whose labels are drawn by softmax(logits), and the logits so many times too large."""
    draw = np.random.default_rng(3)
    logits = draw.normal(0, 2, (n, 3))
    targets = (softmax(logits).cumsum(1) < draw.random((n, 1))).sum(1)
    return evaluation(logits * times, targets)


@pytest.mark.parametrize("times", [0.5, 1.5, 4.0])
def test_the_temperature_undoes_what_was_done(times: float) -> None:
    found = drawn(20_000, times)
    assert fit_temperature(found.logits.astype(np.float64), found.targets) == pytest.approx(times, rel=0.05)
    calibrated = calibrate(found)
    assert calibrated.temperature == pytest.approx(times, rel=0.05)
    assert calibrated.error_before > 0.05 and calibrated.error_after < 0.02


def test_where_it_does_not_help_it_is_left_alone() -> None:
    for n in (1, 2, 20_000):
        found = calibrate(drawn(n, 1.0))
        assert found.error_after <= found.error_before
        assert found.temperature == pytest.approx(1.0, abs=0.03) or found.error_after < found.error_before


def test_the_error_is_counted_as_the_service_counts_it() -> None:
    scores = np.array([[0.95, 0.05], [0.91, 0.09], [0.65, 0.35], [0.4, 0.6]])
    # Ninth tenth: two texts, one right, scores 1.86. Sixth: two texts, both right, scores 1.25.
    targets = np.array([0, 1, 0, 1])
    assert calibration_error(scores, targets) == pytest.approx((0.86 + 0.75) / 4)


def test_several_labels_are_so_many_decisions() -> None:
    draw = np.random.default_rng(5)
    logits = draw.normal(0, 2, (20_000, 3))
    targets = (draw.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    found = calibrate(evaluation(logits * 2.5, targets))
    assert found.temperature == pytest.approx(2.5, rel=0.05)
    assert found.error_before > 0.05 and found.error_after < 0.01


def test_labels_never_change() -> None:
    found = drawn(500, 3.0)
    cooled = dataclasses.replace(found, logits=found.logits / np.float32(calibrate(found).temperature))
    assert (cooled.predicted == found.predicted).all()
