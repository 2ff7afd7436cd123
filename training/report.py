"""The report: `metrics.json`, the plots, the table on the terminal, and the sentences in words."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adapters.manifest import Metric
from training.calibrate import reliability, softmax
from training.checks import balance
from training.fit import Fit
from training.outcome import Outcome
from training.tokenise import TokenisedSplit

REPORT = "report"

_PARTED = 0.05
"""Share by which validation loss must exceed its lowest value for the losses to count as parted."""

_MAX_ANNOTATED_LABELS = 12
_BLUE, _ORANGE, _GREY = "#2a6fbb", "#d9722e", "#555555"


def write_report(directory: Path, outcome: Outcome) -> None:
    """Write `report/` into an adapter directory."""
    report = directory / REPORT
    report.mkdir()
    content = json.dumps(_metrics(outcome), indent=2, ensure_ascii=False)
    (report / "metrics.json").write_text(content + "\n", encoding="utf-8")
    _plot_curves(report / "curves.png", outcome)
    _plot_confusion(report / "confusion.png", outcome)
    _plot_calibration(report / "calibration.png", outcome)


def print_report(console: Console, outcome: Outcome) -> None:
    """Base and tuned side by side, and the sentences in words."""
    table = Table(title=f"{outcome.recipe.name}: base and tuned on the same {len(outcome.tokens.validation)} texts")
    for header in ("", "accuracy", "macro-F1", "loss"):
        table.add_column(header)
    for name, evaluation in (("base", outcome.base_evaluation), ("tuned", outcome.tuned_evaluation)):
        loss = f"{evaluation.loss:.3f}"
        table.add_row(name, interval_text(evaluation.accuracy), interval_text(evaluation.macro_f1), loss)
    console.print(table)
    examples = Table(title="examples")
    for header in ("text", "label", "base", "tuned"):
        examples.add_column(header)
    for row in example_rows(outcome):
        # A text may hold brackets, which rich would take for markup.
        examples.add_row(*map(escape, row))
    console.print(examples)
    console.print(comparison_sentence(outcome), highlight=False, soft_wrap=True)
    console.print(overfitting_sentence(outcome.fit), highlight=False, soft_wrap=True)
    console.print(calibration_sentence(outcome), highlight=False, soft_wrap=True)


def interval_text(metric: Metric) -> str:
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def example_rows(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    """(text, true label, base's label, adapter's label) of the golden texts that are validation texts as they stand."""
    validation, labels = outcome.dataset.validation, outcome.dataset.labels
    rows = []
    for example in outcome.golden:
        if example.text in validation.texts:
            index = validation.texts.index(example.text)
            base = labels[outcome.base_evaluation.predicted[index]]
            tuned = labels[outcome.tuned_evaluation.predicted[index]]
            rows.append((example.text, labels[validation.targets[index]], base, tuned))
    return rows


def comparison_sentence(outcome: Outcome) -> str:
    """Whether the adapter is better than the untrained base, in words."""
    comparison = outcome.comparison
    p_text = f"p = {comparison.p_value:.2g}" if comparison.p_value >= 1e-4 else "p < 0.0001"
    counts = (
        f"it corrects {comparison.gained} texts and breaks {comparison.lost} "
        f"of {outcome.tuned_evaluation.accuracy.n} (McNemar, {p_text})"
    )
    if comparison.p_value >= 0.05:
        return f"The adapter is not shown to differ from the untrained base: {counts}."
    return f"The adapter is {'better' if comparison.gained > comparison.lost else 'worse'} than the base: {counts}."


def overfitting_sentence(fit: Fit) -> str:
    """Whether train and validation loss part, in words."""
    if len(fit.epochs) < 2:
        return "One epoch does not show whether train and validation loss part."
    lowest = min(fit.epochs, key=lambda epoch: epoch.validation_loss)
    last = fit.epochs[-1]
    kept = f"The weights kept are those of epoch {fit.best}"
    risen = last.validation_loss > lowest.validation_loss * (1 + _PARTED)
    if risen and last.train_loss < lowest.train_loss:
        after = " (after the losses parted)" if fit.best > lowest.number else ""
        return (
            f"Train and validation loss part after epoch {lowest.number}: by epoch {last.number} train loss falls from "
            f"{lowest.train_loss:.3f} to {last.train_loss:.3f} while validation loss rises from "
            f"{lowest.validation_loss:.3f} to {last.validation_loss:.3f}, which is overfitting. {kept}{after}."
        )
    return (
        f"Train and validation loss do not part: validation loss is {last.validation_loss:.3f} after the last epoch, "
        f"{lowest.validation_loss:.3f} at its lowest (epoch {lowest.number}). {kept}."
    )


def calibration_sentence(outcome: Outcome) -> str:
    """What the scores are worth, in words."""
    found = outcome.calibration
    if found.temperature == 1:
        return f"Scores are used as they are: expected calibration error {found.error_before:.3f}."
    return (
        f"Scores are calibrated by a temperature of {found.temperature:.2f}: expected calibration error "
        f"{found.error_before:.3f} before and {found.error_after:.3f} after, each half of the texts with what fits "
        "the other half."
    )


def chance(outcome: Outcome) -> float:
    """Accuracy of always giving validation's commonest label."""
    targets = outcome.dataset.validation.targets
    return float(np.bincount(targets).max() / len(targets))


