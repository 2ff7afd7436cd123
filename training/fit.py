"""The trainable parameters, fitted by Hugging Face's `Trainer`; the best epoch's are kept."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from adapters.errors import SettingsError
from training.evaluate import EVALUATION_BATCH, Collate, all_right, decide, macro_f1, truth
from training.processes import world_size
from training.progress import Progress, Told
from training.recipe import FitSettings, Recipe
from training.tokenise import TokenisedDataset, TokenisedSplit

OnEpoch = Callable[[int, float], None]

_WHOLE = "whole"
"""In a checkpoint whose every file was written: a kill may leave one half there."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to. Losses are mean cross-entropies (with the recipe's label smoothing), in nats."""

    number: int
    train_loss: float
    validation_loss: float
    accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class Fit:
    """The course of a training run.

    Attributes:
        epochs: in order; fewer than asked for if it stopped early.
        best: number of the epoch whose parameters the model has now.
        trained_parameters: how many numbers were fitted.
        train_s: wall-clock seconds, of this process alone where an earlier one was cut off.
    """

    epochs: tuple[Epoch, ...]
    best: int
    trained_parameters: int
    train_s: float


def fit(
    model: Any,
    tokens: TokenisedDataset,
    tokenizer: Any,
    collate: Collate,
    recipe: Recipe,
    directory: Path,
    console: Console,
    on_epoch: OnEpoch | None = None,
) -> Fit:
    """Fit the trainable parameters of `model` in place and leave it with those of the best epoch.

    Where `directory` holds checkpoints of the same fit, it goes on from the last one that is whole, and ends as it
    would have ended without the break.

    Args:
        model: a `peft.PeftModel`.
        directory: for the checkpoints; not needed afterwards.
        console: gets a progress bar if it is a terminal, and one line an epoch.
        on_epoch: is told each epoch's number and the metric that the best is chosen by; what it raises ends training.

    Raises:
        SettingsError: a setting does not suit the processes or the packages that are there.
    """
    settings = recipe.training
    _check_trackers(recipe)
    checkpoint, earlier = _last_checkpoint(directory)
    callbacks: list[Any] = [Progress(console, settings.epochs), _Whole()]
    if on_epoch is not None:
        callbacks.append(Told(on_epoch, settings.metric_for_best))
    if settings.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience))
    if "tensorboard" in recipe.report_to:
        callbacks.append(_tensorboard(directory.parent / "tensorboard"))
    # The Trainer forgets at a resume that it had stopped, and would go on for another epoch.
    over = checkpoint is not None and _stopped_early(earlier, settings)
    trainer = _Ordered(
        model=model,
        args=_arguments(recipe, directory, epochs=len(earlier) if over else settings.epochs),
        train_dataset=tokens.train,
        eval_dataset=tokens.validation,
        processing_class=tokenizer,
        data_collator=collate,
        compute_metrics=_metrics,
        callbacks=callbacks,
        compute_loss_func=_loss(tokens.train, settings),
        optimizers=(_lora_plus(model, recipe), None),
    )
    trainer.order = _Order(tokens.train, settings)
    # It prints each log as a dict; `Progress` says the same for people.
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    train_s = time.perf_counter() - began
    # With bf16 its forward was replaced by one under autocast; what follows must see the fp32 one.
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    epochs = _epochs(trainer.state.log_history)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Fit(epochs, _best(epochs, settings).number, trained, train_s)


def multiplies_in_bf16() -> bool:
    """Whether the device has units for bf16 products; where a CPU has none, they take over twice as long as fp32's."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.accelerator.is_available() or bool(torch.cpu._is_amx_tile_supported())


def _arguments(recipe: Recipe, directory: Path, epochs: int) -> TrainingArguments:
    settings = recipe.training
    if settings.batch_size % world_size():
        expected = f"a multiple of the {world_size()} processes, which share every batch"
        raise SettingsError("training.batch_size", settings.batch_size, expected)
    return TrainingArguments(
        output_dir=str(directory),
        run_name=recipe.name,
        num_train_epochs=epochs,
        # Each batch is split among the processes, so that their number changes nothing but the speed.
        accelerator_config={"split_batches": True},
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        # Below 1, `warmup_steps` is a share of all steps.
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type=settings.scheduler,
        bf16=settings.precision == "bf16" or (settings.precision == "auto" and multiplies_in_bf16()),
        # It has to be told so, or it refuses bf16 where there is no GPU.
        use_cpu=not torch.accelerator.is_available(),
        seed=settings.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=settings.metric_for_best,
        greater_is_better=True,
        # The best, the last, and the one before it: while the last is being written, it may be all there is.
        save_total_limit=3,
        restore_callback_states_from_checkpoint=True,
        report_to=[tracker for tracker in recipe.report_to if tracker != "tensorboard"] or "none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )


class _Order(torch.utils.data.Sampler[int]):
    """Each epoch's order of the texts, drawn from the seed and the epoch's number alone.

    So a resumed run and every process see the same one, whatever else they drew. The Trainer's own draws from the state
    that dropout draws from, which differs from process to process.
    """

    def __init__(self, split: TokenisedSplit, settings: FitSettings) -> None:
        self._lengths = split.lengths.tolist()
        self._settings = settings
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        settings = self._settings
        draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + self._epoch)
        if not settings.group_by_length:
            return iter(torch.randperm(len(self), generator=draw).tolist())
        batch_size = settings.batch_size * settings.gradient_accumulation_steps
        return iter(get_length_grouped_indices(self._lengths, batch_size, generator=draw))


class _Ordered(Trainer):
    order: _Order

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order


class _Whole(TrainerCallback):
    """Marks a checkpoint once all of it is on disk."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()


