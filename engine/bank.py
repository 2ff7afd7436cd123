"""The LoRA bank: one encoder, a slot for each resident adapter, rows of different adapters in one forward pass.

Each targeted linear module holds `A [S, D_in, R]` and `B [S, R, D_out]`; a row's delta is `x @ A[slot] @ B[slot]`,
two batched products with no loop over adapters and no grouping (the gathered form of Punica's BGMV, arXiv 2310.18547,
and S-LoRA, arXiv 2311.03285). Modules that adapters save whole, the heads, hold one weight for each slot. Slot 0 is
the base: zeros in every `A` and `B`, the base's own weights in every head.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from adapters.verify import Adapter, LoraPair
from engine.deberta import split_positions_by_slot
from engine.selection import Selection

_GATHERED_WEIGHTS = 1 << 14
"""Largest weight of a head that is gathered row by row on a CPU. A larger one (a pooler) is cheaper to multiply by
slot after slot than to copy for every row, there; a GPU would wait for the host in such a loop."""


class SlotTensor:
    """A tensor for each slot. Memory is touched only where a slot was written, so empty slots cost next to nothing."""

    def __init__(self, slots: int, own: Tensor, grows: int | None = None) -> None:
        """
        Args:
            own: what slot 0 holds, and every slot whose adapter brings nothing of its own.
            grows: the dimension of a slot that is as long as the longest adapter's: the rank, or the classes.
        """
        self.own = own
        self._grows = grows
        self.all = own.new_empty((slots, *own.shape))  # [S, …]
        self.all[0] = own
        self._written = {0}

    def write(self, slot: int, value: Tensor | None) -> None:
        """Fill a slot, with zeros behind what is shorter than the bank; what is longer lengthens the bank.

        Raises:
            ValueError: another dimension than the one that grows differs.
        """
        value = self.own if value is None else value
        shape = self._shape_with(value)
        if shape != self.all.shape[1:]:
            self._lengthen(shape)
        self._put(self.all, slot, value)
        self._written.add(slot)

    def move(self, kept: list[int], slots: int) -> None:
        """Keep only some slots, numbered anew from 1 in this order, among `slots` in all."""
        old = self.all
        self.all = old.new_empty((slots, *old.shape[1:]))
        for number, slot in enumerate([0, *kept]):
            self.all[number] = old[slot]
        self._written = set(range(len(kept) + 1))

    def bytes_per_slot(self, value: Tensor | None = None) -> int:
        """Memory of one slot, or what it will be once `value` is in."""
        shape = self.all.shape[1:] if value is None else self._shape_with(value)
        return math.prod(shape) * self.all.element_size()

    def _shape_with(self, value: Tensor) -> tuple[int, ...]:
        shape = list(self.all.shape[1:])
        if self._grows is not None:
            shape[self._grows] = max(shape[self._grows], value.shape[self._grows])
        if [length for dim, length in enumerate(value.shape) if dim != self._grows] != [
            length for dim, length in enumerate(shape) if dim != self._grows
        ]:
            raise ValueError(f"{list(value.shape)} does not fit a slot of {shape}")
        return tuple(shape)

    def _lengthen(self, shape: tuple[int, ...]) -> None:
        old = self.all
        self.all = old.new_empty((old.shape[0], *shape))
        for slot in self._written:
            self._put(self.all, slot, old[slot])

    @staticmethod
    def _put(into: Tensor, slot: int, value: Tensor) -> None:
        row = into[slot]
        if row.shape != value.shape:
            row.zero_()
            row = row[tuple(slice(length) for length in value.shape)]
        row.copy_(value, non_blocking=True)


class LoraLinear(nn.Module):
    """A linear module with a LoRA pair for each slot beside it."""

    def __init__(self, base: nn.Module, d_in: int, d_out: int, slots: int, selection: Selection, like: Tensor) -> None:
        """
        Args:
            base: the module itself, or the head that stands in its place.
            like: of the encoder's dtype and device.
        """
        super().__init__()
        self.base = base
        self.selection = selection
        # Rank 0 until the first pair comes.
        self._a = SlotTensor(slots, like.new_zeros(d_in, 0), grows=1)
        self._b = SlotTensor(slots, like.new_zeros(0, d_out), grows=0)

    @property
    def a(self) -> Tensor:
        """[S, D_in, R]"""
        return self._a.all

    @property
    def b(self) -> Tensor:
        """[S, R, D_out]"""
        return self._b.all

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D_in] or [B, D_in]
        y: Tensor = self.base(x)
        selection = self.selection
        if not selection.lora:
            return y
        if selection.single is not None:
            return y + (x @ self.a[selection.single]) @ self.b[selection.single]
        a, b = self.a[selection.slots], self.b[selection.slots]  # [B, D_in, R], [B, R, D_out]
        if y.dtype != x.dtype:  # a head computes in fp32, whatever the encoder does
            a, b, x = a.to(y.dtype), b.to(y.dtype), x.to(y.dtype)
        if x.ndim == 2:
            return torch.baddbmm(y.unsqueeze(1), torch.bmm(x.unsqueeze(1), a), b).squeeze(1)
        return torch.baddbmm(y, torch.bmm(x, a), b)

    def write(self, slot: int, pair: LoraPair | None) -> None:
        """Fill a slot; None means no LoRA here."""
        self._a.write(slot, None if pair is None else pair.a)
        self._b.write(slot, None if pair is None else pair.b)

    def tensors(self) -> tuple[SlotTensor, ...]:
        return self._a, self._b

    def reference(self, x: Tensor) -> Tensor:
        """What `forward` computes, as a plain loop over rows: slow, obvious, and what tests compare with."""
        y: Tensor = self.base(x)
        rows = [y[row] + x[row] @ self.a[slot] @ self.b[slot] for row, slot in enumerate(self.selection.slots.tolist())]
        return torch.stack(rows)


class HeadLinear(nn.Module):
    """A linear module that adapters save whole: a weight for each slot, computed in fp32.

    Rows beyond an adapter's own number of classes are zeros, and whoever reads the logits leaves them out.
    """

    def __init__(self, base: nn.Linear, slots: int, selection: Selection, *, is_output: bool) -> None:
        """
        Args:
            is_output: it makes the logits; every adapter brings its own classes, and the base has none.
        """
        super().__init__()
        self.selection = selection
        rows, grows = (0, 0) if is_output else (base.out_features, None)
        self._weight = SlotTensor(slots, base.weight.detach()[:rows].float(), grows)  # [D_out, D_in] a slot
        self._bias = None if base.bias is None else SlotTensor(slots, base.bias.detach()[:rows].float(), grows)

    def forward(self, x: Tensor) -> Tensor:  # [B, D_in] or [B, T, D_in]
        slots, single = self.selection.slots, self.selection.single
        weight, bias = self._weight.all, None if self._bias is None else self._bias.all
        x = x.float()
        if single is not None:
            return nn.functional.linear(x, weight[single], None if bias is None else bias[single])
        if weight.device.type == "cpu" and weight[0].numel() > _GATHERED_WEIGHTS:
            y = x.new_empty(*x.shape[:-1], weight.shape[1])
            for slot in set(slots.tolist()):
                at = slots == slot
                y[at] = nn.functional.linear(x[at], weight[slot], None if bias is None else bias[slot])
            return y
        rows = x.unsqueeze(1) if x.ndim == 2 else x
        y = torch.bmm(rows, weight[slots].transpose(1, 2))  # [B, T or 1, D_out]
        if bias is not None:
            y = y + bias[slots].unsqueeze(1)
        return y.squeeze(1) if x.ndim == 2 else y

    def write(self, slot: int, weight: Tensor | None, bias: Tensor | None) -> None:
        """Fill a slot; None means the base's own. Grows to the widest label set seen."""
        self._weight.write(slot, weight)
        if self._bias is not None:
            # A head that was saved without a bias has none, whatever the base's own is.
            if bias is None and weight is not None:
                bias = weight.new_zeros(len(weight))
            self._bias.write(slot, bias)

    def tensors(self) -> tuple[SlotTensor, ...]:
        return (self._weight,) if self._bias is None else (self._weight, self._bias)


