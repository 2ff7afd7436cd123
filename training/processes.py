"""The processes of one training run: one, or as many as `torchrun` or `accelerate launch` started.

All of them train; the first alone writes, prints and publishes, and tells the others what came of it.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def by_first(make: Callable[[], T]) -> T:
    """What `make` returns, or raises, in the first process: in all of them."""
    if world_size() == 1:
        return make()
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.accelerator.is_available())
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = make()
        except Exception as error:
            # Raised below, in every process: one that stops alone leaves the others waiting.
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    made: T = outcome[0]
    return made
