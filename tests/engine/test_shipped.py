"""Every adapter that ships: verified with its golden texts, and PEFT, reloading it, says what the engine says."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adapters.base_model import BaseModelFiles
from adapters.reference import AdapterId
from adapters.store import SHIPPED, Registry
from engine.engine import Engine
from engine.rows import Answer, Row
from tests.factory import TEXTS

REGISTRY = Registry(SHIPPED)


@pytest.fixture(scope="module")
def engine(base: BaseModelFiles) -> Engine:
    return Engine(base, capacity=8)


def test_what_ships() -> None:
    assert {"base", "movies", "products", "questions", "reviews", "tone"} == set(REGISTRY.names())


@pytest.mark.parametrize("adapter", list(REGISTRY.ids()), ids=str)
def test_reload_parity(adapter: AdapterId, engine: Engine, base: BaseModelFiles) -> None:
    directory = REGISTRY.directory(adapter)
    read = engine.read(directory, adapter)
    assert read.verified
    assert read.golden
    engine.attach(read)
    outcomes, _ = engine.classify([Row(text, adapter) for text in TEXTS])
    found = torch.tensor([outcome.logits for outcome in outcomes if isinstance(outcome, Answer)])
    model = AutoModelForSequenceClassification.from_pretrained(base.directory, num_labels=len(read.labels))
    peft = PeftModel.from_pretrained(model, directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(base.directory)
    with torch.inference_mode():
        expected = torch.cat([peft(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
