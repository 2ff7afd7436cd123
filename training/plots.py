"""The report's plots, each drawn once, as PNG."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.calibrate import reliability, softmax
from training.evaluate import decisions
from training.outcome import UNTRAINED, Outcome
from training.report import parted_after

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2a6fbb", "#d9722e", "#555555"
_MAX_ANNOTATED_LABELS = 12
_MAX_BAR_LABELS = 40
_DPI = 110


def plots(outcome: Outcome) -> dict[str, bytes]:
    """Every plot by its name in `report/`."""
    drawn = {
        "curves": _curves(outcome),
        "confusion": _by_label(outcome) if outcome.tuned_evaluation.multi_label else _confusion(outcome),
        "calibration": _calibration(outcome),
        "lengths": _lengths(outcome),
    }
    return {f"{name}.png": png(figure) for name, figure in drawn.items()}


def png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    # Without the version of the library, so that the same run gives the same file.
    figure.savefig(file, dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def plain_axes(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(axes: "Axes", below: float = -0.2) -> None:
    # A fixed place: looking for the best one, matplotlib draws again and again.
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, below), ncols=2)


def _figure(width_inches: float, height_inches: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def _curves(outcome: Outcome) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    fit = outcome.fit
    numbers = [epoch.number for epoch in fit.epochs]
    figure = _figure(9, 3.6)
    losses, scores = figure.subplots(1, 2)
    for member in outcome.members:
        if member.fit is not fit:
            # The other seeds, pale: how much of a curve is chance.
            others = [epoch.number for epoch in member.fit.epochs]
            losses.plot(others, [epoch.train_loss for epoch in member.fit.epochs], color=BLUE, alpha=0.25)
            losses.plot(others, [epoch.validation_loss for epoch in member.fit.epochs], color=ORANGE, alpha=0.25)
            scores.plot(others, [epoch.accuracy for epoch in member.fit.epochs], color=ORANGE, alpha=0.25)
    losses.plot(numbers, [epoch.train_loss for epoch in fit.epochs], "o-", color=BLUE, label="train")
    losses.plot(numbers, [epoch.validation_loss for epoch in fit.epochs], "o-", color=ORANGE, label="validation")
    parted = parted_after(fit)
    if parted is not None and numbers[-1] > parted:
        losses.axvspan(parted, numbers[-1], color=ORANGE, alpha=0.08, label=f"parted after epoch {parted}")
    losses.set(title="loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    scores.plot(numbers, [epoch.accuracy for epoch in fit.epochs], "o-", color=ORANGE, label="accuracy")
    scores.plot(numbers, [epoch.macro_f1 for epoch in fit.epochs], "s--", color=BLUE, label="macro-F1")
    for name, evaluation in outcome.stages[:-1]:
        value = evaluation.accuracy.value
        style = ":" if name == UNTRAINED else "-."
        shown = f"the {name}" if name == UNTRAINED else name
        scores.axhline(value, color=GREY, linestyle=style, label=f"accuracy of {shown} ({value:.2f})")
    scores.set(title="validation", xlabel="epoch")
    for axes in (losses, scores):
        axes.axvline(fit.best, color=GREY, linewidth=1, alpha=0.6, label=f"kept: epoch {fit.best}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        plain_axes(axes)
        legend_below(axes)
    if len(numbers) == 1:
        losses.set_xlim(0.5, 1.5)
        scores.set_xlim(0.5, 1.5)
    figure.suptitle(f"{outcome.recipe.name} on {outcome.dataset.name}")
    return figure


def _confusion(outcome: Outcome) -> "Figure":
    labels, counts = outcome.dataset.labels, outcome.tuned_evaluation.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side_inches = min(3.2 + 0.6 * len(labels), 12)
    figure = _figure(side_inches + 0.8, side_inches)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true label")
    axes.set(
        title=f"{outcome.recipe.name}: validation, n = {counts.sum()}",
        xlabel="predicted",
        ylabel="true",
        xticks=range(len(labels)),
        yticks=range(len(labels)),
    )
    axes.set_xticklabels(labels, rotation=45 if len(labels) > 4 else 0)
    axes.set_yticklabels(labels)
    if len(labels) <= _MAX_ANNOTATED_LABELS:
        for (row, column), share in np.ndenumerate(shares):
            text = f"{counts[row, column]}\n{share:.0%}"
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    return figure


def _by_label(outcome: Outcome) -> "Figure":
    """Of a multi-label task: precision, recall and F1 of each label, the worst first."""
    counts = outcome.tuned_evaluation.confusion.astype(float)  # [C, 2, 2]
    hits = counts[:, 1, 1]
    precision = hits / np.maximum(counts[:, :, 1].sum(axis=1), 1)
    recall = hits / np.maximum(counts[:, 1].sum(axis=1), 1)
    f1 = 2 * hits / np.maximum(counts[:, :, 1].sum(axis=1) + counts[:, 1].sum(axis=1), 1)
    order = np.argsort(f1)[:_MAX_BAR_LABELS]
    figure = _figure(7, 1.4 + 0.32 * len(order))
    axes = figure.subplots()
    rows = np.arange(len(order))
    axes.barh(rows, f1[order], color=BLUE, alpha=0.35, label="F1")
    axes.plot(precision[order], rows, "o", color=BLUE, markersize=5, label="precision")
    axes.plot(recall[order], rows, "s", color=ORANGE, markersize=5, label="recall")
    axes.set(yticks=rows, xlim=(0, 1.02), title=f"{outcome.recipe.name}: validation, by label")
    axes.set_yticklabels([f"{outcome.dataset.labels[at]} (n = {int(counts[at, 1].sum())})" for at in order])
    axes.invert_yaxis()
    plain_axes(axes)
    legend_below(axes, -0.3 if len(order) < 6 else -0.12)
    return figure


def _calibration(outcome: Outcome) -> "Figure":
    figure = _figure(4.6, 4.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="says what it is worth")
    logits, targets = decisions(outcome.tuned_evaluation.logits, outcome.tuned_evaluation.targets)
    sides = [("logits as they are", 1.0, ORANGE)]
    temperature = outcome.calibration.temperature
    if temperature != 1:
        sides.append((f"temperature {temperature:.2f}", temperature, BLUE))
    for name, divisor, color in sides:
        bins = reliability(softmax(logits / divisor), targets)
        said, right = ([total / count for count, _, total in bins], [right / count for count, right, _ in bins])
        # A point of few texts says little, and looks it.
        sizes = [12 + 240 * count / len(targets) for count, _, _ in bins]
        axes.plot(said, right, color=color, linewidth=1)
        axes.scatter(said, right, sizes, color=color, label=name)
    axes.set(
        title=f"{outcome.recipe.name}: validation, n = {len(targets)}",
        xlabel="highest score, mean of its tenth",
        ylabel="share that is right",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
    )
    plain_axes(axes)
    legend_below(axes, -0.16)
    return figure


def _lengths(outcome: Outcome) -> "Figure":
    limit, truncated = outcome.recipe.max_tokens, outcome.tokens.train.truncated
    lengths = outcome.tokens.train.lengths
    figure = _figure(7, 3)
    axes = figure.subplots()
    axes.hist(lengths, bins=min(40, max(2, len(set(lengths.tolist())))), color=BLUE, alpha=0.75)
    if lengths.max() >= 0.6 * limit:
        share = truncated / len(lengths)
        axes.axvline(limit, color=ORANGE, label=f"limit, {limit} tokens: {share:.1%} are longer and cut")
        axes.legend(frameon=False, fontsize=8)
    axes.set(title=f"{outcome.dataset.name}: training texts", xlabel="tokens, as read", ylabel="texts")
    plain_axes(axes)
    return figure


def scatter_trials(
    columns: Sequence[tuple[str, Sequence[float]]], values: Sequence[float], metric: str, title: str
) -> "Figure":
    """A search: the metric over each of the searched numbers."""
    figure = _figure(4.2 * len(columns), 3.4)
    for axes, (name, tried) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        axes.scatter(tried, values, color=BLUE)
        axes.set(xlabel=name.replace("_", " "), ylabel=metric.replace("_", " "))
        if name == "learning_rate":
            axes.set_xscale("log")
        plain_axes(axes)
    figure.suptitle(title)
    return figure
