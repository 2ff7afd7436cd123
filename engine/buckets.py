"""Batches rounded up to a few shapes, on tensors that stay where they are, so that CUDA replays a captured pass.

A small encoder's pass is hundreds of kernels of a few microseconds each, and a GPU waits for the host between them. A
CUDA graph launches them all at once, but only for one shape and one set of addresses. So rows and lengths are rounded
up to a short ladder; token ids, lengths and slot numbers go to the device as one pinned table; and slots are written
in place, so a graph reads whatever adapter a slot holds at the time. Without CUDA the same code runs uncaptured.
"""

import bisect
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.bank import LoraBank
from engine.lean import LeanEncoder

_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_WARM_UP_PASSES = 3
"""Passes before a capture, so that libraries have chosen their kernels and made their workspaces (torch's advice)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A batch shape.

    Attributes:
        rows, tokens: B and T, both from the ladder.
        lora: whether any row's adapter has LoRA.
    """

    rows: int
    tokens: int
    lora: bool


class _Static:
    """The tensors of one shape. A row of the table is its token ids, its length and its slot."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        size = (shape.rows, shape.tokens + 2)
        self.staged = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.table = torch.zeros(size, dtype=torch.int64, device=device)  # [B, T + 2]
        self.ids = self.table[:, :-2]  # [B, T]
        self.lengths, self.slots = self.table[:, -2:-1], self.table[:, -1]  # [B, 1], [B]
        self.places = torch.arange(shape.tokens, device=device)  # [T]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None
        """[B, C], written anew by each replay."""


class BucketedPass:
    """The lean pass in static shapes. One thread at a time may call it."""

    def __init__(self, lean: LeanEncoder, bank: LoraBank, *, device: torch.device, pad_id: int) -> None:
        self._lean, self._bank, self._device, self._pad_id = lean, bank, device, pad_id
        self._captures = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None
        self._shapes: dict[Shape, _Static] = {}
        self._generation = bank.generation

    @property
    def shapes(self) -> frozenset[Shape]:
        """The shapes that hold for the bank as it is."""
        return frozenset(self._shapes)

    @staticmethod
    def length(tokens: int) -> int:
        """The length that a row of so many tokens is padded to; what is beyond the ladder stays as it is."""
        return _round_up(_LENGTHS, tokens) or tokens

    def __call__(self, ids: list[list[int]], slots: list[int], *, lora: bool) -> Tensor | None:
        """
        Args:
            ids: token ids of each row.
            slots: the bank's slot of each row.
            lora: False if no row's adapter has LoRA.

        Returns:
            logits [B, C], good until the next call, or None for a batch beyond the ladder.
        """
        rows, tokens = _round_up(_ROWS, len(ids)), _round_up(_LENGTHS, max(map(len, ids)))
        if rows is None or tokens is None:
            return None
        if self._generation != self._bank.generation:
            # The bank's tensors lie elsewhere now, or there are more of them.
            self._shapes.clear()
            self._generation = self._bank.generation
        shape = Shape(rows, tokens, lora)
        static = self._shapes.get(shape) or _Static(shape, self._device)
        # A row that only fills up is one padding token long and reads the base's slot.
        table = [
            [*row, *[self._pad_id] * (tokens - len(row)), len(row), slot] for row, slot in zip(ids, slots, strict=True)
        ]
        table += [[self._pad_id] * tokens + [1, 0]] * (rows - len(ids))
        static.staged.copy_(torch.tensor(table))
        static.table.copy_(static.staged, non_blocking=True)
        if self._captures and static.graph is None:
            self._capture(shape, static)
        self._shapes[shape] = static
        if static.graph is None:
            logits = self._pass(shape, static)
        else:
            static.graph.replay()
            assert static.logits is not None
            logits = static.logits
        return logits[: len(ids)]

    def _pass(self, shape: Shape, static: _Static) -> Tensor:
        self._bank.select_tensor(static.slots, lora=shape.lora)
        return self._lean(static.ids, static.places < static.lengths)

    def _capture(self, shape: Shape, static: _Static) -> None:
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP_PASSES):
                self._pass(shape, static)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are watched: adapters are loaded beside, on a stream of their own.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            static.logits = self._pass(shape, static)
        static.graph = graph


def _round_up(ladder: tuple[int, ...], value: int) -> int | None:
    at = bisect.bisect_left(ladder, value)
    return ladder[at] if at < len(ladder) else None
