"""`tonearm train --search`: learning rate, rank and dropout chosen by trials.

Optuna's TPE chooses (Bergstra et al., "Algorithms for hyper-parameter optimization", NIPS 2011), and a trial is cut
short where earlier ones were better by then.

Trials are kept in a database beside the runs, so a search that was stopped goes on where it was.
"""

import csv
import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from training.plots import png, scatter_trials
from training.recipe import Recipe
from training.train import learn, prepare, transferred

if TYPE_CHECKING:
    import optuna

_LEARNING_RATES = (1e-4, 3e-3)
_RANKS = (4, 8, 16, 32)
_DROPOUTS = (0.0, 0.2)
_SHOWN_TRIALS = 15
_STARTUP_TRIALS = 4


@dataclass(frozen=True, slots=True)
class Search:
    """What a search came to.

    Attributes:
        recipe: with the best trial's values.
        directory: `study.db`, `trials.csv`, `trials.png`.
        metric: what was maximised.
        header, rows: the trials as a table, the best first.
        plot: the trials, as PNG.
    """

    recipe: Recipe
    directory: Path
    best: float
    trials: int
    metric: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    plot: bytes

    def fields(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "trials": self.trials,
            "metric": self.metric,
            "best": self.best,
            "header": self.header,
            "rows": self.rows,
        }


def search(recipe: Recipe, *, trials: int, registry: Path, runs: Path, console: Console) -> Search:
    """Try so many settings in all, those of an earlier search with this recipe included.

    Args:
        registry: root of the registry that a transfer stage is published to; trials start from it.

    Raises:
        TonearmError: the recipe, the data or the base is wrong.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    prepared = prepare(recipe, runs)
    first = transferred(recipe, prepared, registry, runs, console)
    start = {} if first is None else {"warm_start_from": str(first.directory)}
    directory = runs / f"{recipe.name}-search"
    directory.mkdir(parents=True, exist_ok=True)
    # Another recipe, or other data, is another study: its trials say nothing of this one.
    study_name = f"{recipe.name} {_digest(recipe)} {prepared.dataset.sha256[:12]}"
    study = optuna.create_study(
        storage=f"sqlite:///{directory}/study.db",
        study_name=study_name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=1),
    )
    # A trial that a kill cut off has no end; it is not counted, and not learnt from.
    done = sum(trial.state.is_finished() for trial in study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=recipe.training.seed + done)
    if done:
        console.print(f"{done} trials of an earlier search are kept", highlight=False)

    def objective(trial: "optuna.Trial") -> float:
        tried = _with(recipe, _suggest(trial, recipe)).model_copy(update=start)
        place = directory / f"trial-{trial.number}"

        def told(epoch: int, metric: float) -> None:
            trial.report(metric, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            _, fitted = learn(prepared, tried, place, Console(quiet=True), told)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return max(float(getattr(epoch, recipe.training.metric_for_best)) for epoch in fitted.epochs)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("trials", total=trials, completed=done)

        def after(study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
            progress.advance(task)
            console.print(_line(trial), highlight=False, soft_wrap=True)

        study.optimize(objective, n_trials=max(0, trials - done), callbacks=[after])
    header, rows = _table(study, recipe)
    plot = _plot(study, recipe)
    _write(study, directory, recipe)
    (directory / "trials.png").write_bytes(plot)
    table = Table(*header, title=f"{recipe.name}: best of {len(study.trials)} trials")
    for row in rows[:_SHOWN_TRIALS]:
        table.add_row(*row)
    console.print(table)
    return Search(
        recipe=_with(recipe, study.best_params),
        directory=directory,
        best=study.best_value,
        trials=sum(trial.state.is_finished() for trial in study.trials),
        metric=recipe.training.metric_for_best,
        header=header,
        rows=rows,
        plot=plot,
    )


def _suggest(trial: "optuna.Trial", recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = {"learning_rate": trial.suggest_float("learning_rate", *_LEARNING_RATES, log=True)}
    if recipe.lora is not None:
        if recipe.transfer is None and recipe.warm_start_from is None:  # else the start's rank is the least there is
            values["rank"] = trial.suggest_categorical("rank", _RANKS)
        values["dropout"] = trial.suggest_float("dropout", *_DROPOUTS, step=0.05)
    return values


def _with(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with a trial's values; alpha keeps its ratio to the rank, so that the scale stays."""
    training = recipe.training.model_copy(update={"learning_rate": values["learning_rate"]})
    changes: dict[str, Any] = {"training": training}
    if recipe.lora is not None:
        scale, rank = recipe.lora.alpha / recipe.lora.rank, values.get("rank", recipe.lora.rank)
        shape = {"rank": rank, "alpha": scale * rank, "dropout": values["dropout"]}
        changes["lora"] = recipe.lora.model_copy(update=shape)
    return recipe.model_copy(update=changes)


def _digest(recipe: Recipe) -> str:
    return hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:12]


def _line(trial: "optuna.trial.FrozenTrial") -> str:
    value = "-" if trial.value is None or math.isnan(trial.value) else f"{trial.value:.4f}"
    params = ", ".join(f"{name} {value:.4g}" for name, value in trial.params.items())
    return f"trial {trial.number}: {trial.state.name.lower()}, {value} with {params}"


def _table(study: "optuna.Study", recipe: Recipe) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    names = list(study.best_params)
    ordered = sorted(study.trials, key=lambda trial: (trial.value is None, -(trial.value or 0)))
    rows = []
    for trial in ordered:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        params = [f"{trial.params[name]:.4g}" if name in trial.params else "-" for name in names]
        rows.append((str(trial.number), value, *params, str(len(trial.intermediate_values)), trial.state.name.lower()))
    return ("trial", recipe.training.metric_for_best, *names, "epochs", "ended"), tuple(rows)


def _write(study: "optuna.Study", directory: Path, recipe: Recipe) -> None:
    """`trials.csv`, with all digits."""
    names = list(study.best_params)
    with (directory / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", recipe.training.metric_for_best, *names])
        for trial in study.trials:
            params = [trial.params.get(name, "") for name in names]
            writer.writerow([trial.number, trial.state.name.lower(), trial.value, *params])


def _plot(study: "optuna.Study", recipe: Recipe) -> bytes:
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    return png(
        scatter_trials(
            [(name, [trial.params[name] for trial in complete]) for name in study.best_params],
            [float(trial.value or 0) for trial in complete],
            recipe.training.metric_for_best,
            f"{recipe.name}: complete trials, {len(complete)} of {len(study.trials)}",
        )
    )
