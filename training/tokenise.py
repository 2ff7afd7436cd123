"""Texts to token ids, cut as the recipe says."""

from dataclasses import dataclass
from typing import Any

from adapters.base_model import BaseModelFiles
from adapters.errors import BaseModelError, SettingsError
from training.dataset import Dataset, Split
from training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class TokenisedSplit:
    """One row a text: `input_ids` and `attention_mask` of the text's own length [T], and its target as `labels`.

    Attributes:
        truncated: number of texts that were longer than the limit.
    """

    rows: list[dict[str, Any]]
    truncated: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class TokenisedDataset:
    train: TokenisedSplit
    validation: TokenisedSplit


def load_tokenizer(base: BaseModelFiles, recipe: Recipe) -> Any:
    """The base's tokenizer, truncating as the recipe says.

    Raises:
        BaseModelError: the base has no tokenizer that can be read.
        SettingsError: `max_tokens` is more than the base reads.
    """
    from transformers import AutoConfig, AutoTokenizer

    from engine.encoder import longest_input

    try:
        config = AutoConfig.from_pretrained(base.directory, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(base.directory, trust_remote_code=False, use_fast=True)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"base model {base.id} has no readable configuration and tokenizer: {error}") from error
    # The engine's own limit: what it does not read, it would refuse after the training.
    limit = longest_input(config, tokenizer)
    if recipe.max_tokens > limit:
        raise SettingsError("max_tokens", recipe.max_tokens, f"at most {limit}, as {base.id} reads")
    tokenizer.truncation_side = recipe.truncation_side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenise(dataset: Dataset, tokenizer: Any, max_tokens: int) -> TokenisedDataset:
    """Tokenise both splits; padding is left to the collator, batch by batch."""
    return TokenisedDataset(
        _tokenise(dataset.train, tokenizer, max_tokens), _tokenise(dataset.validation, tokenizer, max_tokens)
    )


def _tokenise(split: Split, tokenizer: Any, max_tokens: int) -> TokenisedSplit:
    # Token types are left out, as the engine leaves them out: one text is all of type 0, which models assume anyway.
    encoded = tokenizer(list(split.texts), truncation=True, max_length=max_tokens, return_token_type_ids=False)
    columns = [encoded[name] for name in encoded]
    rows = [
        dict(zip(encoded, values, strict=True)) | {"labels": target}
        for *values, target in zip(*columns, split.targets, strict=True)
    ]
    truncated = sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return TokenisedSplit(rows, truncated)
