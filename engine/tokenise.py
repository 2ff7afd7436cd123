"""Text to token ids, once a text, however many adapters read it."""

from dataclasses import dataclass
from typing import Literal

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tokens:
    """A whole text as token ids, special tokens included.

    Attributes:
        ids: prefix specials, text, suffix specials.
        prefix, suffix: how many special tokens stand before and behind the text.
        encoding: what a fast tokenizer knows besides: which characters a token stands for.
    """

    ids: list[int]
    prefix: int
    suffix: int
    encoding: Encoding | None = None

    def truncated(self, max_tokens: int, side: Literal["left", "right"]) -> list[int]:
        """The ids cut to `max_tokens` by dropping text on one side; special tokens stay."""
        over = len(self.ids) - max_tokens
        if over <= 0:
            return self.ids
        end = len(self.ids) - self.suffix
        if side == "right":
            return self.ids[: end - over] + self.ids[end:]
        return self.ids[: self.prefix] + self.ids[self.prefix + over :]

    def kept(self, max_tokens: int, side: Literal["left", "right"]) -> tuple[int, int] | None:
        """Characters of the text that `truncated` leaves: the first, and the one after the last.

        None where nothing is cut, or the tokenizer does not say.
        """
        over = len(self.ids) - max_tokens
        first, last = self.prefix, len(self.ids) - self.suffix - 1
        if over <= 0 or self.encoding is None or first + over > last:
            return None
        first, last = (first, last - over) if side == "right" else (first + over, last)
        began, ended = self.encoding.token_to_chars(first), self.encoding.token_to_chars(last)
        return None if began is None or ended is None else (began[0], ended[1])

    def windows(self, max_tokens: int) -> list[list[int]]:
        """The text in windows of `max_tokens`, each with the special tokens; a quarter of each overlaps the next."""
        text = self.ids[self.prefix : len(self.ids) - self.suffix]
        room = max_tokens - self.prefix - self.suffix
        stride = max(1, room - room // 4)
        before, behind = self.ids[: self.prefix], self.ids[len(self.ids) - self.suffix :]
        starts = range(0, max(1, len(text) - room + stride), stride)
        return [before + text[start : start + room] + behind for start in starts]


class Tokeniser:
    """Tokenises whole texts; truncation is the adapter's and comes after."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # What the tokenizer puts around an empty text is what it puts around any; the text stands between.
        marked = tokenizer("a", return_special_tokens_mask=True, truncation=False)
        mask = marked["special_tokens_mask"]
        self._prefix = mask.index(0)
        self._suffix = mask[::-1].index(0)
        self.pad_id = int(tokenizer.pad_token_id or 0)

    def __call__(self, texts: list[str]) -> list[Tokens]:
        if not texts:
            return []
        encoded = self._tokenizer(
            texts, truncation=False, padding=False, return_attention_mask=False, return_token_type_ids=False
        )
        encodings = encoded.encodings or [None] * len(texts)
        return [
            Tokens(ids, self._prefix, self._suffix, encoding)
            for ids, encoding in zip(encoded["input_ids"], encodings, strict=True)
        ]
