"""Corrupted and hostile adapter directories: each is refused with its own reason, before anything of it is used."""

from pathlib import Path

import pytest

from adapters.base_model import BaseModelFiles
from adapters.errors import VerificationError
from adapters.store import Registry
from adapters.verify import Adapter, BaseLayout, read_adapter
from engine.engine import Engine
from tests.damage import DAMAGE, LIES, Victim, damaged
from tests.factory import AdapterShape, save_adapter


@pytest.fixture(scope="module")
def engine(base: BaseModelFiles) -> Engine:
    return Engine(base, capacity=1)


@pytest.fixture(scope="module")
def layout(engine: Engine) -> BaseLayout:
    return engine.layout


@pytest.fixture(scope="module")
def sources(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A good adapter, with a manifest and without."""
    root = tmp_path_factory.mktemp("sources")
    return {
        manifest: save_adapter(root / str(manifest), base, AdapterShape(), manifest=manifest)
        for manifest in (True, False)
    }


def read(victim: Victim, layout: BaseLayout) -> Adapter:
    return read_adapter(victim.directory, victim.id, layout, max_rank=64)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_its_own_check(
    name: str, registry: Registry, sources: dict[bool, Path], layout: BaseLayout
) -> None:
    victim = damaged(registry, sources[True], name)
    with pytest.raises(VerificationError, match=f"(?s)victim@1.*({DAMAGE[name][1]})"):
        read(victim, layout)


@pytest.mark.parametrize("name", LIES)
def test_lies_are_found_by_running_it(name: str, registry: Registry, sources: dict[bool, Path], engine: Engine) -> None:
    victim = damaged(registry, sources[True], name)
    with pytest.raises(VerificationError, match=f"(?s)victim@1.*({LIES[name][1]})"):
        engine.verify(victim.directory, victim.id)
    assert not engine.resident


@pytest.mark.parametrize("manifest", [True, False])
def test_the_undamaged_one_is_read(
    manifest: bool, registry: Registry, sources: dict[bool, Path], layout: BaseLayout
) -> None:
    adapter = read(Victim(registry, sources[manifest]), layout)
    assert adapter.verified is manifest
    assert adapter.labels == (("negative", "positive") if manifest else ("LABEL_0", "LABEL_1"))
    assert adapter.rank == 4


def test_plain_peft_of_another_base(registry: Registry, sources: dict[bool, Path], layout: BaseLayout) -> None:
    victim = Victim(registry, sources[False])
    victim.config(base_model_name_or_path="other/base")
    with pytest.raises(VerificationError, match=r"base model.*other/base"):
        read(victim, layout)


def test_plain_peft_that_names_the_base_by_its_directory(
    registry: Registry, sources: dict[bool, Path], layout: BaseLayout, base: BaseModelFiles
) -> None:
    victim = Victim(registry, sources[False])
    victim.config(base_model_name_or_path=str(base.directory))
    assert not read(victim, layout).verified


def test_plain_peft_of_another_alpha_is_another_adapter(
    registry: Registry, sources: dict[bool, Path], layout: BaseLayout
) -> None:
    """Without golden logits nothing says that it is wrong: PEFT serves it, and so do we."""
    victim = Victim(registry, sources[False])
    before = read(victim, layout)
    victim.config(lora_alpha=-8)
    for module, pair in read(victim, layout).lora.items():
        assert pair.b.equal(-before.lora[module].b)


def test_plain_peft_whose_base_has_no_name_that_a_file_could_have(
    registry: Registry, sources: dict[bool, Path], layout: BaseLayout
) -> None:
    victim = Victim(registry, sources[False])
    for named in ("x" * 10_000, "a\0b", ""):
        victim.config(base_model_name_or_path=named)
        with pytest.raises(VerificationError, match="base model"):
            read(victim, layout)
