"""What one training run came to: all that report, card and manifest are written from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.base_model import BaseModelFiles
from adapters.manifest import GoldenExample
from adapters.reference import AdapterId
from training.calibrate import Calibration
from training.dataset import Dataset
from training.evaluate import Comparison, Evaluation
from training.fit import Fit
from training.recipe import Recipe
from training.runs import Member
from training.tokenise import TokenisedDataset

if TYPE_CHECKING:
    from training.search import Search

UNTRAINED = "untrained base"
"""What the first of the stages is called; `base` alone may be an adapter's name."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What was learnt before, and what it was worth.

    Attributes:
        adapter: what the stage published.
        evaluation: the recipe's model started from it, before its own training.
        plain: the same seeds trained without it; empty where that was not asked for.
    """

    adapter: AdapterId
    evaluation: Evaluation
    plain: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    Attributes:
        base_evaluation: the untrained base (a random head, unless the base brings one for these labels).
        transfer: the stage before, where there was one.
        members: a fit for every seed; the best by the recipe's metric is the one published.
        fit: the best member's.
        tuned_evaluation: the trained adapter as read back from disk, on the same validation texts.
        calibration: the temperature that is published, and what it is worth.
        golden: texts with the logits of the adapter as reloaded from disk.
        lora_targets: names of the modules with LoRA; empty for a head alone.
        search: what chose the recipe's numbers, if anything did.
    """

    recipe: Recipe
    base: BaseModelFiles
    dataset: Dataset
    tokens: TokenisedDataset
    base_evaluation: Evaluation
    transfer: Transfer | None
    members: tuple[Member, ...]
    fit: Fit
    tuned_evaluation: Evaluation
    comparison: Comparison
    calibration: Calibration
    golden: tuple[GoldenExample, ...]
    lora_targets: tuple[str, ...]
    search: "Search | None" = None

    @property
    def stages(self) -> list[tuple[str, Evaluation]]:
        """What was measured on the validation texts, in order, by name."""
        between = [] if self.transfer is None else [(f"after {self.transfer.adapter}", self.transfer.evaluation)]
        return [(UNTRAINED, self.base_evaluation), *between, (self.recipe.name, self.tuned_evaluation)]

    @property
    def base_id(self) -> str:
        return public_id(self.base)


def public_id(base: BaseModelFiles) -> str:
    """How published files name the base: its hub id, or a local directory's own name without where it lies here."""
    directory = Path(base.id).expanduser()
    return directory.resolve().name if directory.is_dir() else base.id
