"""The LoRA bank: one encoder, a slot for each resident adapter, rows of different adapters in one forward pass.

Each targeted linear module holds `A [S, D_in, R]` and `B [S, R, D_out]`; a row's delta is `x @ A[slot] @ B[slot]`,
two batched products with no loop over adapters and no grouping (the gathered form of Punica's BGMV, arXiv 2310.18547,
and S-LoRA, arXiv 2311.03285). Modules that adapters save whole, the heads, hold one weight for each slot. Slot 0 is
the base: zeros in every `A` and `B`, the base's own weights in every head.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from adapters.verify import Adapter, LoraPair
from engine.deberta import split_positions_by_slot
from engine.selection import Selection


class LoraLinear(nn.Module):
    """A linear module with a LoRA pair for each slot beside it."""

    def __init__(self, base: nn.Module, d_in: int, d_out: int, slots: int, rank: int, selection: Selection) -> None:
        super().__init__()
        self.base = base
        self.selection = selection
        like = base.weight
        assert isinstance(like, Tensor)
        self.a = torch.zeros(slots, d_in, rank, dtype=like.dtype, device=like.device)  # [S, D_in, R]
        self.b = torch.zeros(slots, rank, d_out, dtype=like.dtype, device=like.device)  # [S, R, D_out]

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D_in] or [B, D_in]
        y: Tensor = self.base(x)
        selection = self.selection
        if not selection.lora:
            return y
        if selection.single is not None:
            return y + (x @ self.a[selection.single]) @ self.b[selection.single]
        a, b = self.a[selection.slots], self.b[selection.slots]  # [B, D_in, R], [B, R, D_out]
        if x.ndim == 2:
            return torch.baddbmm(y.unsqueeze(1), torch.bmm(x.unsqueeze(1), a), b).squeeze(1)
        return torch.baddbmm(y, torch.bmm(x, a), b)

    def write(self, slot: int, pair: LoraPair | None) -> None:
        """Fill a slot; None means no LoRA here. Grows the bank's rank where the pair needs it."""
        self.a[slot].zero_()
        self.b[slot].zero_()
        if pair is None:
            return
        rank = pair.a.shape[1]
        if rank > self.a.shape[2]:
            more = rank - self.a.shape[2]
            self.a = nn.functional.pad(self.a, (0, more))
            self.b = nn.functional.pad(self.b, (0, 0, 0, more))
        self.a[slot, :, :rank] = pair.a
        self.b[slot, :rank, :] = pair.b

    def reference(self, x: Tensor) -> Tensor:
        """What `forward` computes, as a plain loop over rows: slow, obvious, and what tests compare with."""
        y: Tensor = self.base(x)
        rows = [y[row] + x[row] @ self.a[slot] @ self.b[slot] for row, slot in enumerate(self.selection.slots.tolist())]
        return torch.stack(rows)


class HeadLinear(nn.Module):
    """A linear module that adapters save whole: a weight for each slot, computed in fp32.

    Rows beyond an adapter's own number of classes are zeros, and whoever reads the logits leaves them out.
    """

    def __init__(self, base: nn.Linear, slots: int, selection: Selection) -> None:
        super().__init__()
        self.selection = selection
        self.own_weight = base.weight.detach().float()  # [D_out, D_in]
        self.own_bias = None if base.bias is None else base.bias.detach().float()
        self.weight = self.own_weight.expand(slots, -1, -1).contiguous()  # [S, D_out, D_in]
        self.bias = None if self.own_bias is None else self.own_bias.expand(slots, -1).contiguous()  # [S, D_out]

    def forward(self, x: Tensor) -> Tensor:  # [B, D_in] or [B, T, D_in]
        slots, single = self.selection.slots, self.selection.single
        x = x.float()
        if single is not None:
            return nn.functional.linear(x, self.weight[single], None if self.bias is None else self.bias[single])
        rows = x.unsqueeze(1) if x.ndim == 2 else x
        y = torch.bmm(rows, self.weight[slots].transpose(1, 2))  # [B, T or 1, D_out]
        if self.bias is not None:
            y = y + self.bias[slots].unsqueeze(1)
        return y.squeeze(1) if x.ndim == 2 else y

    def write(self, slot: int, weight: Tensor | None, bias: Tensor | None) -> None:
        """Fill a slot; None means the base's own. Grows to the widest label set seen."""
        if weight is None:
            weight, bias = self.own_weight, self.own_bias
        rows = weight.shape[0]
        more = rows - self.weight.shape[1]
        if more > 0:
            self.weight = nn.functional.pad(self.weight, (0, 0, 0, more))
            if self.bias is not None:
                self.bias = nn.functional.pad(self.bias, (0, more))
        self.weight[slot].zero_()
        self.weight[slot, :rows] = weight
        if self.bias is not None:
            self.bias[slot].zero_()
            if bias is not None:
                self.bias[slot, :rows] = bias


