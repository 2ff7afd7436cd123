"""Every base that the design lists is trained on, reloaded, checked as the service checks it, and published."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adapters.base_model import BaseModelFiles
from adapters.errors import SettingsError
from adapters.manifest import read_manifest
from adapters.store import Registry
from tests.engine.test_bases import make_base
from tests.training.conftest import MakeRecipe
from training.train import train

SAVED = {"roberta": [], "deberta-v3": ["pooler"], "modernbert": ["head"], "llama": [], "qwen": []}


@pytest.mark.parametrize("name", SAVED)
def test_a_recipe_on_every_base(
    name: str, make_recipe: MakeRecipe, base: BaseModelFiles, tmp_path: Path, console: Console
) -> None:
    make_base(tmp_path / "base", name, base)
    fields: dict[str, Any] = {"modules_to_save": SAVED[name], "lora": {"rank": 2}, "transfer": {"epochs": 1}}
    recipe = make_recipe(base_model=str(tmp_path / "base"), **fields)
    published = train(recipe, registry=tmp_path / "registry", runs=tmp_path / "runs", console=console)
    registry = Registry(tmp_path / "registry")
    assert read_manifest(registry.directory(published)).lora.rank == 2
    # With the encoder frozen, LoRA's modules are where they were: the first stage is a head alone.
    assert read_manifest(registry.directory(registry.resolve("tiny-head"))).lora.rank == 0


def test_a_decoder_on_a_base_in_four_bits(
    make_recipe: MakeRecipe, base: BaseModelFiles, tmp_path: Path, console: Console
) -> None:
    make_base(tmp_path / "base", "llama", base)
    recipe = make_recipe(base_model=str(tmp_path / "base"), lora={"rank": 2}, quantise="4bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(SettingsError, match=r"pip install 'tonearm\[qlora\]'"):
            train(recipe, registry=tmp_path / "registry", runs=tmp_path / "runs", console=console)
        pytest.skip("4-bit training is tested where bitsandbytes is installed: pip install 'tonearm[qlora]'")
    published = train(recipe, registry=tmp_path / "registry", runs=tmp_path / "runs", console=console)
    # What was checked, golden logits included, is the adapter on the base in full precision.
    assert read_manifest(Registry(tmp_path / "registry").directory(published)).lora.rank == 2
