"""Who holds which slot of the bank: the least recently used makes room, the pinned never does.

One slot more than the capacity is there, so one is always spare: an adapter is written and proved in it before
anybody goes, and the slot of whoever goes is the next spare one. A refused adapter costs a resident one nothing.
"""

from collections import OrderedDict

from adapters.errors import BankFull
from adapters.reference import AdapterId


class Slots:
    """Bookkeeping alone, no tensors. Slot 0 is the base's and nobody else's."""

    def __init__(self, capacity: int) -> None:
        """
        Args:
            capacity: adapters that can hold a slot at once, >= 1.
        """
        self.capacity = capacity
        self._held: OrderedDict[AdapterId, int] = OrderedDict()  # least recently used first
        self._pinned: set[AdapterId] = set()
        self._awaited: set[AdapterId] = set()
        self._free = list(range(capacity + 1, 0, -1))

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, adapter: AdapterId) -> bool:
        return adapter in self._held

    def holders(self) -> tuple[AdapterId, ...]:
        """Least recently used first."""
        return tuple(self._held)

    def used(self) -> list[int]:
        """The slots that are held."""
        return list(self._held.values())

    @property
    def pinned(self) -> frozenset[AdapterId]:
        return frozenset(self._pinned)

    def slot(self, adapter: AdapterId) -> int:
        """KeyError if it holds none."""
        return self._held[adapter]

    def spare(self) -> int:
        """A slot that nobody holds."""
        return self._free[-1]

    def touch(self, adapter: AdapterId) -> int:
        """The slot of an adapter that is used now; KeyError if it holds none."""
        slot = self._held[adapter]
        self._held.move_to_end(adapter)
        self._awaited.discard(adapter)
        return slot

    def release(self, adapter: AdapterId) -> None:
        """Nobody waits for it any more."""
        self._awaited.discard(adapter)

    def pin(self, adapter: AdapterId) -> None:
        """It never makes room; KeyError if it holds no slot."""
        if adapter not in self._held:
            raise KeyError(adapter)
        self._pinned.add(adapter)

    def unpin(self, adapter: AdapterId) -> None:
        self._pinned.discard(adapter)

    def next_to_go(self) -> AdapterId | None:
        """Who makes room for another; None while all are pinned or awaited."""
        return next((known for known in self._held if known not in self._pinned and known not in self._awaited), None)

    def has_room(self) -> bool:
        """Another adapter could settle now.

        Raises:
            BankFull: it never could, because every slot is pinned.
        """
        if len(self._pinned) >= self.capacity:
            raise BankFull(self.capacity)
        return len(self._held) < self.capacity or self.next_to_go() is not None

    def settle(self, adapter: AdapterId, slot: int, *, awaited: bool) -> AdapterId | None:
        """Give a spare slot to an adapter; call only where there is room.

        Args:
            awaited: it may not go before it was touched or released.

        Returns:
            who made room, if somebody had to.
        """
        gone = None
        if len(self._held) >= self.capacity:
            gone = self.next_to_go()
            assert gone is not None, "settle without room"
            self.drop(gone)
        self._free.remove(slot)
        self._held[adapter] = slot
        if awaited:
            self._awaited.add(adapter)
        return gone

    def drop(self, adapter: AdapterId) -> bool:
        """Take its slot back; False if it holds none."""
        slot = self._held.pop(adapter, None)
        if slot is None:
            return False
        self._free.append(slot)
        self._pinned.discard(adapter)
        self._awaited.discard(adapter)
        return True

    def shrink(self, capacity: int) -> list[int]:
        """Lower the capacity and number the slots anew; the least recently used go until the rest fits.

        Returns:
            the slots that are still held, by their old numbers, in the order of their new ones 1, 2, …

        Raises:
            BankFull: more are pinned or awaited than would fit; nothing changed.
        """
        bound = len(self._pinned | self._awaited)
        if bound > capacity:
            raise BankFull(capacity)
        while len(self._held) > capacity:
            gone = self.next_to_go()
            assert gone is not None
            self.drop(gone)
        kept = list(self._held.values())
        for number, adapter in enumerate(self._held, 1):
            self._held[adapter] = number
        self.capacity = capacity
        self._free = list(range(capacity + 1, len(kept), -1))
        return kept

    def check_integrity(self) -> None:
        """AssertionError if the books do not add up."""
        held = list(self._held.values())
        assert len(held) <= self.capacity, f"{len(held)} adapters hold {self.capacity} slots"
        everything = sorted([*held, *self._free])
        assert everything == list(range(1, self.capacity + 2)), f"slots lost or double: {everything}"
        assert self._free, "no slot is spare"
        assert self._pinned <= self._held.keys(), f"pinned without a slot: {self._pinned - self._held.keys()}"
        assert self._awaited <= self._held.keys(), f"awaited without a slot: {self._awaited - self._held.keys()}"
