"""A frozen encoder says the same of a text in every epoch, so the transfer stage lets it speak once.

While the head alone learns, the encoder is replaced by a table of its outputs; epochs then cost what the head costs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from training.evaluate import EVALUATION_BATCH, Collate
from training.tokenise import TokenisedDataset, TokenisedSplit

_READ_FIRST_TOKEN = frozenset({"bert", "roberta", "xlm-roberta", "distilbert", "deberta-v2"})
"""Model types whose head reads the first token alone: that is all that has to be kept of a text."""


class _Remembered(nn.Module):
    """Stands where the encoder stood, and takes a text's row in the table for its token ids."""

    def __init__(self, first: torch.Tensor, pooler: nn.Module | None) -> None:
        super().__init__()
        self._first = first  # [N, D]
        # Under the encoder's own name for it: a pooler may be part of what is trained and saved.
        self.pooler = pooler

    def forward(self, input_ids: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:  # [B, 1]
        hidden = self._first[input_ids[:, 0].cpu()].to(input_ids.device).unsqueeze(1)  # [B, 1, D]
        pooled = None if self.pooler is None else self.pooler(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


@contextmanager
def remembered_encoder(model: Any, tokens: TokenisedDataset, collate: Collate) -> Iterator[TokenisedDataset]:
    """Within, a model whose encoder is frozen trains on the rows that this yields, each one token long.

    Where something in the encoder is to be trained, or its head reads more than the first token, nothing changes.

    Args:
        model: a `peft.PeftModel` for sequence classification.
    """
    inner = model.get_base_model()
    prefix = inner.base_model_prefix
    encoder = getattr(inner, prefix)
    learns = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    if inner.config.model_type not in _READ_FIRST_TOKEN or any(not name.startswith("pooler.") for name in learns):
        yield tokens
        return
    splits = (tokens.train, tokens.validation)
    first = torch.cat([_first_tokens(encoder, split, collate) for split in splits])
    setattr(inner, prefix, _Remembered(first, getattr(encoder, "pooler", None)))
    try:
        yield TokenisedDataset(_numbered(tokens.train, 0), _numbered(tokens.validation, len(tokens.train)))
    finally:
        setattr(inner, prefix, encoder)


def _numbered(split: TokenisedSplit, start: int) -> TokenisedSplit:
    ids = np.arange(start, start + len(split), dtype=np.int32)
    return TokenisedSplit(ids, np.arange(len(split) + 1), split.targets, split.truncated)


@torch.no_grad()
def _first_tokens(encoder: nn.Module, split: TokenisedSplit, collate: Collate) -> torch.Tensor:
    """The encoder's last hidden state at the first token of every text, [N, D] fp32 on the CPU."""
    encoder.eval()
    device = next(encoder.parameters()).device
    order = np.argsort(split.lengths, kind="stable").tolist()
    found: dict[int, torch.Tensor] = {}
    for start in range(0, len(order), EVALUATION_BATCH):
        part = order[start : start + EVALUATION_BATCH]
        batch = collate(
            [{key: row[key] for key in ("input_ids", "attention_mask")} for row in map(split.__getitem__, part)]
        )
        hidden = encoder(**{key: value.to(device) for key, value in batch.items()}).last_hidden_state[:, 0]
        found |= dict(zip(part, hidden.float().cpu(), strict=True))
    return torch.stack([found[at] for at in range(len(split))])
