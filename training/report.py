"""The report in figures and in words: `metrics.json`, the table on the terminal, the sentences."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adapters.manifest import Metric
from training.checks import balance
from training.evaluate import Evaluation
from training.fit import Fit
from training.outcome import Outcome, Transfer
from training.recipe import Recipe
from training.runs import Member
from training.tokenise import TokenisedSplit

REPORT = "report"
METRICS = f"{REPORT}/metrics.json"

_PARTED = 0.05
"""Share by which validation loss must exceed its lowest value for the losses to count as parted."""


def write_report(directory: Path, outcome: Outcome, pictures: Mapping[str, bytes]) -> None:
    """Write `report/` into an adapter directory: `metrics.json` and the plots, by file name."""
    report = directory / REPORT
    report.mkdir()
    content = json.dumps(_metrics(outcome), indent=2, ensure_ascii=False)
    (directory / METRICS).write_text(content + "\n", encoding="utf-8")
    for name, plot in pictures.items():
        (report / name).write_bytes(plot)


def print_report(console: Console, outcome: Outcome) -> None:
    """The stages side by side, and the sentences in words."""
    table = Table(title=f"{outcome.recipe.name}: the same {len(outcome.tokens.validation)} validation texts")
    for header in ("", "accuracy", "macro-F1", "loss"):
        table.add_column(header)
    for name, evaluation in outcome.stages:
        loss = f"{evaluation.loss:.3f}"
        table.add_row(name, interval_text(evaluation.accuracy), interval_text(evaluation.macro_f1), loss)
    console.print(table)
    if rows := example_rows(outcome):
        examples = Table("text", "label", "base", "tuned", title="examples")
        for row in rows:
            # A text may hold brackets, which rich would take for markup.
            examples.add_row(*map(escape, row))
        console.print(examples)
    for sentence in sentences(outcome):
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)


def sentences(outcome: Outcome) -> list[str]:
    """What is to be known of a run, in words."""
    found = [comparison_sentence(outcome), overfitting_sentence(outcome.fit)]
    if len(outcome.members) > 1:
        found.append(seeds_sentence(outcome.members, outcome.recipe))
    if outcome.transfer is not None and outcome.transfer.plain:
        found.append(transfer_sentence(outcome.transfer, outcome.members, outcome.recipe))
    return [*found, calibration_sentence(outcome)]


def interval_text(metric: Metric) -> str:
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def label_text(outcome: Outcome, chosen: Sequence[int]) -> str:
    """Labels of one text, as people read them."""
    return ", ".join(outcome.dataset.labels[at] for at in chosen) or "none"


def predicted_text(outcome: Outcome, evaluation: Evaluation, index: int) -> str:
    return label_text(outcome, evaluation.predicted[index].nonzero()[0].tolist())


def example_rows(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    """(text, true label, base's label, adapter's label) of the golden texts that are validation texts as they stand."""
    validation = outcome.dataset.validation
    rows = []
    for example in outcome.golden:
        if example.text in validation.texts:
            index = validation.texts.index(example.text)
            base = predicted_text(outcome, outcome.base_evaluation, index)
            tuned = predicted_text(outcome, outcome.tuned_evaluation, index)
            rows.append((example.text, label_text(outcome, validation.targets[index]), base, tuned))
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


def parted_after(fit: Fit) -> int | None:
    """The epoch after which validation loss rises while train loss falls; None where they go together."""
    lowest = min(fit.epochs, key=lambda epoch: epoch.validation_loss)
    last = fit.epochs[-1]
    risen = last.validation_loss > lowest.validation_loss * (1 + _PARTED)
    return lowest.number if risen and last.train_loss < lowest.train_loss else None


def overfitting_sentence(fit: Fit) -> str:
    """Whether train and validation loss part, in words."""
    if len(fit.epochs) < 2:
        return "One epoch does not show whether train and validation loss part."
    lowest = min(fit.epochs, key=lambda epoch: epoch.validation_loss)
    last = fit.epochs[-1]
    kept = f"The weights kept are those of epoch {fit.best}"
    if parted_after(fit) is not None:
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


def seeds_sentence(members: Sequence[Member], recipe: Recipe) -> str:
    """How much of a result is the seed's, in words."""
    metric = recipe.training.metric_for_best
    values = np.array([getattr(member, metric) for member in members])
    best = members[int(values.argmax())]
    return (
        f"Over {len(values)} seeds {_words(metric)} is {values.mean():.4f} in the mean, standard deviation "
        f"{values.std(ddof=1):.4f}, from {values.min():.4f} to {values.max():.4f}; published is seed {best.seed}, the "
        "best, which validation chose."
    )


