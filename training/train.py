"""The training flow.

dataset -> tokenise -> base evaluation -> (transfer: a head, or a first task) -> LoRA, seed by seed -> evaluate ->
adapter directory
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from adapters.base_model import BaseModelFiles, find_base_model
from adapters.manifest import read_manifest, weights_sha256
from adapters.reference import AdapterId
from adapters.store import Registry
from training.calibrate import calibrate
from training.checks import finding_sentences
from training.dataset import Dataset, load_dataset
from training.evaluate import Collate, Evaluation, compare, evaluate
from training.fit import Fit, OnEpoch, fit
from training.frozen import remembered_encoder
from training.golden import choose_texts, golden_examples
from training.model import BaseWithHead, add_adapter, load_base, lora_targets, set_trained_state, trained_state
from training.outcome import UNTRAINED, Outcome, Transfer, public_id
from training.page import write_page
from training.plots import plots
from training.processes import by_first, is_first
from training.publish import publish, save_and_reload
from training.recipe import Recipe, load_recipe
from training.report import METRICS, interval_text, print_report, public_recipe
from training.runs import (
    CHECKPOINTS,
    Member,
    Run,
    exhaustion_named,
    keep_member,
    kept_member,
    open_run,
)
from training.tokenise import TokenisedDataset, load_tokenizer, tokenise

if TYPE_CHECKING:
    from training.search import Search

_TOKENS = "tokens"
"""Directory of the runs' that keeps tokenised texts."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training needs besides the recipe's own numbers."""

    base: BaseModelFiles
    dataset: Dataset
    tokenizer: Any
    tokens: TokenisedDataset
    collate: Collate


def prepare(recipe: Recipe, runs: Path) -> Prepared:
    """Base, data and tokens.

    Raises:
        TonearmError: the recipe, the data or the base is wrong.
    """
    from transformers import DataCollatorWithPadding

    base = find_base_model(recipe.base_model)
    multi_label = recipe.task == "multi_label"
    dataset = load_dataset(recipe.data, multi_label=multi_label)
    tokenizer = load_tokenizer(base, recipe)
    tokens = tokenise(dataset, tokenizer, recipe.max_tokens, multi_label=multi_label, cache=runs / _TOKENS)
    return Prepared(base, dataset, tokenizer, tokens, DataCollatorWithPadding(tokenizer))


def untrained_base(prepared: Prepared, recipe: Recipe) -> BaseWithHead:
    """The base as training begins with it, on the device that it trains on."""
    untrained = load_base(
        prepared.base,
        prepared.dataset.labels,
        prepared.tokenizer,
        recipe.training.seed,
        recipe.training.attention_dropout,
        quantised=recipe.quantise is not None,
    )
    if recipe.quantise is None:
        untrained.model.to(_device())
    return untrained


def _device() -> Any:
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def learn(
    prepared: Prepared,
    recipe: Recipe,
    checkpoints: Path,
    console: Console,
    on_epoch: OnEpoch | None = None,
    untrained: BaseWithHead | None = None,
) -> tuple[Any, Fit]:
    """A model with the recipe's adapter, fitted. With `lora: null` the head alone learns, on the frozen encoder.

    Args:
        untrained: the base with a head, if it is at hand; used up.
    """
    model = add_adapter(untrained or untrained_base(prepared, recipe), recipe, prepared.dataset.labels)
    with remembered_encoder(model, prepared.tokens, prepared.collate) as learnt_from:
        fitted = fit(model, learnt_from, prepared.tokenizer, prepared.collate, recipe, checkpoints, console, on_epoch)
    return model, fitted


def train(recipe: Recipe, *, registry: Path, runs: Path, console: Console, search: "Search | None" = None) -> AdapterId:
    """Train what the recipe says and publish it.

    A run of the same recipe on the same rows that was cut off is gone on with. Under `torchrun` or `accelerate launch`
    every process takes part.

    Args:
        registry: root of the registry it is published to.
        runs: directory that gets one new directory for this run.
        console: for what a person wants to see.
        search: what chose the recipe's numbers, for the report.

    Returns:
        The name and version it was published as.

    Raises:
        TonearmError: the recipe, the data or the base is wrong, space or memory ran out, or what was trained fails its
            checks; nothing is published then.
    """
    if not is_first():
        console = Console(quiet=True)
    with exhaustion_named(recipe, runs):
        prepared = prepare(recipe, runs)
        for sentence in finding_sentences(prepared.dataset.findings, examples=True):
            console.print(f"data: {sentence}", style="yellow", highlight=False, soft_wrap=True, markup=False)
        first = transferred(recipe, prepared, registry, runs, console)
        inputs = {
            "base": prepared.base.sha256,
            "train": prepared.dataset.sha256,
            "validation": prepared.dataset.validation_sha256,
            "start": None if first is None else weights_sha256(first.directory),
        }
        with open_run(runs, recipe, inputs) as run:
            return _train(recipe, prepared, first, run, registry, console, search)


@dataclass(frozen=True, slots=True)
class Start:
    """What the transfer stage published."""

    adapter: AdapterId
    directory: Path


def transferred(recipe: Recipe, prepared: Prepared, registry: Path, runs: Path, console: Console) -> Start | None:
    """Train the stage before and publish it, unless the registry holds what it would train."""
    settings = recipe.transfer
    if settings is None:
        return None
    if settings.recipe is not None:
        stage, own = load_recipe(Path(settings.recipe)), None
    else:
        changes = {"epochs": settings.epochs, "learning_rate": settings.learning_rate, "seeds": 1}
        training = recipe.training.model_copy(update=changes)
        update = {"name": f"{recipe.name}-head", "lora": None, "transfer": None, "quantise": None, "training": training}
        stage, own = recipe.model_copy(update=update), prepared
    store = Registry(registry)
    published = by_first(lambda: _published_already(stage, own, store))
    if published is None:
        console.rule(f"transfer: {stage.name}", align="left")
        published = train(stage, registry=registry, runs=runs, console=console)
        console.rule(recipe.name, align="left")
    else:
        console.print(f"transfer: {published} is what {stage.name} would train", highlight=False, soft_wrap=True)
    return Start(published, store.directory(published))


def _published_already(stage: Recipe, prepared: Prepared | None, store: Registry) -> AdapterId | None:
    """The registry's newest version of a recipe's name, if it came of this recipe, these rows and this base."""
    if not store.versions(stage.name):
        return None
    found = store.resolve(stage.name)
    directory = store.directory(found)
    report = directory / METRICS
    if not report.is_file():
        return None
    manifest, kept = read_manifest(directory), json.loads(report.read_text(encoding="utf-8"))
    dataset = prepared.dataset if prepared else load_dataset(stage.data, multi_label=stage.task == "multi_label")
    base = prepared.base if prepared else find_base_model(stage.base_model)
    same = (
        manifest.base.sha256 == base.sha256
        and kept["data"]["train_sha256"] == dataset.sha256
        and kept["data"].get("validation_sha256") == dataset.validation_sha256
        and kept["recipe"] == public_recipe(stage, public_id(base))
    )
    return found if same else None


def _train(
    recipe: Recipe,
    prepared: Prepared,
    first: Start | None,
    run: Run,
    registry: Path,
    console: Console,
    search: "Search | None",
) -> AdapterId:
    base, dataset, tokenizer = prepared.base, prepared.dataset, prepared.tokenizer
    tokens, collate = prepared.tokens, prepared.collate
    console.print(
        f"{recipe.name}: {len(tokens.train)} training and {len(tokens.validation)} validation texts, "
        f"labels {', '.join(dataset.labels)}; run directory {run.directory}{' (gone on with)' if run.resumed else ''}",
        highlight=False,
        soft_wrap=True,
    )
    untrained = untrained_base(prepared, recipe)
    base_evaluation = evaluate(untrained.model, tokens.validation, collate)
    _say(console, UNTRAINED, base_evaluation)
    plain, transfer = recipe, None
    if first is not None:
        recipe = recipe.model_copy(update={"warm_start_from": str(first.directory)})
        started = evaluate(add_adapter(untrained, recipe, dataset.labels), tokens.validation, collate)
        _say(console, f"after transfer from {first.adapter}, before its own training", started)
        transfer = Transfer(first.adapter, started)

    members = _members(prepared, recipe, run, "seed", console)
    if transfer is not None and recipe.transfer is not None and recipe.transfer.compare:
        console.print("without the transfer stage:", highlight=False)
        without = tuple(_members(prepared, plain, run, "plain-seed", console))
        transfer = dataclasses.replace(transfer, plain=without)
    best = max(members, key=lambda member: float(getattr(member, recipe.training.metric_for_best)))
    model = add_adapter(untrained_base(prepared, recipe), recipe, dataset.labels)
    set_trained_state(model, best.state)

    def finish() -> AdapterId:
        directory = run.directory / "adapter"
        shutil.rmtree(directory, ignore_errors=True)
        reloaded = save_and_reload(
            model, directory, base, recipe, dataset.labels, tokenizer, tokens.validation, collate
        )
        # What is served is measured: of a quantised base's adapter that is the one on the base in full precision.
        tuned_evaluation = evaluate(reloaded.to(_device()), tokens.validation, collate)
        reloaded.cpu()
        texts = recipe.example_texts or choose_texts(dataset.validation, tokens.validation, tuned_evaluation)
        outcome = Outcome(
            recipe=recipe,
            base=base,
            dataset=dataset,
            tokens=tokens,
            base_evaluation=base_evaluation,
            transfer=transfer,
            members=tuple(members),
            fit=best.fit,
            tuned_evaluation=tuned_evaluation,
            comparison=compare(base_evaluation, tuned_evaluation),
            calibration=calibrate(tuned_evaluation),
            golden=golden_examples(texts, reloaded, tokenizer, recipe.max_tokens),
            lora_targets=lora_targets(model),
            search=search,
        )
        print_report(console, outcome)
        pictures = plots(outcome)
        store = Registry(registry)
        # Published, and cut off before it could be noted.
        published = _same_weights(directory, recipe.name, store) if run.resumed else None
        published = published or publish(directory, outcome, pictures, store)
        write_page(run.directory, outcome, pictures, with_texts=True)
        run.end(str(published))
        return published

    published = by_first(finish)
    console.print(f"published {published}", highlight=False, soft_wrap=True)
    console.print(f"report {run.directory / 'report' / 'index.html'}", highlight=False, soft_wrap=True)
    return published


def _members(prepared: Prepared, recipe: Recipe, run: Run, kind: str, console: Console) -> list[Member]:
    """A fit for every seed; those that an earlier process finished are taken as they are."""
    members = []
    for seed in range(recipe.training.seed, recipe.training.seed + recipe.training.seeds):
        directory = run.directory / f"{kind}-{seed}"
        member = by_first(lambda place=directory: kept_member(place))  # type: ignore[misc]
        if member is None:
            if recipe.training.seeds > 1:
                console.print(f"seed {seed}:", highlight=False)
            own = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
            model, fitted = learn(prepared, own, directory / CHECKPOINTS, console)
            evaluation = evaluate(model, prepared.tokens.validation, prepared.collate)
            state = trained_state(model)
            member = Member(seed, fitted, evaluation.accuracy.value, evaluation.macro_f1.value, state)
            by_first(lambda place=directory, made=member: keep_member(place, made))  # type: ignore[misc]
        if recipe.training.seeds > 1:
            best = f"accuracy {member.accuracy:.4f}, macro-F1 {member.macro_f1:.4f}"
            console.print(f"seed {seed}: {best} at epoch {member.fit.best}", highlight=False)
        members.append(member)
    return members


def _same_weights(directory: Path, name: str, store: Registry) -> AdapterId | None:
    versions: Sequence[int] = store.versions(name)
    if not versions:
        return None
    newest = AdapterId(name, versions[-1])
    return newest if weights_sha256(store.directory(newest)) == weights_sha256(directory) else None


def _say(console: Console, what: str, evaluation: Evaluation) -> None:
    text = f"{what}: accuracy {interval_text(evaluation.accuracy)}"
    console.print(text, highlight=False, soft_wrap=True, markup=False)