class HeadNorm(nn.Module):
    """A LayerNorm that adapters save whole (ModernBERT's head has one), a weight for each slot, in fp32."""

    def __init__(self, base: nn.LayerNorm, slots: int, selection: Selection) -> None:
        super().__init__()
        self.selection = selection
        self.shape, self.eps = base.normalized_shape, base.eps
        self.own_weight = base.weight.detach().float()  # [D]
        self.own_bias = None if base.bias is None else base.bias.detach().float()
        self.weight = self.own_weight.expand(slots, -1).contiguous()  # [S, D]
        self.bias = None if self.own_bias is None else self.own_bias.expand(slots, -1).contiguous()

    def forward(self, x: Tensor) -> Tensor:  # [B, D] or [B, T, D]
        slots = self.selection.slots
        y = nn.functional.layer_norm(x.float(), self.shape, None, None, self.eps)
        weight = self.weight[slots] if x.ndim == 2 else self.weight[slots].unsqueeze(1)
        y = y * weight
        if self.bias is not None:
            y = y + (self.bias[slots] if x.ndim == 2 else self.bias[slots].unsqueeze(1))
        return y

    def write(self, slot: int, weight: Tensor | None, bias: Tensor | None) -> None:
        if weight is None:
            weight, bias = self.own_weight, self.own_bias
        self.weight[slot] = weight
        if self.bias is not None and bias is not None:
            self.bias[slot] = bias


Head = HeadLinear | HeadNorm


class LoraBank:
    """The bank of one model: puts its modules in where adapters first need them, and fills their slots.

    A module that no adapter targets stays what it was and costs nothing. Not safe for concurrent use: the engine
    writes between forward passes.
    """

    def __init__(self, model: nn.Module, slots: int) -> None:
        self.model = model
        self.slots = slots
        device = next(model.parameters()).device
        self.selection = Selection(torch.zeros(1, dtype=torch.int64, device=device), single=0)
        self.lora: dict[str, LoraLinear] = {}
        self.heads: dict[str, Head] = {}

    def write(self, slot: int, adapter: Adapter) -> None:
        """Fill `slot` with an adapter, in every module of the bank."""
        saved: dict[str, dict[str, Tensor]] = {}
        for key, tensor in adapter.saved.items():
            module, _, leaf = key.rpartition(".")
            saved.setdefault(module, {})[leaf] = tensor
        for name in saved.keys() - self.heads.keys():
            self._install_head(name)
        for name in adapter.lora.keys() - self.lora.keys():
            self._install_lora(name, adapter.lora[name])
        for name, lora in self.lora.items():
            lora.write(slot, adapter.lora.get(name))
        for name, head in self.heads.items():
            own = saved.get(name, {})
            head.write(slot, own.get("weight"), own.get("bias"))

    def select(self, slots: list[int], *, lora: bool) -> None:
        """Choose the slot of each row of the next forward pass; `lora` is False if none of them has LoRA."""
        selection = self.selection
        selection.slots = torch.tensor(slots, dtype=torch.int64, device=selection.slots.device)
        selection.single = slots[0] if len(set(slots)) == 1 else None
        selection.lora = lora

    def bytes(self) -> int:
        """Memory of all slots."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        for lora in self.lora.values():
            yield lora.a
            yield lora.b
        for head in self.heads.values():
            yield head.weight
            if head.bias is not None:
                yield head.bias

    def _install_lora(self, name: str, pair: LoraPair) -> None:
        d_in, rank = pair.a.shape
        module = LoraLinear(self.model.get_submodule(name), d_in, pair.b.shape[1], self.slots, rank, self.selection)
        self.lora[name] = module
        self.model.set_submodule(name, module)
        split_positions_by_slot(self.model, name, self.selection)

    def _install_head(self, name: str) -> None:
        inside_lora = name in self.lora
        base = self.lora[name].base if inside_lora else self.model.get_submodule(name)
        module: Head
        if isinstance(base, nn.Linear):
            module = HeadLinear(base, self.slots, self.selection)
        elif isinstance(base, nn.LayerNorm):
            module = HeadNorm(base, self.slots, self.selection)
        else:
            raise TypeError(f"{name} is a {type(base).__name__}, which no head is made of")
        self.heads[name] = module
        if inside_lora:
            self.lora[name].base = module
        else:
            self.model.set_submodule(name, module)


def saved_modules_refusal(model: nn.Module, saved: Mapping[str, Tensor]) -> str | None:
    """The first saved parameter that is part of neither a linear module nor a LayerNorm, or None."""
    for key in saved:
        module = model.get_submodule(key.rpartition(".")[0])
        if not isinstance(module, (nn.Linear, nn.LayerNorm, LoraLinear, HeadLinear, HeadNorm)):
            return f"{key}, part of a {type(module).__name__}"
    return None
