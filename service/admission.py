"""Who may join the queue: bounded in texts and in tokens, and shared so that one flooding adapter leaves room.

An adapter may hold at most a multiple of what is still free (the dynamic thresholds of Choudhury and Hahne, IEEE/ACM
Transactions on Networking 6(2), 1998): alone it gets three quarters of the queue, and the fuller the queue is, the
less any one gets. Nobody's share has to be set, and adapters that ask for nothing reserve nothing.

What may wait is bounded in time, too, by the pace at which the workers answer: a queue that takes longer to answer than
anybody waits makes everybody late, and is still there when the overload is over.
"""

from collections import Counter, deque
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


_PACE_WINDOW_S = 5.0
_LEAST_PACE_S = 0.2


class Place(NamedTuple):
    """What a request holds in the queue until it is answered."""

    rows: int
    tokens: int
    by_adapter: Counter[str]
    tokens_by_adapter: Counter[str]


class Pace:
    """How fast the workers answer while anything waits, over the last seconds in which something did.

    With little to do it is low, for small batches are slow by the token: it is what the workers do, not what they can.
    """

    def __init__(self) -> None:
        self._answered: deque[tuple[float, int]] = deque()
        self._busy_s = 0.0
        self._tokens = 0
        self._since_s: float | None = None

    def work(self, now_s: float) -> None:
        """Something waits."""
        if self._since_s is None:
            self._since_s = now_s

    def answer(self, tokens: int, now_s: float, *, idle: bool) -> None:
        """So many tokens were answered.

        Args:
            idle: nothing waits any more.
        """
        busy_s = 0.0 if self._since_s is None else now_s - self._since_s
        self._since_s = None if idle else now_s
        self._answered.append((busy_s, tokens))
        self._busy_s += busy_s
        self._tokens += tokens
        while self._busy_s > _PACE_WINDOW_S and len(self._answered) > 1:
            oldest_s, oldest = self._answered.popleft()
            self._busy_s -= oldest_s
            self._tokens -= oldest

    @property
    def tokens_per_s(self) -> float | None:
        """None as long as too little was seen."""
        return self._tokens / self._busy_s if self._busy_s >= _LEAST_PACE_S and self._tokens else None


class Admission:
    """Counts what waits. Belongs to one event loop."""

    def __init__(self, max_rows: int, max_tokens: int, *, max_wait_s: float, least_tokens: int) -> None:
        """
        Args:
            max_wait_s: how long a request may have to wait for what is before it, at the pace.
            least_tokens: what may wait at any pace: a batch's worth.
        """
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._max_wait_s, self._least_tokens = max_wait_s, least_tokens
        self._by_adapter: Counter[str] = Counter()
        self._tokens_by_adapter: Counter[str] = Counter()
        self.pace = Pace()
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
        costs = [(row.adapter.name, estimated_tokens(row)) for row in rows]
        place = Place(len(rows), sum(cost for _, cost in costs), Counter(name for name, _ in costs), Counter())
        for name, cost in costs:
            place.tokens_by_adapter[name] += cost
        if place.tokens > self._max_tokens:
            raise TooManyTokens(place.tokens, self._max_tokens)
        free = self._max_rows - self.rows
        if place.rows > free or self.tokens + place.tokens > self._max_tokens:
            raise Overloaded(self.rows, self._max_rows, self.tokens, self._max_tokens, retry_after_s)
        self._check_wait(place, retry_after_s)
        for adapter, count in place.by_adapter.items():
            if self._by_adapter[adapter] + count > _TIMES_FREE * free:
                share = _TIMES_FREE * free
                raise Overloaded(
                    self._by_adapter[adapter], share, self.tokens, self._max_tokens, retry_after_s, adapter
                )
        self.rows += place.rows
        self.tokens += place.tokens
        self._by_adapter.update(place.by_adapter)
        self._tokens_by_adapter.update(place.tokens_by_adapter)
        return place

    def _check_wait(self, place: Place, retry_after_s: int) -> None:
        """By what is before it alone: a request as large as the others' is not refused for its own size.

        Raises:
            Overloaded: it would wait for too long.
        """
        pace = self.pace.tokens_per_s
        if pace is None:
            return
        limit = min(self._max_tokens, max(self._least_tokens, int(pace * self._max_wait_s)))
        free = limit - self.tokens
        if free <= 0:
            raise Overloaded(self.rows, self._max_rows, self.tokens, limit, retry_after_s)
        for adapter in place.by_adapter:
            if self._tokens_by_adapter[adapter] > _TIMES_FREE * free:
                held, share = self._by_adapter[adapter], int(self.rows * _TIMES_FREE * free / self.tokens)
                raise Overloaded(held, share, self.tokens, limit, retry_after_s, adapter)

    def leave(self, place: Place) -> None:
        """The request was answered, or nobody waits for it any more."""
        self.rows -= place.rows
        self.tokens -= place.tokens
        self._by_adapter.subtract(place.by_adapter)
        self._tokens_by_adapter.subtract(place.tokens_by_adapter)
        for adapter in place.by_adapter:
            if not self._by_adapter[adapter]:
                del self._by_adapter[adapter], self._tokens_by_adapter[adapter]
