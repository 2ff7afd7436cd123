"""A lean forward pass for BERT-shaped encoders: what `transformers` computes, without what serving does not need.

On a CPU a small batch spends more time in dispatch than in arithmetic, so the general forward pass loses there. This
one fuses the query, key and value products, builds no mask where nothing is padded, and in the last layer computes
only the first token's output, which is all that these models' heads read (an eighth to a seventh of the arithmetic of
six layers). Where oneDNN is, it multiplies by weights in oneDNN's own blocked layout, with the activation in the same
call: for sixteen tokens that takes a third off a product. It reads the same bank as the general pass, which stays
beside it as its reference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from engine.bank import LoraBank, LoraLinear
from engine.selection import Selection


@dataclass(frozen=True)
class _Names:
    """Where an architecture keeps the modules of one layer, below the layer."""

    query: str
    key: str
    value: str
    out: str
    out_norm: str
    up: str
    down: str
    down_norm: str


_BERT = _Names(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_DISTILBERT = _Names(
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)


@dataclass(frozen=True)
class _Family:
    """One architecture: its body, its layers and what its head does with the first token.

    Attributes:
        plain_positions: position n is the n-th token's, padding or not.
    """

    body: str
    layers: str
    names: _Names
    head: Callable[[nn.Module, Tensor], Tensor]
    plain_positions: bool = False


def _bert_head(model: nn.Module, first: Tensor) -> Tensor:  # [B, D] -> [B, C]
    pooler = model.get_submodule("bert.pooler.dense")
    return model.get_submodule("classifier")(torch.tanh(pooler(first)))  # type: ignore[no-any-return]


def _roberta_head(model: nn.Module, first: Tensor) -> Tensor:
    return model.get_submodule("classifier")(first.unsqueeze(1))  # type: ignore[no-any-return]


def _distilbert_head(model: nn.Module, first: Tensor) -> Tensor:
    return model.get_submodule("classifier")(torch.relu(model.get_submodule("pre_classifier")(first)))  # type: ignore[no-any-return]


_FAMILIES = {
    "BertForSequenceClassification": _Family("bert", "encoder.layer", _BERT, _bert_head, True),
    "RobertaForSequenceClassification": _Family("roberta", "encoder.layer", _BERT, _roberta_head),
    "XLMRobertaForSequenceClassification": _Family("roberta", "encoder.layer", _BERT, _roberta_head),
    "DistilBertForSequenceClassification": _Family(
        "distilbert", "transformer.layer", _DISTILBERT, _distilbert_head, True
    ),
}


@dataclass(frozen=True)
class _Activation:
    """An activation, and how oneDNN calls it where it is known there: (name, algorithm)."""

    function: Callable[[Tensor], Tensor]
    fused: tuple[str, str] | None

    @classmethod
    def named(cls, name: str) -> "_Activation":
        known = {"gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "relu": ("relu", "")}
        return cls(ACT2FN[name], known.get(name))


def _can_pack(weight: Tensor) -> bool:
    """oneDNN's packed products are there; they are what torch's own compiler calls on a CPU."""
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
    return bool(known) and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)


class _Projection:
    """One linear product, of one module or of several side by side, with the LoRA banks of its parts."""

    def __init__(self, weight: Tensor, bias: Tensor, parts: list[tuple[str, int]]) -> None:
        """
        Args:
            weight: [D_out, D_in].
            bias: [D_out].
            parts: the modules it is made of, by dotted name, with the D_out of each.
        """
        self.weight, self.bias, self.parts = weight, bias, parts
        self.lora: list[tuple[int, int, LoraLinear]] = []
        self._packed: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module, names: list[str]) -> "_Projection":
        modules = [model.get_submodule(name) for name in names]
        linears = [module for module in modules if isinstance(module, nn.Linear)]
        parts = [(name, linear.out_features) for name, linear in zip(names, linears, strict=True)]
        if len(linears) == 1:
            return cls(linears[0].weight, linears[0].bias, parts)
        weight = torch.cat([linear.weight for linear in linears])
        return cls(weight, torch.cat([linear.bias for linear in linears]), parts)

    def some(self, first: int, last: int) -> "_Projection":
        """Only the parts from `first` up to `last`, on the same memory."""
        start = sum(width for _, width in self.parts[:first])
        end = sum(width for _, width in self.parts[:last])
        return _Projection(self.weight[start:end], self.bias[start:end], self.parts[first:last])

    def refresh(self, bank: LoraBank) -> None:
        """Take note of the banks that have been put in since."""
        start = 0
        self.lora = []
        for name, width in self.parts:
            if name in bank.lora:
                self.lora.append((start, start + width, bank.lora[name]))
            start += width

    def pack(self) -> None:
        """Keep a copy of the weight in oneDNN's blocked layout, and multiply by that one."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def activated(self, x: Tensor, selection: Selection, activation: _Activation) -> Tensor:
        """The product and then the activation, in one call where no LoRA comes between."""
        if self._packed is None or activation.fused is None or (selection.lora and self.lora):
            return activation.function(self(x, selection))
        fused, algorithm = activation.fused
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x, self._packed, self.bias, fused, [], algorithm
        )

    def plus(self, x: Tensor, residual: Tensor, selection: Selection) -> Tensor:
        """The product and a residual [B, T, D_out]."""
        if self._packed is None:
            return self(x, selection).add_(residual)
        y = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, self.bias, "add")
        return self._with_lora(x, y, selection)

    def __call__(self, x: Tensor, selection: Selection) -> Tensor:  # [B, T, D_in] -> [B, T, D_out]
        if self._packed is None:
            y = functional.linear(x, self.weight, self.bias)
        else:
            y = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return self._with_lora(x, y, selection)

    def _with_lora(self, x: Tensor, y: Tensor, selection: Selection) -> Tensor:
        """Adds each row's delta to `y`, in place."""
        if not selection.lora or not self.lora:
            return y
        if selection.single is None:
            for start, end, lora in self.lora:
                part = y if len(self.parts) == 1 else y[..., start:end]
                part.baddbmm_(torch.bmm(x, lora.a[selection.slots]), lora.b[selection.slots])
            return y
        rows, sums = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for start, end, lora in self.lora:
            part = sums if len(self.parts) == 1 else sums[:, start:end]
            part.addmm_(torch.mm(rows, lora.a[selection.single]), lora.b[selection.single])
        return y


