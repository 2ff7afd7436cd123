"""Run directories: what a training run leaves on disk, so that one that was cut off goes on where it was.

<runs>/<recipe>-<time>-…/
  run.json          what makes this run this run; a run of the same is its continuation
  seed-0/           a finished fit: fit.json, trained.safetensors; until then checkpoints/
  report/           the report with everything in it
  published.json    which adapter came of it; its presence is the end
"""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapters.errors import TonearmError, TrainingError
from training.fit import Epoch, Fit
from training.processes import by_first
from training.recipe import Recipe

CHECKPOINTS = "checkpoints"
_RUN, _PUBLISHED, _LOCK = "run.json", "published.json", "lock"
_FIT, _TRAINED = "fit.json", "trained.safetensors"

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SPACE_WORDS = (
    "no space left",
    "file write failed",
    "iostream error",
    "unexpected pos",
    "disk quota",
    "file too large",
)
_NO_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "unable to allocate")
"""Of libraries that raise a plain RuntimeError for it."""


@dataclass(frozen=True, slots=True)
class Run:
    """
    Attributes:
        resumed: an earlier process began it.
    """

    directory: Path
    resumed: bool

    def end(self, published: str) -> None:
        """Note what came of it, and drop what only a continuation would have needed."""
        (self.directory / _PUBLISHED).write_text(json.dumps({"adapter": published}) + "\n")
        for checkpoints in self.directory.glob(f"*/{CHECKPOINTS}"):
            shutil.rmtree(checkpoints)


@contextmanager
def open_run(runs: Path, recipe: Recipe, inputs: Mapping[str, str | None]) -> Iterator[Run]:
    """The run directory of a recipe: that of a run of the same that was cut off, or a new one.

    Args:
        inputs: digests of whatever else decides what comes of it.
    """
    identity = {
        "recipe": recipe.model_dump(mode="json"),
        **inputs,
        **{package: version(package) for package in ("torch", "transformers", "peft")},
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    with ExitStack() as held:
        yield by_first(lambda: held.enter_context(_begin(runs, recipe.name, digest, identity)))


@contextmanager
def _begin(runs: Path, name: str, digest: str, identity: Mapping[str, Any]) -> Iterator[Run]:
    runs.mkdir(parents=True, exist_ok=True)
    for directory in sorted(runs.glob(f"{name}-*/")):
        with suppress(OSError, ValueError, KeyError):
            same = json.loads((directory / _RUN).read_text())["digest"] == digest
            if not same or (directory / _PUBLISHED).exists():
                continue
            with (directory / _LOCK).open("w") as lock:
                # A run that somebody is at is left to them.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield Run(directory, resumed=True)
                return
    started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-{started}-", dir=runs))
    with (directory / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / _RUN).write_text(json.dumps({"digest": digest, **identity}, indent=2) + "\n")
        yield Run(directory, resumed=False)


@dataclass(frozen=True, slots=True)
class Member:
    """One fit of a run: a seed's.

    Attributes:
        accuracy, macro_f1: on validation, computed in fp32.
        state: what was trained, by PEFT's names.
    """

    seed: int
    fit: Fit
    accuracy: float
    macro_f1: float
    state: dict[str, Any] = dataclasses.field(repr=False, compare=False)


def keep_member(directory: Path, member: Member) -> None:
    """Write a finished fit; `fit.json` comes last."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(member.state, directory / _TRAINED)
    fields = {key: value for key, value in dataclasses.asdict(member).items() if key != "state"}
    beside = directory / f".{_FIT}"
    beside.write_text(json.dumps(fields) + "\n")
    os.replace(beside, directory / _FIT)


def kept_member(directory: Path) -> Member | None:
    """A fit that an earlier process finished."""
    from safetensors.torch import load_file

    if not (directory / _FIT).is_file():
        return None
    fields = json.loads((directory / _FIT).read_text())
    fit = fields.pop("fit")
    epochs = tuple(Epoch(**epoch) for epoch in fit.pop("epochs"))
    return Member(fit=Fit(epochs=epochs, **fit), state=load_file(directory / _TRAINED), **fields)


@contextmanager
def exhaustion_named(recipe: Recipe, runs: Path) -> Iterator[None]:
    """Within, running out of space or memory ends in one sentence with the remedy.

    Raises:
        TrainingError: it did.
    """
    try:
        yield
    except TonearmError:
        raise
    except Exception as error:
        words = str(error).lower()
        if getattr(error, "errno", None) in _NO_SPACE or any(word in words for word in _NO_SPACE_WORDS):
            place = getattr(error, "filename", None) or runs
            raise TrainingError(
                f"no space left to write {place}: nothing half written was published; make room, or say --output "
                f"somewhere with more, and give the command again: the run goes on from its last epoch ({error})"
            ) from error
        if isinstance(error, MemoryError) or any(word in words for word in _NO_MEMORY_WORDS):
            size, steps = recipe.training.batch_size, recipe.training.gradient_accumulation_steps
            what = str(error).splitlines()[0] if str(error) else "MemoryError"
            raise TrainingError(
                f"out of memory with training.batch_size={size} and max_tokens={recipe.max_tokens}: nothing was "
                f"published; try training.batch_size={max(1, size // 2)} with "
                f"training.gradient_accumulation_steps={steps * 2}, which trains the same ({what})"
            ) from error
        raise
