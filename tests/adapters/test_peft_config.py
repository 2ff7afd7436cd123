"""PEFT's rules of matching and scaling, against PEFT itself."""

from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForSequenceClassification

from adapters.base_model import BaseModelFiles
from adapters.peft_config import PeftLoraConfig

CONFIGS: dict[str, dict[str, Any]] = {
    "suffix list": {"target_modules": ["query", "value"]},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layer\.[0-2]\.attention\.self\.(query|key)"},
    "dense but not the pooler": {"target_modules": ["dense"], "exclude_modules": ["pooler.dense"]},
    "exclude by regex": {"target_modules": ["dense"], "exclude_modules": r".*intermediate.*"},
    "some layers": {"target_modules": ["query"], "layers_to_transform": [0, 3], "layers_pattern": "layer"},
    "one layer": {"target_modules": ["query"], "layers_to_transform": 2},
    "saved pooler": {"target_modules": ["dense"], "modules_to_save": ["pooler"]},
    "ranks": {"target_modules": ["query", "dense"], "rank_pattern": {r"layer\.1\.output\.dense": 3, "query": 5}},
    "rslora": {"target_modules": ["key"], "use_rslora": True, "alpha_pattern": {"layer.0.attention.self.key": 7}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_targets_ranks_and_scalings_are_pefts(base: BaseModelFiles, name: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base.directory, num_labels=2)
    linears = [key for key, module in model.named_modules() if type(module).__name__ == "Linear"]
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=6, **CONFIGS[name])
    ours = PeftLoraConfig.model_validate(config.to_dict())
    theirs = {
        key.removeprefix("base_model.model."): module
        for key, module in get_peft_model(model, config).named_modules()
        if isinstance(module, LoraLayer)
    }
    assert ours.targets(linears, "classifier") == set(theirs)
    assert theirs
    for key, module in theirs.items():
        assert ours.rank(key) == module.r["default"], key
        assert ours.scaling(key) == pytest.approx(module.scaling["default"]), key


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "all"),
        ({"lora_bias": True}, "lora_B"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"trainable_token_indices": [1]}, "token embeddings"),
        ({"target_parameters": ["x"]}, "raw parameters"),
        ({"layer_replication": [[0, 1]]}, "replicated"),
    ],
)
def test_what_cannot_be_served_exactly_is_refused(change: dict[str, Any], found: str) -> None:
    plain = LoraConfig(task_type="SEQ_CLS", target_modules=["query"]).to_dict()
    assert PeftLoraConfig.model_validate(plain).refusal() is None
    refusal = PeftLoraConfig.model_validate(plain | change).refusal()
    assert refusal is not None
    assert found in refusal[1]
