"""Cuts rows of different lengths into micro-batches: little padding, few forward passes, never over the budget."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that run in one forward pass.

    Attributes:
        rows: indices into the planned sequence.
        length: tokens that every row is padded to: the longest row's.
    """

    rows: tuple[int, ...]
    length: int

    @property
    def padded_tokens(self) -> int:
        return len(self.rows) * self.length


def plan(lengths: Sequence[int], *, token_budget: int, pass_cost_tokens: int) -> list[MicroBatch]:
    """Partition rows, sorted by length, so that padded tokens plus the cost of the passes is least.

    In sorted order an optimal micro-batch is a run of neighbours, so the best partition is a shortest path over the
    distinct lengths. Rows of one length are never spread over two groups, only cut where the budget demands it.

    Args:
        lengths: tokens of each row, each >= 1.
        token_budget: most padded tokens in one micro-batch; a single longer row still gets one of its own.
        pass_cost_tokens: what a forward pass costs besides its tokens, in tokens.

    Returns:
        Micro-batches from short to long, every row in exactly one.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ends = [at for at in range(1, len(order) + 1) if at == len(order) or lengths[order[at]] != lengths[order[at - 1]]]
    starts = [0, *ends[:-1]]
    best = [0.0] + [float("inf")] * len(ends)
    came_from = [0] * (len(ends) + 1)
    for last, end in enumerate(ends):
        length = lengths[order[end - 1]]
        rows_a_pass = max(1, token_budget // length)
        for first in range(last, -1, -1):
            rows = end - starts[first]
            # The rows before `first` only get shorter, and padding them all up to `length` costs ever more.
            cost = best[first] + rows * length + -(-rows // rows_a_pass) * pass_cost_tokens
            if cost < best[last + 1]:
                best[last + 1] = cost
                came_from[last + 1] = first
    groups: list[tuple[int, int]] = []
    at = len(ends)
    while at > 0:
        groups.append((starts[came_from[at]], ends[at - 1]))
        at = came_from[at]
    return [batch for start, end in reversed(groups) for batch in _cut(order[start:end], lengths, token_budget)]


def _cut(rows: list[int], lengths: Sequence[int], token_budget: int) -> list[MicroBatch]:
    """Cut sorted rows into passes within the budget, as even as possible, each padded to its own longest row."""
    passes = -(-len(rows) // max(1, token_budget // lengths[rows[-1]]))
    size, larger = divmod(len(rows), passes)
    batches, at = [], 0
    for index in range(passes):
        part = rows[at : at + size + (index < larger)]
        at += len(part)
        batches.append(MicroBatch(tuple(part), lengths[part[-1]]))
    return batches
