"""Who may join the queue: bounded in texts and in tokens, and shared so that one flooding adapter leaves room.

An adapter may hold at most a multiple of what is still free (the dynamic thresholds of Choudhury and Hahne, IEEE/ACM
Transactions on Networking 6(2), 1998): alone it gets three quarters of the queue, and the fuller the queue is, the
less any one gets. Nobody's share has to be set, and adapters that ask for nothing reserve nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from adapters.errors import Overloaded, TooManyTokens
from engine.rows import Row

_TIMES_FREE = 3
"""Most of the queue that one adapter may hold, as a multiple of what is free."""

_BYTES_PER_TOKEN = 3
"""UTF-8 bytes that a token is taken for, on the safe side: English has four to five, Chinese three."""

_SPECIAL_TOKENS = 2
_LONGEST_CUT_TOKENS = 512
"""What a text that may be cut counts for at most: the longest that the usual encoders read."""


def estimated_tokens(row: Row) -> int:
    """Tokens that a row is going to cost; the API process has no tokenizer, so its bytes are counted."""
    tokens = _SPECIAL_TOKENS + len(row.text.encode(errors="replace")) // _BYTES_PER_TOKEN
    return tokens if row.long_text == "windows" else min(tokens, _LONGEST_CUT_TOKENS)


class Place(NamedTuple):
    """What a request holds in the queue until it is answered."""

    rows: int
    tokens: int
    by_adapter: Counter[str]


class Admission:
    """Counts what waits. Belongs to one event loop."""

    def __init__(self, max_rows: int, max_tokens: int) -> None:
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._by_adapter: Counter[str] = Counter()
        self.rows = 0
        self.tokens = 0

    def enter(self, rows: Sequence[Row], retry_after_s: int) -> Place:
        """
        Args:
            retry_after_s: what a refusal advises.

        Raises:
            TooManyTokens: the request would not fit into the empty queue.
            Overloaded: there is no room now, for anybody or for one of its adapters.
        """
        place = Place(len(rows), sum(map(estimated_tokens, rows)), Counter(row.adapter.name for row in rows))
        if place.tokens > self._max_tokens:
            raise TooManyTokens(place.tokens, self._max_tokens)
        free = self._max_rows - self.rows
        if place.rows > free or self.tokens + place.tokens > self._max_tokens:
            raise Overloaded(self.rows, self._max_rows, self.tokens, self._max_tokens, retry_after_s)
        for adapter, count in place.by_adapter.items():
            if self._by_adapter[adapter] + count > _TIMES_FREE * free:
                share = _TIMES_FREE * free
                raise Overloaded(
                    self._by_adapter[adapter], share, self.tokens, self._max_tokens, retry_after_s, adapter
                )
        self.rows += place.rows
        self.tokens += place.tokens
        self._by_adapter.update(place.by_adapter)
        return place

    def leave(self, place: Place) -> None:
        """The request was answered, or nobody waits for it any more."""
        self.rows -= place.rows
        self.tokens -= place.tokens
        self._by_adapter.subtract(place.by_adapter)
        for adapter in place.by_adapter:
            if not self._by_adapter[adapter]:
                del self._by_adapter[adapter]
