"""The training flow.

dataset -> tokenise -> base evaluation -> (transfer: head on the frozen base) -> LoRA -> evaluate -> adapter directory
"""

import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from adapters.base_model import BaseModelFiles, find_base_model
from adapters.reference import AdapterId
from adapters.store import Registry
from training.calibrate import calibrate
from training.checks import finding_sentences
from training.dataset import Dataset, load_dataset
from training.evaluate import Collate, compare, evaluate
from training.fit import Fit, OnEpoch, fit
from training.golden import choose_texts, golden_examples
from training.model import add_adapter, load_base, lora_targets
from training.outcome import Outcome
from training.publish import publish, save_and_reload
from training.recipe import Recipe
from training.report import interval_text, print_report
from training.tokenise import TokenisedDataset, load_tokenizer, tokenise


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training needs besides the recipe's own numbers."""

    base: BaseModelFiles
    dataset: Dataset
    tokenizer: Any
    tokens: TokenisedDataset
    collate: Collate


def prepare(recipe: Recipe) -> Prepared:
    """Base, data and tokens.

    Raises:
        TonearmError: the recipe, the data or the base is wrong.
    """
    from transformers import DataCollatorWithPadding

    base = find_base_model(recipe.base_model)
    dataset = load_dataset(recipe.data)
    tokenizer = load_tokenizer(base, recipe)
    tokens = tokenise(dataset, tokenizer, recipe.max_tokens)
    return Prepared(base, dataset, tokenizer, tokens, DataCollatorWithPadding(tokenizer))


def learn(
    prepared: Prepared,
    recipe: Recipe,
    checkpoints: Path,
    console: Console,
    on_epoch: OnEpoch | None = None,
    untrained: Any = None,
) -> tuple[Any, Fit]:
    """A model with the recipe's adapter, fitted. With `lora: null` the head alone learns, on the frozen encoder.

    Args:
        untrained: the base with a head, if it is at hand; used up.
    """
    from training.frozen import remembered_encoder

    if untrained is None:
        untrained = load_base(
            prepared.base,
            prepared.dataset.labels,
            prepared.tokenizer,
            recipe.training.seed,
            recipe.training.attention_dropout,
        )
    model = add_adapter(untrained, recipe)
    with remembered_encoder(model, prepared.tokens, prepared.collate) as learnt_from:
        fitted = fit(
            model, learnt_from, prepared.tokenizer, prepared.collate, recipe.training, checkpoints, console, on_epoch
        )
    return model, fitted


def train(recipe: Recipe, *, registry: Path, runs: Path, console: Console) -> AdapterId:
    """Train what the recipe says and publish it.

    Args:
        registry: root of the registry it is published to.
        runs: directory that gets one new directory for this run.
        console: for what a person wants to see.

    Returns:
        The name and version it was published as.

    Raises:
        TonearmError: the recipe, the data or the base is wrong, or what was trained fails its checks; nothing is
            published then.
    """
    prepared = prepare(recipe)
    base, dataset, tokenizer = prepared.base, prepared.dataset, prepared.tokenizer
    tokens, collate = prepared.tokens, prepared.collate
    for sentence in finding_sentences(dataset.findings, examples=True):
        console.print(f"data: {sentence}", style="yellow", highlight=False, soft_wrap=True, markup=False)
    run = _run_directory(runs, recipe.name)
    console.print(
        f"{recipe.name}: {len(tokens.train)} training and {len(tokens.validation)} validation texts, "
        f"labels {', '.join(dataset.labels)}; run directory {run}",
        highlight=False,
        soft_wrap=True,
    )

    untrained = load_base(base, dataset.labels, tokenizer, recipe.training.seed, recipe.training.attention_dropout)
    base_evaluation = evaluate(untrained.model, tokens.validation, collate)
    console.print(
        f"untrained base: accuracy {interval_text(base_evaluation.accuracy)}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )

    model, fitted = learn(prepared, recipe, run / "checkpoints", console, untrained=untrained)
    tuned_evaluation = evaluate(model, tokens.validation, collate)

    directory = run / "adapter"
    reloaded = save_and_reload(model, directory, base, recipe, dataset.labels, tokenizer, tokens.validation, collate)
    texts = recipe.example_texts or choose_texts(dataset.validation, tokens.validation, tuned_evaluation)
    outcome = Outcome(
        recipe=recipe,
        base=base,
        dataset=dataset,
        tokens=tokens,
        base_evaluation=base_evaluation,
        fit=fitted,
        tuned_evaluation=tuned_evaluation,
        comparison=compare(base_evaluation, tuned_evaluation),
        calibration=calibrate(tuned_evaluation),
        golden=golden_examples(texts, reloaded, tokenizer, recipe.max_tokens),
        lora_targets=lora_targets(model),
    )
    print_report(console, outcome)
    published = publish(directory, outcome, Registry(registry))
    shutil.rmtree(run / "checkpoints")
    console.print(f"published {published}", highlight=False, soft_wrap=True)
    return published


def _run_directory(runs: Path, name: str) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path(tempfile.mkdtemp(prefix=f"{name}-{started}-", dir=runs))
