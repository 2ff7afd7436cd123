"""What one training run came to: all that report, card and manifest are written from."""

from dataclasses import dataclass
from pathlib import Path

from adapters.base_model import BaseModelFiles
from adapters.manifest import GoldenExample
from training.calibrate import Calibration
from training.dataset import Dataset
from training.evaluate import Comparison, Evaluation
from training.fit import Fit
from training.recipe import Recipe
from training.tokenise import TokenisedDataset


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    Attributes:
        base_evaluation: the untrained base (a random head, unless the base brings one for these labels).
        tuned_evaluation: the trained adapter, on the same validation texts.
        calibration: the temperature that is published, and what it is worth.
        golden: texts with the logits of the adapter as reloaded from disk.
        lora_targets: names of the modules with LoRA; empty for a head alone.
    """

    recipe: Recipe
    base: BaseModelFiles
    dataset: Dataset
    tokens: TokenisedDataset
    base_evaluation: Evaluation
    fit: Fit
    tuned_evaluation: Evaluation
    comparison: Comparison
    calibration: Calibration
    golden: tuple[GoldenExample, ...]
    lora_targets: tuple[str, ...]

    @property
    def base_id(self) -> str:
        return public_id(self.base)


def public_id(base: BaseModelFiles) -> str:
    """How published files name the base: its hub id, or a local directory's own name without where it lies here."""
    directory = Path(base.id).expanduser()
    return directory.resolve().name if directory.is_dir() else base.id
