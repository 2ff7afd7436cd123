"""Measures against their oracles."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, multilabel_confusion_matrix

from tests.training.conftest import split_of
from training.evaluate import Evaluation, compare, evaluate
from training.fit import Epoch, Fit
from training.report import overfitting_sentence


class _Echo(torch.nn.Module):
    """Gives each text the logits of its number, so that the order of rows can be seen."""

    device = torch.device("cpu")

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self._logits = torch.tensor(logits)

    def forward(self, input_ids: torch.Tensor) -> object:
        return type("Output", (), {"logits": self._logits[input_ids[:, 0]]})


class _Batch(dict[str, torch.Tensor]):
    def to(self, device: torch.device) -> "_Batch":
        return self


def _collate(rows: list[dict[str, list[int]]]) -> _Batch:
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    return _Batch(input_ids=torch.nn.utils.rnn.pad_sequence(ids, batch_first=True))


def _evaluate(logits: np.ndarray, targets: np.ndarray) -> Evaluation:
    lengths = np.random.default_rng(1).integers(1, 50, len(targets))
    return evaluate(_Echo(logits), split_of(lengths.tolist(), targets), _collate)


def test_measures_agree_with_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    logits, targets = draw.normal(size=(200, 3)).astype(np.float32), draw.integers(0, 3, 200)
    found = _evaluate(logits, targets)
    assert np.array_equal(found.logits, logits)
    scores = torch.softmax(torch.tensor(logits, dtype=torch.float64), 1).numpy()
    assert found.loss == pytest.approx(log_loss(targets, scores))
    assert found.macro_f1.value == pytest.approx(f1_score(targets, logits.argmax(1), average="macro"))
    assert found.macro_f1.low < found.macro_f1.value < found.macro_f1.high
    assert found.accuracy.value == pytest.approx((logits.argmax(1) == targets).mean())
    assert np.array_equal(found.confusion, confusion_matrix(targets, logits.argmax(1)))


def test_several_labels_agree_with_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(200, 4)).astype(np.float32)
    targets = (logits + draw.normal(size=(200, 4)) > 0.3).astype(np.float32)
    found = _evaluate(logits, targets)
    given = logits > 0
    assert found.multi_label and np.array_equal(found.predicted, given)
    scores = torch.sigmoid(torch.tensor(logits, dtype=torch.float64)).numpy()
    assert found.loss == pytest.approx(np.mean([log_loss(targets[:, at], scores[:, at]) for at in range(4)]))
    assert found.macro_f1.value == pytest.approx(f1_score(targets, given, average="macro"))
    assert found.accuracy.value == pytest.approx(accuracy_score(targets, given))
    assert np.array_equal(found.confusion, multilabel_confusion_matrix(targets, given))
    assert np.array_equal(found.right, (given == targets).all(axis=1))


def test_accuracy_has_wilsons_interval() -> None:
    """9 of 10: worked by hand from Wilson's formula with z = 1.95996."""
    logits = np.tile(np.float32([0, 1]), (10, 1))
    found = _evaluate(logits, np.array([1] * 9 + [0])).accuracy
    assert (found.value, found.n) == (0.9, 10)
    assert (found.low, found.high) == (pytest.approx(0.59585, abs=1e-5), pytest.approx(0.98212, abs=1e-5))


def test_base_against_tuned_is_mcnemars_exact_test() -> None:
    targets = np.zeros(20, dtype=np.int64)
    wrong = np.tile(np.float32([0, 1]), (20, 1))
    better = wrong.copy()
    better[:6] = [1, 0]
    found = compare(_evaluate(wrong, targets), _evaluate(better, targets))
    assert (found.gained, found.lost) == (6, 0)
    assert found.p_value == pytest.approx(2 / 2**6)
    same = compare(_evaluate(wrong, targets), _evaluate(wrong, targets))
    assert (same.gained, same.lost, same.p_value) == (0, 0, 1.0)


@pytest.mark.parametrize(
    ("train", "validation", "best", "expected"),
    [
        ((0.6, 0.3, 0.1), (0.4, 0.5, 0.9), 2, "part after epoch 1"),
        ((0.6, 0.3, 0.1), (0.4, 0.5, 0.9), 2, "epoch 2 (after the losses parted)"),
        ((0.6, 0.3, 0.1), (0.5, 0.4, 0.41), 3, "do not part"),
        ((0.6,), (0.5,), 1, "does not show"),
    ],
)
def test_overfitting_in_words(
    train: tuple[float, ...], validation: tuple[float, ...], best: int, expected: str
) -> None:
    pairs = zip(train, validation, strict=True)
    epochs = tuple(Epoch(number, *losses, 0.5, 0.5) for number, losses in enumerate(pairs, start=1))
    assert expected in overfitting_sentence(Fit(epochs, best, 1, 1.0))
