"""Logits over a split, and what they are worth: accuracy, macro-F1, intervals, and base against tuned.

Labels are compared as rows of zeros and ones, [N, C]: with one label a text a row holds a single one.
"""

from collections.abc import Callable
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
        targets: [N] label indices, or for a multi-label task [N, C] of zeros and ones.
        loss: mean cross-entropy, in nats; of a multi-label task over all its decisions.
        accuracy: share of the texts of which everything is right: of a multi-label task, every label.
        confusion: [C, C] counts, true label by predicted label; of a multi-label task [C, 2, 2], for each label without
            and with it in truth, by without and with it as predicted.
    """

    logits: NDArray[np.float32]
    targets: NDArray[Any]
    loss: float
    accuracy: Metric
    macro_f1: Metric
    confusion: NDArray[np.int64]

    @property
    def multi_label(self) -> bool:
        return self.targets.ndim == 2

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """[N, C] the labels that the model gives."""
        return decide(self.logits, multi_label=self.multi_label)

    @property
    def right(self) -> NDArray[np.bool_]:
        """[N] whether all is right of a text."""
        return all_right(self.predicted, truth(self.targets, self.logits.shape[1]))


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
    logits, targets = predict(model, split, collate), split.targets
    multi_label = targets.ndim == 2
    predicted, true = decide(logits, multi_label=multi_label), truth(targets, logits.shape[1])
    return Evaluation(
        logits=logits,
        targets=targets,
        loss=cross_entropy(*decisions(logits, targets)),
        accuracy=_accuracy(all_right(predicted, true)),
        macro_f1=_macro_f1(predicted, true),
        confusion=_confusion(predicted, true, multi_label),
    )


def predict(model: Any, split: TokenisedSplit, collate: Collate, *, first: int | None = None) -> NDArray[np.float32]:
    """Logits [N, C] fp32 in the order of `split`; batches are cut by length to pad little.

    Args:
        first: of so many texts alone.
    """
    import torch

    model.eval()
    order = np.argsort(split.lengths[:first], kind="stable")
    parts: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATION_BATCH):
            batch = collate([_inputs(split[at]) for at in order[start : start + EVALUATION_BATCH].tolist()])
            parts.append(model(**batch.to(model.device)).logits.float().cpu().numpy())
    logits = np.concatenate(parts)
    restored = np.empty_like(logits)
    restored[order] = logits
    return restored


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Base against tuned over the same texts."""
    from scipy.stats import binomtest

    gained = int((second.right & ~first.right).sum())
    lost = int((first.right & ~second.right).sum())
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Comparison(gained, lost, p_value)


def decide(logits: NDArray[np.floating[Any]], *, multi_label: bool) -> NDArray[np.bool_]:
    """[N, C] the labels given: the highest logit's, or of a multi-label task those of even odds and better."""
    if multi_label:
        return np.asarray(logits > 0)
    return truth(logits.argmax(axis=1), logits.shape[1])


def truth(targets: NDArray[Any], classes: int) -> NDArray[np.bool_]:
    """Targets as [N, C] zeros and ones, whichever way they are held."""
    return targets.astype(bool) if targets.ndim == 2 else np.eye(classes, dtype=bool)[targets]


def all_right(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[N] whether a text has the labels it should have, and no other."""
    right: NDArray[np.bool_] = (predicted == true).all(axis=1)
    return right


def macro_f1(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Mean F1 over all labels; one that neither occurs nor is predicted counts as 0.

    Args:
        predicted, true: [N, C].
    """
    hits = (predicted & true).sum(axis=0)
    total = predicted.sum(axis=0) + true.sum(axis=0)
    return float(np.divide(2 * hits, total, out=np.zeros(len(total)), where=total > 0).mean())


def decisions(
    logits: NDArray[np.floating[Any]], targets: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What was decided, [M, K] logits of the alternatives and [M] which of them is true.

    With one label a text that is the text's label among all; of a multi-label task each label is a decision of its own,
    between not (logit 0) and so.
    """
    exact: NDArray[np.float64] = logits.astype(np.float64)
    if targets.ndim == 1:
        return exact, targets
    return np.stack([np.zeros(exact.size), exact.ravel()], axis=1), targets.ravel().astype(np.int64)


def cross_entropy(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """Mean over decisions, in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return float((log_total - shifted[np.arange(len(targets)), targets]).mean())


def _inputs(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "labels"}


def _confusion(predicted: NDArray[np.bool_], true: NDArray[np.bool_], multi_label: bool) -> NDArray[np.int64]:
    sides = np.stack([~true, true]).astype(np.int64), np.stack([~predicted, predicted]).astype(np.int64)  # [2, N, C]
    counts: NDArray[np.int64] = (
        np.einsum("inc,jnc->cij", *sides) if multi_label else np.einsum("ni,nj->ij", sides[0][1], sides[1][1])
    )
    return counts


def _accuracy(right: NDArray[np.bool_]) -> Metric:
    """With Wilson's interval, which holds near 0 and 1 too."""
    from scipy.stats import binomtest

    hits, n = int(right.sum()), len(right)
    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Metric(value=hits / n, low=float(interval.low), high=float(interval.high), n=n)


def _macro_f1(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> Metric:
    """With a percentile bootstrap interval over the texts."""
    draw, n = np.random.default_rng(0), len(true)
    picks = (draw.integers(0, n, n) for _ in range(_BOOTSTRAP_SAMPLES))
    samples = [macro_f1(predicted[pick], true[pick]) for pick in picks]
    low, high = np.quantile(samples, (0.025, 0.975))
    return Metric(value=macro_f1(predicted, true), low=float(low), high=float(high), n=n)