def transfer_sentence(transfer: Transfer, members: Sequence[Member], recipe: Recipe) -> str:
    """What the stage before brings, seed by seed, in words. The interval is Student's t, over the seeds alone."""
    from scipy.stats import t

    metric = recipe.training.metric_for_best
    pairs = zip(members, transfer.plain, strict=True)
    gains = np.array([getattr(member, metric) - getattr(plain, metric) for member, plain in pairs])
    each = ", ".join(f"{gain:+.4f}" for gain in gains)
    with_it = np.mean([getattr(member, metric) for member in members])
    without = np.mean([getattr(member, metric) for member in transfer.plain])
    found = (
        f"Transfer from {transfer.adapter} brings {gains.mean():+.4f} {_words(metric)} in the mean ({with_it:.4f} with "
        f"it, {without:.4f} without; by seed {each})"
    )
    if len(gains) < 2:
        return f"{found}: one seed does not show how much of that is chance."
    spread = float(t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / math.sqrt(len(gains)))
    return f"{found}, 95 % interval over the seeds {gains.mean() - spread:+.4f} to {gains.mean() + spread:+.4f}."


def _words(metric: str) -> str:
    return {"accuracy": "accuracy", "macro_f1": "macro-F1"}[metric]


def chance(outcome: Outcome) -> float:
    """Accuracy of always giving what is commonest in validation."""
    _, counts = np.unique(np.asarray(outcome.tuned_evaluation.targets), axis=0, return_counts=True)
    return float(counts.max() / len(outcome.dataset.validation))


def recipe_fields(outcome: Outcome) -> dict[str, Any]:
    """The resolved recipe, without where its files lie on the machine it ran on."""
    return public_recipe(outcome.recipe, outcome.base_id)


def public_recipe(recipe: Recipe, base_id: str) -> dict[str, Any]:
    """A recipe as it is published."""
    fields = recipe.model_dump(mode="json")
    fields["base_model"] = base_id
    if recipe.data.hub is None:
        for split in ("train", "validation"):
            if fields["data"][split] is not None:
                fields["data"][split] = Path(fields["data"][split]).name
    if recipe.transfer is not None:
        # What the transfer stage left is named by `transfer` in metrics.json.
        fields["warm_start_from"] = None
        if recipe.transfer.recipe is not None:
            fields["transfer"]["recipe"] = Path(recipe.transfer.recipe).name
    elif recipe.warm_start_from is not None:
        # <name>/<version> of a registry, or whatever the directory is called.
        fields["warm_start_from"] = "/".join(Path(recipe.warm_start_from).parts[-2:])
    return fields


def _metrics(outcome: Outcome) -> dict[str, Any]:
    def evaluation(found: Evaluation) -> dict[str, Any]:
        return {
            "accuracy": found.accuracy.model_dump(),
            "macro_f1": found.macro_f1.model_dump(),
            "loss": found.loss,
            "confusion": found.confusion.tolist(),
        }

    def member(found: Member) -> dict[str, Any]:
        fields = {"seed": found.seed, "accuracy": found.accuracy, "macro_f1": found.macro_f1}
        return fields | {"best_epoch": found.fit.best, "epochs": len(found.fit.epochs)}

    transfer = outcome.transfer
    return {
        "labels": outcome.dataset.labels,
        "chance": chance(outcome),
        "base": evaluation(outcome.base_evaluation),
        "tuned": evaluation(outcome.tuned_evaluation),
        "base_against_tuned": dataclasses.asdict(outcome.comparison),
        "calibration": dataclasses.asdict(outcome.calibration),
        "epochs": [dataclasses.asdict(epoch) for epoch in outcome.fit.epochs],
        "best_epoch": outcome.fit.best,
        "overfitting": overfitting_sentence(outcome.fit),
        "seeds": [member(found) for found in outcome.members],
        "transfer": None
        if transfer is None
        else {
            "adapter": str(transfer.adapter),
            "before_training": evaluation(transfer.evaluation),
            "seeds_without": [member(found) for found in transfer.plain],
        },
        "search": None if outcome.search is None else outcome.search.fields(),
        "trained_parameters": outcome.fit.trained_parameters,
        "train_s": round(outcome.fit.train_s, 1),
        "data": {
            "name": outcome.dataset.name,
            "train_sha256": outcome.dataset.sha256,
            "validation_sha256": outcome.dataset.validation_sha256,
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
    shares = (5, 25, 50, 75, 95, 100)
    return {f"p{share}": int(np.percentile(split.lengths, share, method="nearest")) for share in shares}