class HeadNorm(nn.Module):
    """A LayerNorm that adapters save whole (ModernBERT's head has one), a weight for each slot, in fp32."""

    def __init__(self, base: nn.LayerNorm, slots: int, selection: Selection) -> None:
        super().__init__()
        self.selection = selection
        self.shape, self.eps = base.normalized_shape, base.eps
        self._weight = SlotTensor(slots, base.weight.detach().float())  # [D] a slot
        self._bias = None if base.bias is None else SlotTensor(slots, base.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:  # [B, D] or [B, T, D]
        slots = self.selection.slots
        y = nn.functional.layer_norm(x.float(), self.shape, None, None, self.eps)
        weight = self._weight.all[slots]
        y = y * (weight if x.ndim == 2 else weight.unsqueeze(1))
        if self._bias is not None:
            bias = self._bias.all[slots]
            y = y + (bias if x.ndim == 2 else bias.unsqueeze(1))
        return y

    def write(self, slot: int, weight: Tensor | None, bias: Tensor | None) -> None:
        """Fill a slot; None means the base's own."""
        self._weight.write(slot, weight)
        if self._bias is not None:
            self._bias.write(slot, bias)

    def tensors(self) -> tuple[SlotTensor, ...]:
        return (self._weight,) if self._bias is None else (self._weight, self._bias)


Head = HeadLinear | HeadNorm


class LoraBank:
    """The bank of one model: puts its modules in where adapters first need them, and fills their slots.

    A module that no adapter targets stays what it was and costs nothing. Slots may be written while a forward pass of
    another thread reads others; `write` and `move` may also put modules in and replace tensors, so whoever calls them
    keeps forward passes out meanwhile.
    """

    def __init__(self, model: nn.Module, slots: int, output: str) -> None:
        """
        Args:
            slots: the base's slot 0 included.
            output: the linear module that makes the logits.
        """
        self.model = model
        self._output = output
        self.slots = slots
        device = next(model.parameters()).device
        self.selection = Selection(torch.zeros(1, dtype=torch.int64, device=device))
        self.lora: dict[str, LoraLinear] = {}
        self.heads: dict[str, Head] = {}
        self.generation = 0
        """Counts how often tensors came, went or moved; writing a slot in place leaves it as it is."""
        self._written: set[int] = set()

    def write(self, slot: int, adapter: Adapter) -> None:
        """Fill `slot` with an adapter, in every module of the bank."""
        saved = _by_module(adapter.saved)
        before = [tensor.all for tensor in self._tensors()]
        for name in saved.keys() - self.heads.keys():
            self._install_head(name)
        for name in adapter.lora.keys() - self.lora.keys():
            self._install_lora(name, adapter.lora[name])
        for name, lora in self.lora.items():
            lora.write(slot, adapter.lora.get(name))
        for name, head in self.heads.items():
            own = saved.get(name, {})
            head.write(slot, own.get("weight"), own.get("bias"))
        self._written.add(slot)
        after = [tensor.all for tensor in self._tensors()]
        if len(before) != len(after) or any(old is not new for old, new in zip(before, after, strict=True)):
            self.generation += 1

    def move(self, kept: list[int], slots: int) -> None:
        """Keep only some slots, numbered anew from 1 in this order, among `slots` in all."""
        for tensor in self._tensors():
            tensor.move(kept, slots)
        self.slots = slots
        self.generation += 1
        self._written = set(range(1, len(kept) + 1))

    def select(self, slots: list[int], *, lora: bool) -> None:
        """Choose the slot of each row of this thread's next forward pass.

        Args:
            lora: False if none of them has LoRA.
        """
        selection = self.selection
        selection.slots = torch.tensor(slots, dtype=torch.int64, device=selection.slots.device)
        selection.single = slots[0] if len(set(slots)) == 1 else None
        selection.lora = lora

    def select_tensor(self, slots: Tensor, *, lora: bool) -> None:
        """As `select`, for slots [B] int64 that lie on the device and may change after a pass was captured."""
        selection = self.selection
        selection.slots, selection.single, selection.lora = slots, None, lora

    def bytes_per_slot(self, coming: Adapter | None = None) -> int:
        """Memory of one slot, or what it will be once another adapter is in."""
        if coming is None:
            return sum(tensor.bytes_per_slot() for tensor in self._tensors())
        saved, total = _by_module(coming.saved), 0
        like = next(self.model.parameters())
        for name in self.lora.keys() | coming.lora.keys():
            pair = coming.lora.get(name)
            values = (None, None) if pair is None else (pair.a, pair.b)
            if name in self.lora:
                tensors = self.lora[name].tensors()
                total += sum(tensor.bytes_per_slot(value) for tensor, value in zip(tensors, values, strict=True))
            else:
                total += sum(value.numel() * like.element_size() for value in values if value is not None)
        for name in self.heads.keys() | saved.keys():
            own = saved.get(name, {})
            if name in self.heads:
                for tensor, leaf in zip(self.heads[name].tensors(), ("weight", "bias"), strict=False):
                    total += tensor.bytes_per_slot(own.get(leaf))
            else:
                total += sum(value.numel() * value.element_size() for value in own.values())
        return total

    def _tensors(self) -> Iterator[SlotTensor]:
        for module in (*self.lora.values(), *self.heads.values()):
            yield from module.tensors()

    def check_integrity(self) -> None:
        """AssertionError if the bank's own state does not hold together."""
        for name, lora in self.lora.items():
            assert self.model.get_submodule(name) is lora, f"{name} is not the bank's in the model"
            assert lora.a.shape[2] == lora.b.shape[1], f"{name}: ranks {lora.a.shape[2]} and {lora.b.shape[1]}"
            assert not lora.a[0].any() and not lora.b[0].any(), f"{name}: slot 0 is not the base"
        for tensor in self._tensors():
            assert tensor.all.shape[0] == self.slots, f"{tensor.all.shape[0]} slots among {self.slots}"
            own = tensor.all[0][tuple(slice(length) for length in tensor.own.shape)]
            assert torch.equal(own, tensor.own), "slot 0 is not the base"
            for slot in self._written:
                assert torch.isfinite(tensor.all[slot]).all(), f"slot {slot} holds what was never written"

    def _install_lora(self, name: str, pair: LoraPair) -> None:
        base = self.model.get_submodule(name)
        like = next(self.model.parameters())
        module = LoraLinear(base, pair.a.shape[0], pair.b.shape[1], self.slots, self.selection, like)
        self.lora[name] = module
        self.model.set_submodule(name, module)
        for slot in self._written:
            module.write(slot, None)
        split_positions_by_slot(self.model, name, self.selection)

    def _install_head(self, name: str) -> None:
        inside_lora = name in self.lora
        base = self.lora[name].base if inside_lora else self.model.get_submodule(name)
        module: Head
        if isinstance(base, nn.Linear):
            module = HeadLinear(base, self.slots, self.selection, is_output=name == self._output)
        elif isinstance(base, nn.LayerNorm):
            module = HeadNorm(base, self.slots, self.selection)
        else:
            raise TypeError(f"{name} is a {type(base).__name__}, which no head is made of")
        self.heads[name] = module
        for slot in self._written:
            module.write(slot, None, None)
        if inside_lora:
            self.lora[name].base = module
        else:
            self.model.set_submodule(name, module)


def _by_module(saved: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Module to its saved parameters by their last names."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        module, _, leaf = key.rpartition(".")
        found.setdefault(module, {})[leaf] = tensor
    return found


def saved_modules_refusal(model: nn.Module, saved: Mapping[str, Tensor]) -> str | None:
    """The first saved parameter that is part of neither a linear module nor a LayerNorm, or None."""
    for key in saved:
        module = model.get_submodule(key.rpartition(".")[0])
        if not isinstance(module, (nn.Linear, nn.LayerNorm, LoraLinear, HeadLinear, HeadNorm)):
            return f"{key}, part of a {type(module).__name__}"
    return None
