"""Which slots the rows of a forward pass read: one object for all modules of a bank, with a value for each thread.

Threads differ because a new adapter's golden texts run beside the batches of those that are there already.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class Selection(threading.local):
    """
    Attributes:
        slots: [B] int64, a slot a row.
        single: the one slot that all rows read, or None where they differ.
        lora: False where no row's adapter has LoRA, so that every delta can be left out.
    """

    def __init__(self, slots: Tensor) -> None:
        # Runs again in every thread that touches the object.
        self.slots = slots
        self.single: int | None = 0
        self.lora = False

    @contextmanager
    def only(self, slot: int) -> Iterator[None]:
        """Within, every module reads `slot` alone."""
        before = self.single
        self.single = slot
        try:
            yield
        finally:
            self.single = before