def _last_checkpoint(directory: Path) -> tuple[Path | None, tuple[Epoch, ...]]:
    """The newest whole checkpoint and the epochs up to it; those that are not whole are in nobody's way."""
    found = [path.parent for path in directory.glob(f"checkpoint-*/{_WHOLE}")]
    if not found:
        return None, ()
    newest = max(found, key=lambda path: int(path.name.rpartition("-")[2]))
    state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
    return newest, _epochs(state.log_history)


def _best(epochs: tuple[Epoch, ...], settings: FitSettings) -> Epoch:
    # Of equal epochs the Trainer keeps the first, and so does max().
    return max(epochs, key=lambda epoch: float(getattr(epoch, settings.metric_for_best)))


def _stopped_early(epochs: tuple[Epoch, ...], settings: FitSettings) -> bool:
    patience = settings.early_stopping_patience
    return patience is not None and len(epochs) - _best(epochs, settings).number >= patience


def _lora_plus(model: Any, recipe: Recipe) -> Any:
    if recipe.lora is None or recipe.lora.learning_rate_ratio == 1:
        return None
    from peft.optimizers import create_loraplus_optimizer

    return create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=recipe.training.learning_rate,
        loraplus_lr_ratio=recipe.lora.learning_rate_ratio,
        weight_decay=recipe.training.weight_decay,
        loraplus_weight_decay=recipe.training.weight_decay,
    )


def _check_trackers(recipe: Recipe) -> None:
    for tracker in recipe.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise SettingsError("report_to", tracker, f"its package: pip install 'tonearm[{tracker}]'")


def _tensorboard(directory: Path) -> TrainerCallback:
    """Of the Trainer's own making its files would lie among the checkpoints, and go with them."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(directory)))


def _loss(split: TokenisedSplit, settings: FitSettings) -> Callable[..., torch.Tensor]:
    """Mean cross-entropy over the decisions of a step; in nats.

    With `class_weights: balanced`, a class with half as many texts counts twice, weights having mean 1 over the texts;
    of a multi-label task, the texts with a label together count as much as those without.
    """
    targets = torch.from_numpy(split.targets)
    weights = None
    if settings.class_weights == "balanced" and targets.ndim == 1:
        counts = torch.bincount(targets)
        weights = (len(targets) / (len(counts) * counts.clamp(min=1))).float()
    elif settings.class_weights == "balanced":
        with_it = targets.sum(dim=0)
        weights = (len(targets) - with_it).clamp(min=1) / with_it.clamp(min=1)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs.logits.float()
        own = None if weights is None else weights.to(logits.device)
        if labels.ndim == 1:
            losses = functional.cross_entropy(
                logits, labels, own, label_smoothing=settings.label_smoothing, reduction="none"
            )
        else:
            smooth = labels * (1 - settings.label_smoothing) + settings.label_smoothing / 2
            losses = functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=own, reduction="none")
        # Over all batches of a step and all processes, where the Trainer says how many decisions these hold.
        return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch

    return loss


def _metrics(prediction: Any) -> dict[str, float]:
    logits, targets = prediction.predictions, np.asarray(prediction.label_ids)
    predicted, true = decide(logits, multi_label=targets.ndim == 2), truth(targets, logits.shape[1])
    return {"accuracy": float(all_right(predicted, true).mean()), "macro_f1": macro_f1(predicted, true)}


def _epochs(log: list[dict[str, float]]) -> tuple[Epoch, ...]:
    train_loss = {round(entry["epoch"]): entry["loss"] for entry in log if "loss" in entry}
    return tuple(
        Epoch(
            round(entry["epoch"]),
            train_loss[round(entry["epoch"])],
            entry["eval_loss"],
            entry["eval_accuracy"],
            entry["eval_macro_f1"],
        )
        for entry in log
        if "eval_loss" in entry
    )
