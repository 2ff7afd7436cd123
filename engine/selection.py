"""Which slots the rows of the running forward pass read; one object, shared by all modules of a bank."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Selection:
    """
    Attributes:
        slots: [B] int64, a slot a row.
        single: the one slot that all rows read, or None where they differ.
        lora: False where no row's adapter has LoRA, so that every delta can be left out.
    """

    slots: Tensor
    single: int | None = None
    lora: bool = False

    @contextmanager
    def only(self, slot: int) -> Iterator[None]:
        """Within, every module reads `slot` alone."""
        before = self.single
        self.single = slot
        try:
            yield
        finally:
            self.single = before
