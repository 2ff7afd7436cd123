"""Every base that the design lists, as a tiny model with its real architecture and random weights.

Each gets adapters of different shapes, made and answered by PEFT; the engine must say the same in one mixed batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer, PretrainedConfig

from adapters.base_model import BaseModelFiles, find_base_model
from adapters.errors import VerificationError
from adapters.reference import AdapterId
from adapters.store import Registry
from engine.engine import Engine
from engine.rows import Answer, Row
from tests.factory import TEXTS, AdapterShape, peft_logits, peft_model, save_adapter

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "vocab_size": 30522,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Architecture:
    """How to make a tiny base, and which modules its adapters target and save whole."""

    config: Callable[[], PretrainedConfig]
    targets: tuple[str, ...]
    saved: tuple[str, ...] | None = None


ARCHITECTURES = {
    "bert": Architecture(lambda: transformers.BertConfig(**_SMALL), ("query", "value")),
    "bert without pooler weights": Architecture(
        lambda: transformers.BertConfig(**_SMALL), ("query",), ("classifier", "pooler")
    ),
    "distilbert": Architecture(
        lambda: transformers.DistilBertConfig(
            vocab_size=30522, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=96
        ),
        ("q_lin", "lin1"),
        ("pre_classifier", "classifier"),
    ),
    "roberta": Architecture(lambda: transformers.RobertaConfig(**_SMALL), ("query", "value")),
    "xlm-roberta": Architecture(lambda: transformers.XLMRobertaConfig(**_SMALL), ("key", "value")),
    "deberta-v3": Architecture(
        lambda: transformers.DebertaV2Config(
            **_SMALL,
            relative_attention=True,
            position_buckets=16,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
        ),
        ("query_proj", "value_proj"),
        ("pooler", "classifier"),
    ),
    "modernbert": Architecture(
        lambda: transformers.ModernBertConfig(
            **_SMALL, global_attn_every_n_layers=2, local_attention=16, cls_token_id=101, sep_token_id=102
        ),
        ("Wqkv", "Wo"),
        ("head", "classifier"),
    ),
    "llama": Architecture(
        lambda: transformers.LlamaConfig(**_SMALL, num_key_value_heads=2), ("q_proj", "v_proj", "down_proj")
    ),
    "qwen": Architecture(lambda: transformers.Qwen2Config(**_SMALL, num_key_value_heads=2), ("q_proj", "k_proj")),
}


def make_base(directory: Path, name: str, tokenizer_from: BaseModelFiles) -> BaseModelFiles:
    """Write a tiny random base: the bare encoder, without any head, as hubs hold them."""
    torch.manual_seed(5)
    model = AutoModel.from_config(ARCHITECTURES[name].config())
    if name == "bert without pooler weights":
        model = transformers.BertModel(model.config, add_pooling_layer=False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from.directory)
    tokenizer.model_max_length = 90
    tokenizer.save_pretrained(directory)
    return find_base_model(str(directory))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_mixed_adapters_on_every_base(name: str, base: BaseModelFiles, registry: Registry, tmp_path: Path) -> None:
    tiny = make_base(tmp_path / "base", name, base)
    architecture = ARCHITECTURES[name]
    peft = {"modules_to_save": list(architecture.saved)} if architecture.saved else {}
    shapes = [
        AdapterShape(seed=1, rank=2, targets=architecture.targets, max_tokens=80, peft=peft),
        AdapterShape(seed=2, rank=5, labels="abcde", targets=architecture.targets[:1], max_tokens=80, peft=peft),
        AdapterShape(
            seed=3, rank=3, labels="xyz", targets="all-linear", max_tokens=80, peft=peft | {"use_rslora": True}
        ),
    ]
    engine = Engine(tiny, capacity=4)
    rows, expected = [], []
    for index, shape in enumerate(shapes):
        adapter = registry.publish(save_adapter(tmp_path / str(index), tiny, shape), f"a{index}")
        engine.attach(engine.read(registry.directory(adapter), adapter))
        rows += [Row(text, adapter) for text in TEXTS]
        expected += list(peft_logits(peft_model(tiny, shape), tiny, TEXTS, shape))
    outcomes, _ = engine.classify(rows)
    for outcome, logits in zip(outcomes, expected, strict=True):
        assert isinstance(outcome, Answer), outcome
        torch.testing.assert_close(torch.tensor(outcome.logits), logits, atol=1e-4, rtol=0)


def test_fresh_modules_that_peft_did_not_save_are_refused(
    base: BaseModelFiles, registry: Registry, tmp_path: Path
) -> None:
    """DistilBERT's pre_classifier is random in a bare base; an adapter without it would answer by dice."""
    tiny = make_base(tmp_path / "base", "distilbert", base)
    shape = AdapterShape(targets=("q_lin",), max_tokens=80)
    model = peft_model(tiny, shape)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    import safetensors.torch

    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {key: value for key, value in safetensors.torch.load_file(path).items() if "pre_classifier" not in key}
    safetensors.torch.save_file(tensors, path)
    engine = Engine(tiny, capacity=1)
    assert any("pre_classifier" in key for key in engine.layout.fresh)
    with pytest.raises(VerificationError, match="pre_classifier"):
        engine.verify(tmp_path / "adapter", AdapterId("a", 1))


def test_a_base_with_a_head_of_its_own(base: BaseModelFiles, registry: Registry, tmp_path: Path) -> None:
    """A base that was fine-tuned before: its head must not answer in the adapter's place."""
    torch.manual_seed(0)
    config = ARCHITECTURES["distilbert"].config()
    config.num_labels = 2
    model = transformers.DistilBertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(base.directory).save_pretrained(tmp_path / "base")
    headed = find_base_model(str(tmp_path / "base"))
    engine = Engine(headed, capacity=2)
    for index, labels in enumerate(("ab", "abcd")):
        shape = AdapterShape(labels=labels, targets=("q_lin",), seed=index, max_tokens=80)
        adapter = registry.publish(save_adapter(tmp_path / labels, headed, shape), labels)
        engine.attach(engine.read(registry.directory(adapter), adapter))
        expected = peft_logits(peft_model(headed, shape), headed, TEXTS, shape)
        outcomes, _ = engine.classify([Row(text, adapter) for text in TEXTS])
        found = torch.tensor([outcome.logits for outcome in outcomes if isinstance(outcome, Answer)])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
