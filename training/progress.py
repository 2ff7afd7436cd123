"""What a person sees while it trains: a bar on a terminal, one line an epoch anywhere."""

from collections.abc import Callable
from typing import Any

import rich.progress
from rich.console import Console
from transformers import TrainerCallback


class Progress(TrainerCallback):
    """Follows a `Trainer`."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._epochs = epochs
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            # A log file is no place for a bar.
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("training")
        self._train_loss = float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(self._task, total=state.max_steps)
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = min(int(state.epoch) + 1, self._epochs)
        self._bar.update(self._task, completed=state.global_step, description=f"epoch {epoch}/{self._epochs}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self._train_loss = (logs or {}).get("loss", self._train_loss)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if metrics:
            self._bar.console.print(
                f"epoch {round(state.epoch)}/{self._epochs}: train loss {self._train_loss:.3f}, "
                f"validation loss {metrics['eval_loss']:.3f}, accuracy {metrics['eval_accuracy']:.3f}, "
                f"macro-F1 {metrics['eval_macro_f1']:.3f}",
                highlight=False,
                soft_wrap=True,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.stop()


class Told(TrainerCallback):
    """Tells somebody how an epoch went."""

    def __init__(self, on_epoch: Callable[[int, float], None], metric: str) -> None:
        self._on_epoch, self._metric = on_epoch, metric

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if metrics:
            self._on_epoch(round(state.epoch), metrics[f"eval_{self._metric}"])
