"""What goes into the engine and what comes out. Light: importing it imports no torch, so a server's front may use it.

Named tuples where there is one a row: they pickle several times faster than dataclasses do.
"""

from typing import NamedTuple

from adapters.errors import TonearmError
from adapters.reference import AdapterId


class Row(NamedTuple):
    """One text for one adapter.

    Attributes:
        truncate: cut a text that is too long; otherwise it gets `TextTooLong`.
    """

    text: str
    adapter: AdapterId
    truncate: bool = True


class Answer(NamedTuple):
    """What an adapter says of a text.

    Attributes:
        labels, logits, scores: in the adapter's label order. Scores are softmax(logits / temperature), or a sigmoid
            for each label where the adapter is multi-label.
        tokens: tokens read, special tokens included.
        truncated: some of the text was cut off.
    """

    labels: tuple[str, ...]
    logits: tuple[float, ...]
    scores: tuple[float, ...]
    tokens: int
    truncated: bool


Outcome = Answer | TonearmError


class BatchStats(NamedTuple):
    """What one call of `classify` did. `tokens` are real ones, `padded_tokens` what the encoder computed on."""

    rows: int
    micro_batches: int
    tokens: int
    padded_tokens: int
    tokenise_s: float
    forward_s: float