@dataclass(frozen=True)
class _Layer:
    qkv: _Projection
    query: _Projection
    """Used in the last layer: there the query is the first token's, keys and values are all tokens'."""
    key_value: _Projection
    out: _Projection
    out_norm: nn.Module
    up: _Projection
    down: _Projection
    down_norm: nn.Module

    def projections(self) -> list[_Projection]:
        return [self.qkv, self.query, self.key_value, self.out, self.up, self.down]

    def used(self, *, last: bool) -> list[_Projection]:
        """The projections that are computed, in the last layer and in others."""
        attention = [self.query, self.key_value] if last else [self.qkv]
        return [*attention, self.out, self.up, self.down]


class _Embeddings:
    """Embeddings whose position and segment parts never change: their sum is looked up, not computed."""

    def __init__(self, module: Any) -> None:
        self._words = module.word_embeddings.weight  # [V, D]
        self._places = module.position_embeddings.weight  # [N, D]
        if hasattr(module, "token_type_embeddings"):
            self._places = self._places + module.token_type_embeddings.weight[0]
        self._norm = module.LayerNorm

    def __call__(self, ids: Tensor) -> Tensor:  # [B, T] -> [B, T, D]
        x = functional.embedding(ids, self._words).add_(self._places[: ids.shape[1]])
        return self._norm(x)  # type: ignore[no-any-return]


