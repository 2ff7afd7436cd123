"""Logits over a split, and what they are worth: accuracy, macro-F1, intervals, and base against tuned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.manifest import Metric
from training.tokenise import TokenisedSplit

EVALUATION_BATCH = 64
_BOOTSTRAP_SAMPLES = 1000

Collate = Callable[[list[dict[str, Any]]], Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on one split of N texts.

    Attributes:
        logits: [N, C] fp32.
        targets: [N] label indices.
        loss: mean cross-entropy, in nats.
        confusion: [C, C] counts, true label by predicted label.
    """

    logits: NDArray[np.float32]
    targets: NDArray[np.int64]
    loss: float
    accuracy: Metric
    macro_f1: Metric
    confusion: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """[N] label indices."""
        predicted: NDArray[np.int64] = self.logits.argmax(axis=1)
        return predicted


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same texts.

    Attributes:
        gained: texts that only the second gets right.
        lost: texts that only the first gets right.
        p_value: exact McNemar test (two-sided): how likely so unequal counts are if neither is better.
    """

    gained: int
    lost: int
    p_value: float


def evaluate(model: Any, split: TokenisedSplit, collate: Collate) -> Evaluation:
    """Run a model in eval mode over a split and measure it. The model stays on its device, in eval mode."""
    targets = np.array([row["labels"] for row in split.rows])
    logits = predict(model, split.rows, collate)
    predicted, classes = logits.argmax(axis=1), logits.shape[1]
    return Evaluation(
        logits=logits,
        targets=targets,
        loss=cross_entropy(logits, targets),
        accuracy=_accuracy(targets, predicted),
        macro_f1=_macro_f1(targets, predicted, classes),
        confusion=np.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes),
    )


def predict(model: Any, rows: Sequence[dict[str, Any]], collate: Collate) -> NDArray[np.float32]:
    """Logits [N, C] fp32 in the order of `rows`; batches are cut by length to pad little."""
    import torch

    model.eval()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    parts: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATION_BATCH):
            batch = collate([_inputs(rows[index]) for index in order[start : start + EVALUATION_BATCH]])
            parts.append(model(**batch.to(model.device)).logits.float().cpu().numpy())
    logits = np.concatenate(parts)
    restored = np.empty_like(logits)
    restored[order] = logits
    return restored


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Base against tuned over the same texts."""
    from scipy.stats import binomtest

    right_first = first.predicted == first.targets
    right_second = second.predicted == second.targets
    gained = int((right_second & ~right_first).sum())
    lost = int((right_first & ~right_second).sum())
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Comparison(gained, lost, p_value)


def macro_f1(targets: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> float:
    """Mean F1 over all `classes` labels; one that neither occurs nor is predicted counts as 0."""
    hits = np.bincount(targets[targets == predicted], minlength=classes)
    total = np.bincount(targets, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float(np.divide(2 * hits, total, out=np.zeros(classes), where=total > 0).mean())


def _inputs(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "labels"}


def cross_entropy(logits: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> float:
    """Mean over the texts, in nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return float((log_total - shifted[np.arange(len(targets)), targets]).mean())


def _accuracy(targets: NDArray[np.int64], predicted: NDArray[np.int64]) -> Metric:
    """With Wilson's interval, which holds near 0 and 1 too."""
    from scipy.stats import binomtest

    right, n = int((targets == predicted).sum()), len(targets)
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return Metric(value=right / n, low=float(interval.low), high=float(interval.high), n=n)


def _macro_f1(targets: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Metric:
    """With a percentile bootstrap interval over the texts."""
    draw, n = np.random.default_rng(0), len(targets)
    picks = (draw.integers(0, n, n) for _ in range(_BOOTSTRAP_SAMPLES))
    samples = [macro_f1(targets[pick], predicted[pick], classes) for pick in picks]
    low, high = np.quantile(samples, (0.025, 0.975))
    return Metric(value=macro_f1(targets, predicted, classes), low=float(low), high=float(high), n=n)
