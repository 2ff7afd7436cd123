"""Measures against their oracles."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss

from training.evaluate import Evaluation, compare, evaluate
from training.fit import Epoch, Fit
from training.report import overfitting_sentence
from training.tokenise import TokenisedSplit


class _Echo(torch.nn.Module):
    """Gives as logits what the row says, so that the order of rows can be seen."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, logits: torch.Tensor) -> object:
        return type("Output", (), {"logits": logits})


class _Batch(dict[str, torch.Tensor]):
    def to(self, device: torch.device) -> "_Batch":
        return self


def _collate(rows: list[dict[str, list[float]]]) -> _Batch:
    return _Batch(
        input_ids=torch.zeros(len(rows), max(len(row["input_ids"]) for row in rows)),
        logits=torch.tensor([row["logits"] for row in rows]),
    )


def _evaluate(logits: np.ndarray, targets: np.ndarray) -> Evaluation:
    lengths = np.random.default_rng(1).integers(1, 50, len(targets))
    rows = [
        {"input_ids": [0] * int(length), "logits": row.tolist(), "labels": int(target)}
        for length, row, target in zip(lengths, logits, targets, strict=True)
    ]
    return evaluate(_Echo(), TokenisedSplit(rows, 0), _collate)


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
    assert found.confusion.sum() == 200


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
