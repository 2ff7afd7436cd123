"""Corrupted and hostile adapter directories: each is refused with its own reason, before anything of it is used."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from adapters.base_model import BaseModelFiles
from adapters.errors import VerificationError
from adapters.manifest import MANIFEST, PEFT_CONFIG, PEFT_WEIGHTS, file_sha256
from adapters.reference import AdapterId
from adapters.store import Registry
from adapters.verify import Adapter, BaseLayout, read_adapter
from engine.engine import Engine
from tests.factory import AdapterShape, save_adapter

ID = AdapterId("victim", 1)
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
HEAD = "base_model.model.classifier"


@pytest.fixture(scope="module")
def layout(base: BaseModelFiles) -> BaseLayout:
    return Engine(base, capacity=1).layout


@pytest.fixture(scope="module")
def sources(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A good adapter, with a manifest and without."""
    root = tmp_path_factory.mktemp("sources")
    return {
        manifest: save_adapter(root / str(manifest), base, AdapterShape(), manifest=manifest)
        for manifest in (True, False)
    }


class Victim:
    """A good adapter directory in a registry, to be damaged; `reseal` makes its digests agree with the damage."""

    def __init__(self, registry: Registry, source: Path) -> None:
        self.directory = registry.directory(registry.publish(source, ID.name))
        self.manifest = (self.directory / MANIFEST).exists()

    def tensors(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        path = self.directory / PEFT_WEIGHTS
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path)
        self.reseal()

    def weights(self, content: bytes) -> None:
        (self.directory / PEFT_WEIGHTS).write_bytes(content)
        self.reseal()

    def config(self, **change: Any) -> None:
        self._json(PEFT_CONFIG, change)
        self.reseal()

    def says(self, **change: Any) -> None:
        self._json(MANIFEST, change)

    def _json(self, file: str, change: dict[str, Any]) -> None:
        path = self.directory / file
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    def reseal(self) -> None:
        if self.manifest:
            files = {file: file_sha256(self.directory / file) for file in (PEFT_CONFIG, PEFT_WEIGHTS)}
            self.says(files=files)


def renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


def set_item(tensors: dict[str, torch.Tensor], key: str, value: torch.Tensor) -> None:
    tensors[key] = value


def replace(directory: Path, file: str, target: Path) -> None:
    (directory / file).unlink()
    (directory / file).symlink_to(target)


def pickled(victim: Victim) -> None:
    tensors = safetensors.torch.load_file(victim.directory / PEFT_WEIGHTS)
    (victim.directory / PEFT_WEIGHTS).unlink()
    torch.save(tensors, victim.directory / "adapter_model.bin")


def pickle_under_the_name(victim: Victim) -> None:
    torch.save({"x": torch.ones(1)}, victim.directory / PEFT_WEIGHTS)
    victim.reseal()


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


