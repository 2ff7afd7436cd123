"""Whose turn it is: rows of many adapters share the worker by tokens, whoever floods it.

Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995): adapters take turns, and each turn is worth a quantum of
tokens; what a long row takes beyond it is paid back by sitting out turns. Within an adapter, first come first served.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from adapters.reference import AdapterId

Item = TypeVar("Item")

_QUANTUM_TOKENS = 128


class Turns(Generic[Item]):
    """Items in a queue for each adapter, taken from them in turn."""

    def __init__(self) -> None:
        self._queues: OrderedDict[AdapterId, deque[tuple[int, Item]]] = OrderedDict()  # whose turn is next comes first
        self._credit: dict[AdapterId, int] = {}
        self._count = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self._count

    def adapters(self) -> Iterable[AdapterId]:
        """Those that have something waiting."""
        return self._queues.keys()

    def __iter__(self) -> Iterator[Item]:
        for queue in self._queues.values():
            for _, item in queue:
                yield item

    def put(self, adapter: AdapterId, tokens: int, item: Item) -> None:
        """
        Args:
            tokens: what the item costs.
        """
        self._queue(adapter).append((tokens, item))
        self._count += 1
        self.tokens += tokens

    def put_first(self, adapter: AdapterId, items: Iterable[tuple[int, Item]]) -> None:
        """Items that have waited long enough elsewhere: before the adapter's others, and it is its turn."""
        items = list(items)
        if items:
            self._queue(adapter).extendleft(reversed(items))
            self._queues.move_to_end(adapter, last=False)
            self._count += len(items)
            self.tokens += sum(tokens for tokens, _ in items)

    def pop(self) -> tuple[int, Item]:
        """The next item and its cost; IndexError if there is none."""
        if not self._queues:
            raise IndexError("nothing waits")
        while True:
            adapter, queue = next(iter(self._queues.items()))
            if self._credit[adapter] <= 0:
                self._credit[adapter] += _QUANTUM_TOKENS
            if self._credit[adapter] > 0:
                break
            self._queues.move_to_end(adapter)
        tokens, item = queue.popleft()
        self._credit[adapter] -= tokens
        self._count -= 1
        self.tokens -= tokens
        if not queue:
            # What is left of its turn is not saved up.
            del self._queues[adapter], self._credit[adapter]
        elif self._credit[adapter] <= 0:
            self._queues.move_to_end(adapter)
        return tokens, item

    def _queue(self, adapter: AdapterId) -> deque[tuple[int, Item]]:
        if adapter not in self._queues:
            self._queues[adapter] = deque()
            self._credit[adapter] = _QUANTUM_TOKENS
        return self._queues[adapter]
