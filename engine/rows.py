"""What goes into the engine and what comes out. Light: importing it imports no torch, so a server's front may use it.

Named tuples where there is one a row: they pickle several times faster than dataclasses do.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from adapters.errors import TonearmError
from adapters.reference import AdapterId

LongText = Literal["truncate", "refuse", "windows"]
"""What to do with a text beyond its adapter's length: cut it, answer `TextTooLong`, or read it in overlapping windows
and pool their logits."""


class Row(NamedTuple):
    """One text for one adapter."""

    text: str
    adapter: AdapterId
    long_text: LongText = "truncate"


class Answer(NamedTuple):
    """What an adapter says of a text.

    Attributes:
        labels, logits, scores: in the adapter's label order. Scores are softmax(logits / temperature), or a sigmoid
            for each label where the adapter is multi-label.
        tokens: tokens read, special tokens included.
        truncated: some of the text was cut off.
        windows: passes that the text took; the logits are their mean, weighted by tokens.
        kept: of a text that was cut, the characters that were read: the first, and the one after the last.
    """

    labels: tuple[str, ...]
    logits: tuple[float, ...]
    scores: tuple[float, ...]
    tokens: int
    truncated: bool
    windows: int = 1
    kept: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """The one with the highest score."""
        return self.labels[max(range(len(self.scores)), key=self.scores.__getitem__)]


Outcome = Answer | TonearmError


class BatchStats(NamedTuple):
    """What one call of `classify` did. `tokens` are real ones, `padded_tokens` what the encoder computed on."""

    rows: int
    micro_batches: int
    tokens: int
    padded_tokens: int
    tokenise_s: float
    forward_s: float


Report = Callable[[list[tuple[int, Outcome]], BatchStats], None]
"""Is told of outcomes, each by its row's place in the batch, while the rest of the batch is still to come."""
