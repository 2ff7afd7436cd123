"""From a trained model to a published adapter: saved, reloaded and compared, described, checked by the engine."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapters.base_model import BaseModelFiles
from adapters.errors import VerificationError
from adapters.manifest import (
    BaseReference,
    LoraShape,
    Manifest,
    TrainingSet,
    digest_files,
    write_manifest,
)
from adapters.reference import AdapterId
from adapters.store import Registry
from training.card import write_card
from training.evaluate import Collate, predict
from training.model import reload, save, trained_state
from training.outcome import Outcome, public_id
from training.page import write_page
from training.recipe import Recipe
from training.report import write_report
from training.tokenise import TokenisedSplit

RELOAD_TOLERANCE = 1e-5
"""Largest difference of a logit between the model in memory and the one read back, both fp32 on the CPU."""

_RELOAD_TEXTS = 64


def save_and_reload(
    model: Any,
    directory: Path,
    base: BaseModelFiles,
    recipe: Recipe,
    labels: tuple[str, ...],
    tokenizer: Any,
    validation: TokenisedSplit,
    collate: Collate,
) -> Any:
    """Save the adapter, read it back onto a newly loaded base, and compare logits.

    Returns:
        The reloaded model, in eval mode on the CPU.

    Raises:
        VerificationError: what was read back answers differently: something that was trained was not saved.
    """
    save(model, directory, public_id(base), base.revision)
    # Another seed, so that a parameter that was not saved comes back different.
    reloaded = reload(directory, base, labels, tokenizer, recipe.training.seed + 1)
    if recipe.quantise is not None:
        # Another base than it was trained on, so other logits: what was trained has to be there all the same.
        trained, read = trained_state(model), trained_state(reloaded)
        lost = [key for key in trained if key not in read or not torch.equal(trained[key], read[key])]
        if lost:
            raise VerificationError(recipe.name, "reload", "every tensor as it was trained", f"{lost[0]} is not")
        return reloaded
    ours, theirs = (predict(one, validation, collate, first=_RELOAD_TEXTS) for one in (model.cpu(), reloaded))
    off = float(np.abs(ours - theirs).max())
    if not off <= RELOAD_TOLERANCE:
        raise VerificationError(
            recipe.name, "reload", f"the logits of the trained model within {RELOAD_TOLERANCE:g}", f"off by {off:.2g}"
        )
    return reloaded


def publish(directory: Path, outcome: Outcome, pictures: Mapping[str, bytes], registry: Registry) -> AdapterId:
    """Add report, card and manifest to a saved adapter, have the engine check it, and publish it.

    Args:
        pictures: the report's plots, by file name.

    Raises:
        VerificationError: the engine refuses it; nothing is published then.
        PublishError: the registry refuses it.
    """
    write_report(directory, outcome, pictures)
    write_page(directory, outcome, pictures, with_texts=not outcome.recipe.example_texts)
    write_card(directory, outcome)
    write_manifest(directory, _manifest(directory, outcome))
    check_served(directory, outcome)
    return registry.publish(directory, outcome.recipe.name)


def check_served(directory: Path, outcome: Outcome) -> None:
    """Run the checks of the service, golden logits included, before anybody can ask for the adapter.

    Raises:
        VerificationError: the service would refuse it.
    """
    from engine.engine import Engine

    rank = outcome.recipe.lora.rank if outcome.recipe.lora else 1
    Engine(outcome.base, capacity=1, max_rank=rank).verify(directory, AdapterId(outcome.recipe.name, _FIRST))


_FIRST = 1
"""Version in the manifest until the registry gives the real one."""


def _manifest(directory: Path, outcome: Outcome) -> Manifest:
    recipe, tuned, base = outcome.recipe, outcome.tuned_evaluation, outcome.base_evaluation
    return Manifest(
        name=recipe.name,
        version=_FIRST,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        description=recipe.description,
        task=recipe.task,
        base=BaseReference(id=outcome.base_id, revision=outcome.base.revision, sha256=outcome.base.sha256),
        labels=outcome.dataset.labels,
        max_tokens=recipe.max_tokens,
        truncation_side=recipe.truncation_side,
        lora=LoraShape(rank=recipe.lora.rank if recipe.lora else 0, targets=outcome.lora_targets),
        training=TrainingSet(
            name=outcome.dataset.name, sha256=outcome.dataset.sha256, examples=len(outcome.dataset.train)
        ),
        metrics={
            "accuracy": tuned.accuracy,
            "macro_f1": tuned.macro_f1,
            "base_accuracy": base.accuracy,
            "base_macro_f1": base.macro_f1,
        },
        temperature=outcome.calibration.temperature,
        golden=outcome.golden,
        files=digest_files(directory),
    )
