"""Texts to token ids, cut as the recipe says, and kept: the same texts are tokenised once however often they train."""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base_model import BaseModelFiles
from adapters.errors import BaseModelError, SettingsError
from training.dataset import Dataset, Split
from training.recipe import Recipe

_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class TokenisedSplit:
    """N texts as token ids, each of its own length: what a `Trainer` takes as a data set.

    Attributes:
        ids: all texts' tokens, one after another.
        starts: [N + 1] where each text begins in `ids`, and the end.
        targets: [N] label indices, or for a multi-label task [N, C] of zeros and ones.
        truncated: number of texts that were longer than the limit.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    targets: NDArray[Any]
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, at: int) -> dict[str, Any]:
        """`input_ids` and `attention_mask` of the text's own length [T], and its target as `labels`."""
        if not 0 <= at < len(self):
            raise IndexError(at)
        ids = self.ids[self.starts[at] : self.starts[at + 1]].tolist()
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": self.targets[at].tolist()}

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] tokens of each text."""
        return np.diff(self.starts)


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


def tokenise(
    dataset: Dataset, tokenizer: Any, max_tokens: int, *, multi_label: bool = False, cache: Path | None = None
) -> TokenisedDataset:
    """Tokenise both splits; padding is left to the collator, batch by batch.

    Args:
        cache: a directory that keeps the tokens; they are read from there when texts, tokenizer and limit are the same.
    """

    def split(texts: Split) -> TokenisedSplit:
        tokens = _kept(texts.texts, tokenizer, max_tokens, cache)
        if multi_label:
            targets = np.zeros((len(texts), len(dataset.labels)), dtype=np.float32)
            for row, target in zip(targets, texts.targets, strict=True):
                row[list(target)] = 1
        else:
            targets = np.array([target for (target,) in texts.targets])
        return TokenisedSplit(tokens["ids"], tokens["starts"], targets, int(tokens["truncated"]))

    return TokenisedDataset(split(dataset.train), split(dataset.validation))


def _kept(texts: Sequence[str], tokenizer: Any, max_tokens: int, cache: Path | None) -> dict[str, NDArray[Any]]:
    if cache is None:
        return _tokenise(texts, tokenizer, max_tokens)
    path = cache / f"{_key(texts, tokenizer, max_tokens)}.npz"
    try:
        with np.load(path) as kept:
            return {name: kept[name] for name in ("ids", "starts", "truncated")}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        # Not there, or cut off by whatever ended an earlier run.
        tokens = _tokenise(texts, tokenizer, max_tokens)
    cache.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(suffix=".npz", dir=cache)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, ids=tokens["ids"], starts=tokens["starts"], truncated=tokens["truncated"])
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return tokens


def _key(texts: Sequence[str], tokenizer: Any, max_tokens: int) -> str:
    """Digest of all that decides the tokens."""
    digest = hashlib.sha256(f"{max_tokens} {tokenizer.truncation_side} ".encode())
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two are how it was called last.
    del described["truncation"], described["padding"]
    digest.update(json.dumps(described).encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:32]


def _tokenise(texts: Sequence[str], tokenizer: Any, max_tokens: int) -> dict[str, NDArray[Any]]:
    lengths: list[int] = []
    parts: list[NDArray[np.int32]] = []
    truncated = 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        # Token types are left out, as the engine leaves them out: a text is all of type 0, which models assume anyway.
        encoded = tokenizer(
            list(texts[start : start + _TEXTS_AT_ONCE]),
            truncation=True,
            max_length=max_tokens,
            return_token_type_ids=False,
        )
        lengths += [len(ids) for ids in encoded["input_ids"]]
        parts += [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
        truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return {"ids": np.concatenate(parts), "starts": starts, "truncated": np.array(truncated)}
