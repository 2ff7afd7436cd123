"""Golden texts are short, and every predicted label has one."""

import numpy as np

from adapters.manifest import Metric
from tests.training.conftest import split_of
from training.dataset import Split
from training.evaluate import Evaluation
from training.golden import choose_texts

_METRIC = Metric(value=0.5, low=0.4, high=0.6, n=1)


def _choose(lengths: list[int], predicted: list[int]) -> tuple[str, ...]:
    texts = tuple(" ".join([f"w{index}"] * length) for index, length in enumerate(lengths))
    logits = np.eye(max(predicted) + 1, dtype=np.float32)[predicted]
    counts = np.zeros((1, 1), dtype=np.int64)
    evaluation = Evaluation(logits, np.array(predicted), 0.0, _METRIC, _METRIC, counts)
    targets = tuple((label,) for label in predicted)
    return choose_texts(Split(texts, targets), split_of(lengths, predicted), evaluation)


def test_short_texts_of_every_label() -> None:
    texts = _choose([3, 8, 12, 20, 300, 31], [0, 0, 0, 1, 1, 0])
    assert len(texts) == len(set(texts)) == 4
    assert any(text.startswith("w3 ") for text in texts)
    assert not any(text.startswith("w4 ") for text in texts)


def test_many_labels_are_bounded() -> None:
    assert len(_choose([5] * 40, list(range(40)))) == 8


def test_long_texts_are_excerpted() -> None:
    texts = _choose([400, 90, 500], [0, 1, 0])
    assert [len(text.split()) for text in texts] == [16, 16, 16]
    assert texts[0].startswith("w1")