DAMAGE: dict[str, tuple[Callable[[Victim], object], str]] = {
    # files
    "no weights": (lambda v: (v.directory / PEFT_WEIGHTS).unlink(), "files"),
    "no config": (lambda v: (v.directory / PEFT_CONFIG).unlink(), "files"),
    "pickle instead": (pickled, "never read"),
    "pickle under the name": (pickle_under_the_name, "weights header|weights file"),
    "link out": (lambda v: replace(v.directory, PEFT_WEIGHTS, Path("/etc/hostname")), "containment"),
    "link to a sibling": (lambda v: (v.directory / "more").symlink_to(v.directory / PEFT_CONFIG), "containment"),
    "linked directory": (lambda v: (v.directory / "report").symlink_to("/etc"), "containment"),
    "file that the manifest does not name": (
        lambda v: (v.directory / "extra.py").write_text("1"),
        "digest of extra.py",
    ),
    # weights
    "truncated": (lambda v: v.weights((v.directory / PEFT_WEIGHTS).read_bytes()[:-100]), "weights file"),
    "cut in the header": (lambda v: v.weights((v.directory / PEFT_WEIGHTS).read_bytes()[:50]), "weights header"),
    "empty": (lambda v: v.weights(b""), "weights file|weights header"),
    "no safetensors": (lambda v: v.weights(b"hello world, this is text"), "weights header"),
    "huge header": (lambda v: v.weights(struct.pack("<Q", 2**40) + b"{}"), "weights header"),
    "header is a list": (lambda v: v.weights(struct.pack("<Q", 2) + b"[]"), "weights file"),
    "header is no JSON": (lambda v: v.weights(struct.pack("<Q", 2) + b"{{"), "weights file"),
    "offsets out of the file": (
        lambda v: v.weights(header(x={"dtype": "F32", "shape": [9], "data_offsets": [0, 36]})),
        "weights file",
    ),
    "bytes behind the tensors": (
        lambda v: v.weights((v.directory / PEFT_WEIGHTS).read_bytes() + b"more"),
        "weights file",
    ),
    "integers": (
        lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.bias", torch.ones(2, dtype=torch.int64))),
        "weights dtype",
    ),
    "doubles": (lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.bias", torch.ones(2).double())), "weights dtype"),
    "NaN": (lambda v: v.tensors(lambda t: t[f"{HEAD}.weight"].fill_(torch.nan)), "finite values"),
    "infinity": (lambda v: v.tensors(lambda t: t[f"{QUERY}.lora_B.weight"][0].fill_(torch.inf)), "finite values"),
    # tensors
    "missing lora_A": (lambda v: v.tensors(lambda t: t.pop(f"{QUERY}.lora_A.weight")), "tensors.*lora_A"),
    "missing lora_B": (lambda v: v.tensors(lambda t: t.pop(f"{QUERY}.lora_B.weight")), "tensors.*lora_B"),
    "missing pair": (
        lambda v: v.tensors(lambda t: [t.pop(f"{QUERY}.lora_{side}.weight") for side in "AB"]),
        "tensors.*query",
    ),
    "no head": (
        lambda v: v.tensors(lambda t: [t.pop(f"{HEAD}.{leaf}") for leaf in ("weight", "bias")]),
        "tensors.*head",
    ),
    "half a head": (lambda v: v.tensors(lambda t: t.pop(f"{HEAD}.bias")), "tensors.*classifier"),
    "extra tensor": (
        lambda v: v.tensors(lambda t: set_item(t, "base_model.model.bert.nothing.weight", torch.ones(2))),
        "tensor name",
    ),
    "extra LoRA": (
        lambda v: v.tensors(
            lambda t: [
                set_item(t, f"{QUERY.replace('query', 'key')}.lora_A.weight", torch.ones(4, 384)),
                set_item(t, f"{QUERY.replace('query', 'key')}.lora_B.weight", torch.ones(384, 4)),
            ]
        ),
        "tensors.*key",
    ),
    "LoRA where there is no module": (
        lambda v: v.tensors(lambda t: set_item(t, "base_model.model.bert.x.lora_A.weight", torch.ones(4, 384))),
        "tensor name",
    ),
    "renamed key": (
        lambda v: v.tensors(lambda t: renamed(t, f"{HEAD}.weight", "base_model.model.classifer.weight")),
        "tensor name",
    ),
    "foreign prefix": (lambda v: v.tensors(lambda t: renamed(t, f"{HEAD}.weight", "classifier.weight")), "tensor name"),
    "a base weight smuggled in, of another shape": (
        lambda v: v.tensors(
            lambda t: set_item(t, "base_model.model.bert.embeddings.word_embeddings.weight", torch.ones(2, 384))
        ),
        "shape",
    ),
    "an encoder module saved whole that modules_to_save does not name": (
        lambda v: v.tensors(
            lambda t: [
                set_item(t, "base_model.model.bert.pooler.dense.weight", torch.ones(384, 384)),
                set_item(t, "base_model.model.bert.pooler.dense.bias", torch.ones(384)),
            ]
        ),
        "tensors.*modules_to_save.*pooler",
    ),
    "embedding LoRA": (
        lambda v: v.tensors(
            lambda t: set_item(
                t, "base_model.model.bert.embeddings.word_embeddings.lora_embedding_A", torch.ones(4, 30522)
            )
        ),
        "LoRA form",
    ),
    "DoRA magnitude": (
        lambda v: v.tensors(lambda t: set_item(t, f"{QUERY}.lora_magnitude_vector", torch.ones(384))),
        "LoRA form",
    ),
    "wrong shape of A": (
        lambda v: v.tensors(lambda t: set_item(t, f"{QUERY}.lora_A.weight", torch.ones(4, 100))),
        "shape.*lora_A",
    ),
    "wrong shape of B": (
        lambda v: v.tensors(lambda t: set_item(t, f"{QUERY}.lora_B.weight", torch.ones(100, 4))),
        "shape.*lora_B",
    ),
    "transposed head": (
        lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.weight", torch.ones(384, 2))),
        "shape.*classifier",
    ),
    "flat head": (lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.weight", torch.ones(768))), "shape.*classifier"),
    "bias of another size": (
        lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.bias", torch.ones(3))),
        "shape.*bias",
    ),
    # config
    "config is no JSON": (lambda v: ((v.directory / PEFT_CONFIG).write_text("{"), v.reseal()), "config"),
    "config is a list": (lambda v: ((v.directory / PEFT_CONFIG).write_text("[]"), v.reseal()), "config"),
    "huge config": (lambda v: ((v.directory / PEFT_CONFIG).write_text(" " * 2**21), v.reseal()), "config"),
    "another rank in the config": (lambda v: v.config(r=8), "shape.*lora_A"),
    "rank 0": (lambda v: v.config(r=0), "config.*r"),
    "rank over the limit": (lambda v: v.config(r=4096), "rank.*MAX_RANK"),
    "more targets in the config": (lambda v: v.config(target_modules=["query", "value", "key"]), "tensors.*key"),
    "fewer targets in the config": (lambda v: v.config(target_modules=["query"]), "tensors.*value"),
    "a saved module that is not there": (lambda v: v.config(modules_to_save=["classifier", "pooler"]), "pooler"),
    "DoRA": (lambda v: v.config(use_dora=True), "LoRA form.*DoRA"),
    "PiSSA": (lambda v: v.config(init_lora_weights="pissa"), "LoRA form.*pissa"),
    "IA3": (lambda v: v.config(peft_type="IA3"), "LoRA form.*IA3"),
    "trained biases": (lambda v: v.config(bias="all"), "LoRA form.*all"),
    # manifest
    "manifest is no JSON": (lambda v: (v.directory / MANIFEST).write_text("nonsense"), "manifest"),
    "unknown schema": (lambda v: v.says(schema_version=2), "manifest.*schema_version"),
    "unknown key": (lambda v: v.says(surprise=1), "manifest.*surprise"),
    "another name": (lambda v: v.says(name="movies"), "manifest name"),
    "another version": (lambda v: v.says(version=7), "manifest name"),
    "wrong base": (lambda v: v.says(base={"id": "other/base", "sha256": "0" * 64}), "base model.*other/base"),
    "doubled label": (lambda v: v.says(labels=["same", "same"], golden=[]), "manifest.*differ"),
    "one label too many": (lambda v: v.says(labels=["a", "b", "c"], golden=[]), "labels"),
    "a lying digest": (
        lambda v: v.says(files={PEFT_CONFIG: "0" * 64, PEFT_WEIGHTS: file_sha256(v.directory / PEFT_WEIGHTS)}),
        f"digest of {PEFT_CONFIG}",
    ),
    "no digest of the weights": (lambda v: v.says(files={}), "digest"),
    "a digest of a file outside": (lambda v: v.says(files={"../../etc/passwd": "0" * 64}), "digest"),
    "longer than the base reads": (lambda v: v.says(max_tokens=100_000), "max tokens"),
    "golden NaN": (lambda v: v.says(golden=[{"text": "x", "logits": [float("nan"), 1]}]), "manifest.*golden"),
    "golden of another width": (lambda v: v.says(golden=[{"text": "x", "logits": [1]}]), "manifest"),
    "temperature 0": (lambda v: v.says(temperature=0), "manifest.*temperature"),
}


def read(victim: Victim, layout: BaseLayout) -> Adapter:
    return read_adapter(victim.directory, ID, layout, max_rank=64)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_its_own_check(
    name: str, registry: Registry, sources: dict[bool, Path], layout: BaseLayout
) -> None:
    victim = Victim(registry, sources[True])
    damage, reason = DAMAGE[name]
    damage(victim)
    with pytest.raises(VerificationError, match=f"(?s)victim@1.*({reason})"):
        read(victim, layout)


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