def recipe_fields(outcome: Outcome) -> dict[str, Any]:
    """The resolved recipe, without where its files lie on the machine it ran on."""
    fields = outcome.recipe.model_dump(mode="json")
    fields["base_model"] = outcome.base_id
    if outcome.recipe.data.hub is None:
        fields["data"] |= {"train": Path(fields["data"]["train"]).name}
        if fields["data"]["validation"] is not None:
            fields["data"] |= {"validation": Path(fields["data"]["validation"]).name}
    if outcome.recipe.warm_start_from is not None:
        # <name>/<version> of a registry, or whatever the directory is called.
        fields["warm_start_from"] = "/".join(Path(outcome.recipe.warm_start_from).parts[-2:])
    return fields


def _metrics(outcome: Outcome) -> dict[str, Any]:
    def evaluation(name: str) -> dict[str, Any]:
        found = getattr(outcome, f"{name}_evaluation")
        return {
            "accuracy": found.accuracy.model_dump(),
            "macro_f1": found.macro_f1.model_dump(),
            "loss": found.loss,
            "confusion": found.confusion.tolist(),
        }

    return {
        "labels": outcome.dataset.labels,
        "chance": chance(outcome),
        "base": evaluation("base"),
        "tuned": evaluation("tuned"),
        "base_against_tuned": dataclasses.asdict(outcome.comparison),
        "calibration": dataclasses.asdict(outcome.calibration),
        "epochs": [dataclasses.asdict(epoch) for epoch in outcome.fit.epochs],
        "best_epoch": outcome.fit.best,
        "overfitting": overfitting_sentence(outcome.fit),
        "trained_parameters": outcome.fit.trained_parameters,
        "train_s": round(outcome.fit.train_s, 1),
        "data": {
            "name": outcome.dataset.name,
            "train_sha256": outcome.dataset.sha256,
            "train_examples": len(outcome.tokens.train),
            "train_truncated": outcome.tokens.train.truncated,
            "validation_examples": len(outcome.tokens.validation),
            "validation_truncated": outcome.tokens.validation.truncated,
            "train_balance": balance(outcome.dataset.labels, outcome.dataset.train.targets),
            "validation_balance": balance(outcome.dataset.labels, outcome.dataset.validation.targets),
            "train_tokens": _lengths(outcome.tokens.train),
            # Without an example: the data may not be ours to publish.
            "findings": {finding.what: [finding.rows, finding.done] for finding in outcome.dataset.findings},
        },
        "golden": [example.model_dump(mode="json") for example in outcome.golden],
        "recipe": recipe_fields(outcome),
    }


def _lengths(split: TokenisedSplit) -> dict[str, int]:
    """Tokens of the texts as they were trained on, by the share of the texts that are no longer."""
    lengths = np.array([len(row["input_ids"]) for row in split.rows])
    return {f"p{share}": int(np.percentile(lengths, share, method="nearest")) for share in (5, 25, 50, 75, 95, 100)}


def _plot_curves(path: Path, outcome: Outcome) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    fit = outcome.fit
    numbers = [epoch.number for epoch in fit.epochs]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    losses.plot(numbers, [epoch.train_loss for epoch in fit.epochs], "o-", color=_BLUE, label="train")
    losses.plot(numbers, [epoch.validation_loss for epoch in fit.epochs], "o-", color=_ORANGE, label="validation")
    losses.set(title="loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    scores.plot(numbers, [epoch.accuracy for epoch in fit.epochs], "o-", color=_ORANGE, label="accuracy")
    scores.plot(numbers, [epoch.macro_f1 for epoch in fit.epochs], "s--", color=_BLUE, label="macro-F1")
    base = outcome.base_evaluation.accuracy.value
    scores.axhline(base, color=_GREY, linestyle=":", label=f"accuracy of the untrained base ({base:.2f})")
    scores.set(title="validation", xlabel="epoch")
    for axes in (losses, scores):
        axes.axvline(fit.best, color=_GREY, linewidth=1, alpha=0.6, label=f"kept: epoch {fit.best}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        # A fixed place: looking for the best one, matplotlib draws again and again.
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    if len(numbers) == 1:
        losses.set_xlim(0.5, 1.5)
        scores.set_xlim(0.5, 1.5)
    figure.suptitle(f"{outcome.recipe.name} on {outcome.dataset.name}")
    figure.savefig(path, dpi=110)


def _plot_confusion(path: Path, outcome: Outcome) -> None:
    from matplotlib.figure import Figure

    labels, counts = outcome.dataset.labels, outcome.tuned_evaluation.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side_inches = min(3.2 + 0.6 * len(labels), 12)
    figure = Figure(figsize=(side_inches + 0.8, side_inches), layout="constrained")
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
    figure.savefig(path, dpi=110)


def _plot_calibration(path: Path, outcome: Outcome) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", label="says what it is worth")
    evaluation, calibration = outcome.tuned_evaluation, outcome.calibration
    sides = [("logits as they are", 1.0, _ORANGE)]
    if calibration.temperature != 1:
        sides.append((f"temperature {calibration.temperature:.2f}", calibration.temperature, _BLUE))
    for name, temperature, color in sides:
        bins = reliability(softmax(evaluation.logits.astype(np.float64) / temperature), evaluation.targets)
        said, right = ([total / count for count, _, total in bins], [right / count for count, right, _ in bins])
        # A point of few texts says little, and looks it.
        sizes = [12 + 240 * count / len(evaluation.targets) for count, _, _ in bins]
        axes.plot(said, right, color=color, linewidth=1)
        axes.scatter(said, right, sizes, color=color, label=name)
    axes.set(
        title=f"{outcome.recipe.name}: validation, n = {len(evaluation.targets)}",
        xlabel="highest score, mean of its tenth",
        ylabel="share that is right",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    figure.savefig(path, dpi=110)
