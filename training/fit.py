"""The trainable parameters, fitted by Hugging Face's `Trainer`; the best epoch's are kept."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from training.evaluate import EVALUATION_BATCH, Collate, macro_f1
from training.recipe import FitSettings
from training.tokenise import TokenisedDataset

OnEpoch = Callable[[int, float], None]


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
        train_s: wall-clock seconds.
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
    settings: FitSettings,
    directory: Path,
    console: Console,
    on_epoch: OnEpoch | None = None,
) -> Fit:
    """Fit the trainable parameters of `model` in place and leave it with those of the best epoch.

    Args:
        model: a `peft.PeftModel`.
        directory: for the checkpoints; not needed afterwards.
        console: gets a progress bar if it is a terminal, and one line an epoch.
        on_epoch: is told each epoch's number and the metric that the best is chosen by; what it raises ends training.
    """
    import torch
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

    from training.progress import Progress, Told

    arguments = TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        # Below 1, `warmup_steps` is a share of all steps.
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type=settings.scheduler,
        label_smoothing_factor=settings.label_smoothing,
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
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
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    callbacks: list[Any] = [Progress(console, settings.epochs)]
    if on_epoch is not None:
        callbacks.append(Told(on_epoch, settings.metric_for_best))
    if settings.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=tokens.train.rows,
        eval_dataset=tokens.validation.rows,
        processing_class=tokenizer,
        data_collator=collate,
        compute_metrics=_metrics,
        callbacks=callbacks,
        compute_loss_func=_balanced_loss(tokens, settings) if settings.class_weights == "balanced" else None,
    )
    # It prints each log as a dict; `Progress` says the same for people.
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    trainer.train()
    train_s = time.perf_counter() - began
    # With bf16 its forward was replaced by one under autocast; what follows must see the fp32 one.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    epochs = _epochs(trainer.state.log_history)
    # Of equal epochs the Trainer keeps the first, and so does max().
    best = max(epochs, key=lambda epoch: float(getattr(epoch, settings.metric_for_best)))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Fit(epochs, best.number, trained, train_s)


def multiplies_in_bf16() -> bool:
    """Whether the device has units for bf16 products; where a CPU has none, they take over twice as long as fp32's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.accelerator.is_available() or bool(torch.cpu._is_amx_tile_supported())


def _balanced_loss(tokens: TokenisedDataset, settings: FitSettings) -> Any:
    """Cross-entropy in which a class with half as many texts counts twice; weights have mean 1 over the texts."""
    import torch
    from torch.nn.functional import cross_entropy

    counts = torch.bincount(torch.tensor([row["labels"] for row in tokens.train.rows]))
    weights = len(tokens.train) / (len(counts) * counts.clamp(min=1))

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        own = weights.to(outputs.logits.device, torch.float32)
        return cross_entropy(outputs.logits.float(), labels, own, label_smoothing=settings.label_smoothing)

    return loss


def _metrics(prediction: Any) -> dict[str, float]:
    logits, targets = prediction.predictions, prediction.label_ids
    predicted = logits.argmax(axis=1)
    return {
        "accuracy": float((predicted == targets).mean()),
        "macro_f1": macro_f1(targets, predicted, logits.shape[1]),
    }


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