class LeanEncoder:
    """The lean pass of one model. Build it with `lean_encoder`."""

    def __init__(self, model: nn.Module, family: _Family, bank: LoraBank) -> None:
        self._model = model
        self._family = family
        self._bank = bank
        self._embeddings: Callable[[Tensor], Tensor] = model.get_submodule(f"{family.body}.embeddings")
        if family.plain_positions:
            self._embeddings = _Embeddings(model.get_submodule(f"{family.body}.embeddings"))
        config: Any = model.config
        self._heads = int(config.num_attention_heads)
        self._activation = _Activation.named(
            config.activation if config.model_type == "distilbert" else config.hidden_act
        )
        prefix = f"{family.body}.{family.layers}"
        count = len(list(model.get_submodule(prefix).children()))
        self._layers = [self._layer(f"{prefix}.{index}") for index in range(count)]
        if _can_pack(self._layers[0].out.weight):
            for number, layer in enumerate(self._layers, 1):
                for projection in layer.used(last=number == count):
                    projection.pack()

    def _layer(self, prefix: str) -> _Layer:
        names = self._family.names

        def projection(*leaves: str) -> _Projection:
            return _Projection.of(self._model, [f"{prefix}.{leaf}" for leaf in leaves])

        qkv = projection(names.query, names.key, names.value)
        return _Layer(
            qkv=qkv,
            query=qkv.some(0, 1),
            key_value=qkv.some(1, 3),
            out=projection(names.out),
            out_norm=self._model.get_submodule(f"{prefix}.{names.out_norm}"),
            up=projection(names.up),
            down=projection(names.down),
            down_norm=self._model.get_submodule(f"{prefix}.{names.down_norm}"),
        )

    def refresh(self) -> bool:
        """Take note of what the bank has put in; False if an adapter saved an encoder module whole.

        The general pass must be used then: this one holds copies of the base's own weights.
        """
        for layer in self._layers:
            for projection in layer.projections():
                projection.refresh(self._bank)
        prefix = f"{self._family.body}.{self._family.layers}."
        return not any(name.startswith(prefix) for name in self._bank.heads)

    def check_integrity(self) -> None:
        """AssertionError if the pass does not read the bank as it is."""
        read = {name for layer in self._layers for part in layer.projections() for name, _ in part.parts}
        known = {id(lora) for layer in self._layers for part in layer.projections() for _, _, lora in part.lora}
        missing = [name for name, lora in self._bank.lora.items() if name in read and id(lora) not in known]
        assert not missing, f"the lean pass leaves out the LoRA of {missing}"

    def __call__(self, ids: Tensor, real: Tensor | None) -> Tensor:
        """
        Args:
            ids: [B, T] token ids, padded on the right.
            real: [B, T] bool, False where a token is padding; None where none is.

        Returns:
            logits [B, C], C as wide as the bank's heads.
        """
        selection = self._bank.selection
        mask = None if real is None else real[:, None, None, :]  # [B, 1, 1, T]
        x = self._embeddings(ids)  # [B, T, D]
        for layer in self._layers[:-1]:
            query, key, value = self._split(layer.qkv(x, selection), 3)
            x = self._finish(layer, x, query, key, value, mask, selection)
        last, first = self._layers[-1], x[:, :1].contiguous()
        (query,) = self._split(last.query(first, selection), 1)
        key, value = self._split(last.key_value(x, selection), 2)
        x = self._finish(last, first, query, key, value, mask, selection)
        return self._family.head(self._model, x[:, 0])

    def _finish(
        self,
        layer: _Layer,
        x: Tensor,  # [B, T or 1, D]
        query: Tensor,  # [B, heads, T or 1, D / heads]
        key: Tensor,  # [B, heads, T, D / heads]
        value: Tensor,  # [B, heads, T, D / heads]
        mask: Tensor | None,
        selection: Selection,
    ) -> Tensor:
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        context = context.transpose(1, 2).reshape(x.shape)
        x = layer.out_norm(layer.out.plus(context, x, selection))
        hidden = layer.up.activated(x, selection, self._activation)
        return layer.down_norm(layer.down.plus(hidden, x, selection))  # type: ignore[no-any-return]

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:  # [B, T, parts * D] -> [B, heads, T, D / heads] each
        return x.view(x.shape[0], x.shape[1], parts, self._heads, -1).permute(2, 0, 3, 1, 4).unbind()


def lean_encoder(model: nn.Module, bank: LoraBank) -> LeanEncoder | None:
    """The lean pass for `model`, or None where its architecture has none. Call before the bank puts modules in."""
    family = _FAMILIES.get(type(model).__name__)
    if family is None or getattr(model.config, "is_decoder", False):
        return None
    if getattr(model.config, "position_embedding_type", "absolute") != "absolute":
        return None
    return LeanEncoder(model, family, bank)
