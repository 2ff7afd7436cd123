"""DeBERTa projects relative positions [1, N, D] through the query and key modules once for the whole batch.

Where those modules carry LoRA, each row's adapter has positions of its own, so a mixed batch computes that term once
for each distinct slot. Only this architecture needs it; its other products are the bank's ordinary ones.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from engine.selection import Selection

_Bias = Callable[..., Tensor]


def split_positions_by_slot(model: nn.Module, projection: str, selection: Selection) -> None:
    """Teach the attention that owns `projection` to compute its position term for each slot; idempotent.

    Args:
        projection: dotted name of a linear module that has just received a LoRA bank.
    """
    attention = model.get_submodule(projection.rpartition(".")[0])
    # Known by its method, so that other bases need not import DeBERTa's module.
    whole: _Bias | None = getattr(type(attention), "disentangled_attention_bias", None)
    if whole is not None:
        heads = attention.num_attention_heads
        assert isinstance(heads, int)
        setattr(attention, whole.__name__, partial(_by_slot, partial(whole, attention), heads, selection))


def _by_slot(
    whole: _Bias,
    heads: int,
    selection: Selection,
    query: Tensor,  # [B * heads, T, D / heads]
    key: Tensor,  # [B * heads, T, D / heads]
    relative_pos: Tensor | None,
    rel_embeddings: Tensor,  # [N, D]
    scale_factor: int,
) -> Tensor:  # [B * heads, T, T]
    if selection.single is not None or not selection.lora:
        return whole(query, key, relative_pos, rel_embeddings, scale_factor)
    slots = selection.slots
    bias = query.new_empty(query.shape[0], query.shape[1], key.shape[1])
    for slot in sorted(set(slots.tolist())):
        rows = torch.nonzero(slots == slot).squeeze(1)
        at = (rows.unsqueeze(1) * heads + torch.arange(heads, device=rows.device)).flatten()
        with selection.only(slot):
            bias[at] = whole(query[at], key[at], relative_pos, rel_embeddings, scale_factor)
    return bias
