"""Corrupted and hostile adapter directories: ways to damage a good one, and the check that refuses each."""

import base64
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from adapters.manifest import MANIFEST, PEFT_CONFIG, PEFT_WEIGHTS, file_sha256
from adapters.reference import AdapterId
from adapters.store import Registry

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
HEAD = "base_model.model.classifier"


class Victim:
    """A good adapter directory in a registry, to be damaged; `reseal` makes its digests agree with the damage."""

    def __init__(self, registry: Registry, source: Path, name: str = "victim") -> None:
        self.id: AdapterId = registry.publish(source, name)
        self.directory = registry.directory(self.id)
        self.manifest = (self.directory / MANIFEST).exists()

    def tensors(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        path = self.directory / PEFT_WEIGHTS
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path)
        self.reseal()

    def weights(self, content: bytes) -> None:
        self.raw(PEFT_WEIGHTS, content)

    def config(self, **change: Any) -> None:
        self._json(PEFT_CONFIG, change)
        self.reseal()

    def raw(self, file: str, content: str | bytes) -> None:
        (self.directory / file).write_bytes(content.encode() if isinstance(content, str) else content)
        if file != MANIFEST:
            self.reseal()

    def instead(self, file: str, make: Callable[[Path], object]) -> None:
        """Put something that is no plain file in a file's place."""
        (self.directory / file).unlink(missing_ok=True)
        make(self.directory / file)

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
    return header_text(json.dumps(entries).encode())


def header_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def f32(*shape: int, at: tuple[int, int]) -> dict[str, Any]:
    """A tensor's entry in a safetensors header."""
    return {"dtype": "F32", "shape": shape, "data_offsets": at}


def hard_link_out(victim: Victim) -> None:
    outside = victim.directory.parent.parent / "outside"
    outside.write_text("a secret")
    os.link(outside, victim.directory / "notes.txt")


def sparse(path: Path) -> None:
    """A file of 8 GiB that takes no room."""
    with path.open("wb") as file:
        file.truncate(2**33)


def says_text(victim: Victim, old: str, new: str) -> None:
    path = victim.directory / MANIFEST
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def config_text(victim: Victim, old: str, new: str) -> None:
    path = victim.directory / PEFT_CONFIG
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    victim.reseal()


NESTED = "[" * 100_000
LONG_NUMBER = "9" * 5_000  # Python refuses to print it
ENDLESS = r"((?:.|..)*)[A-Z]"
"""A pattern that takes for ever on a module's name."""


DAMAGE: dict[str, tuple[Callable[[Victim], object], str]] = {
    # files
    "no weights": (lambda v: (v.directory / PEFT_WEIGHTS).unlink(), "files"),
    "no config": (lambda v: (v.directory / PEFT_CONFIG).unlink(), "files"),
    "pickle instead": (pickled, "never read"),
    "pickle under the name": (pickle_under_the_name, "weights header|weights file"),
    "link out": (lambda v: replace(v.directory, PEFT_WEIGHTS, Path("/etc/hostname")), "containment"),
    "link to a sibling": (lambda v: (v.directory / "more").symlink_to(v.directory / PEFT_CONFIG), "containment"),
    "link in a circle": (lambda v: v.instead(PEFT_WEIGHTS, lambda p: p.symlink_to(p.name)), "containment"),
    "pipe for weights": (lambda v: v.instead(PEFT_WEIGHTS, os.mkfifo), "containment.*pipe"),
    "pipe for a config": (lambda v: v.instead(PEFT_CONFIG, os.mkfifo), "containment.*pipe"),
    "pipe for a manifest": (lambda v: v.instead(MANIFEST, os.mkfifo), "containment.*pipe"),
    "pipe beside": (lambda v: os.mkfifo(v.directory / "report"), "containment.*pipe"),
    "device for a manifest": (lambda v: v.instead(MANIFEST, lambda p: p.symlink_to("/dev/zero")), "containment"),
    "directory for weights": (lambda v: v.instead(PEFT_WEIGHTS, Path.mkdir), "files.*directory"),
    "directory for a config": (lambda v: v.instead(PEFT_CONFIG, Path.mkdir), "files.*directory"),
    "directory for a manifest": (lambda v: v.instead(MANIFEST, Path.mkdir), "manifest"),
    "hard link to a file outside": (hard_link_out, "digest of notes.txt"),
    "pickle beside": (lambda v: torch.save({}, v.directory / "adapter_model.bin"), "digest of adapter_model.bin"),
    "8 GiB of nothing": (lambda v: sparse(v.directory / "notes.txt"), "directory size"),
    "8 GiB of nothing for weights": (lambda v: sparse(v.directory / PEFT_WEIGHTS), "directory size"),
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
    "header longer than any file": (lambda v: v.weights(b"\xff" * 8 + b"{}"), "weights header"),
    "header nested too deep": (lambda v: v.weights(header_text(NESTED.encode())), "weights file"),
    "header is not UTF-8": (lambda v: v.weights(header_text(b'{"\xff": 1}')), "weights file"),
    "header without dtypes": (lambda v: v.weights(header(x={"shape": [1]})), "weights file"),
    "base64 for weights": (
        lambda v: v.weights(base64.b64encode((v.directory / PEFT_WEIGHTS).read_bytes())),
        "weights header",
    ),
    "tensors that overlap": (
        lambda v: v.weights(header(x=f32(2, at=(0, 8)), y=f32(2, at=(4, 12))) + bytes(12)),
        "weights file",
    ),
    "a hole between tensors": (
        lambda v: v.weights(header(x=f32(1, at=(0, 4)), y=f32(1, at=(8, 12))) + bytes(12)),
        "weights file",
    ),
    "offsets the wrong way round": (lambda v: v.weights(header(x=f32(1, at=(4, 0))) + bytes(4)), "weights file"),
    "negative offsets": (lambda v: v.weights(header(x=f32(1, at=(-4, 0))) + bytes(4)), "weights file"),
    "a shape that overflows": (lambda v: v.weights(header(x=f32(2**62, 2**62, at=(0, 4))) + bytes(4)), "weights file"),
    "a shape of 5,000 digits": (
        lambda v: v.weights(header_text(b'{"x": {"dtype": "F32", "shape": [%s]}}' % LONG_NUMBER.encode())),
        "weights file",
    ),
    "a shape that is not the bytes'": (lambda v: v.weights(header(x=f32(9, at=(0, 4))) + bytes(4)), "weights file"),
    "bytes behind the tensors": (
        lambda v: v.weights((v.directory / PEFT_WEIGHTS).read_bytes() + b"more"),
        "weights file",
    ),
    "integers": (
        lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.bias", torch.ones(2, dtype=torch.int64))),
        "weights dtype",
    ),
    "doubles": (lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.bias", torch.ones(2).double())), "weights dtype"),
    "truths": (
        lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.bias", torch.ones(2, dtype=torch.bool))),
        "weights dtype",
    ),
    "float8": (
        lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.bias", torch.ones(2).to(torch.float8_e4m3fn))),
        "weights dtype",
    ),
    "NaN in bf16": (
        lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.bias", torch.full((2,), torch.nan).bfloat16())),
        "finite values",
    ),
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
    "a head without classes": (
        lambda v: v.tensors(
            lambda t: [set_item(t, f"{HEAD}.weight", torch.ones(0, 384)), set_item(t, f"{HEAD}.bias", torch.ones(0))]
        ),
        "shape.*one class",
    ),
    "a head that is one number": (
        lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.weight", torch.tensor(1.0))),
        "shape.*classifier",
    ),
    "a LoRA of rank 0": (
        lambda v: v.tensors(
            lambda t: t.update(
                {f"{QUERY}.lora_A.weight": torch.ones(0, 384), f"{QUERY}.lora_B.weight": torch.ones(384, 0)}
            )
        ),
        "shape.*lora_A",
    ),
    "bias of another size": (
        lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.bias", torch.ones(3))),
        "shape.*bias",
    ),
    # config
    "config is no JSON": (lambda v: ((v.directory / PEFT_CONFIG).write_text("{"), v.reseal()), "config"),
    "config is a list": (lambda v: ((v.directory / PEFT_CONFIG).write_text("[]"), v.reseal()), "config"),
    "huge config": (lambda v: ((v.directory / PEFT_CONFIG).write_text(" " * 2**21), v.reseal()), "config"),
    "config is empty": (lambda v: v.raw(PEFT_CONFIG, ""), "config"),
    "config is not UTF-8": (lambda v: v.raw(PEFT_CONFIG, b'{"peft_type": "\xff"}'), "config"),
    "config nested too deep": (lambda v: v.raw(PEFT_CONFIG, NESTED), "config"),
    "config without a type": (lambda v: v.raw(PEFT_CONFIG, "{}"), "config.*peft_type"),
    "rank of 5,000 digits": (lambda v: config_text(v, '"r": 4', f'"r": {LONG_NUMBER}'), "config.*r"),
    "rank that overflows": (lambda v: v.config(r=2**64), "config.*r"),
    "negative rank": (lambda v: v.config(r=-4), "config.*r"),
    "rank in words": (lambda v: v.config(r="four"), "config.*r"),
    "rank 0 by pattern": (lambda v: v.config(rank_pattern={"query": 0}), "config.*rank_pattern"),
    "another rank by pattern": (lambda v: v.config(rank_pattern={"query": 2}), "shape.*lora_A"),
    "alpha is NaN": (lambda v: v.config(lora_alpha=float("nan")), "config.*lora_alpha"),
    "alpha is infinite": (lambda v: v.config(alpha_pattern={"query": float("inf")}), "config.*alpha_pattern"),
    "alpha that overflows": (lambda v: v.config(lora_alpha=1e300), "finite values.*alpha"),
    "a pattern that is none": (lambda v: v.config(target_modules="(query|value"), "config.*no pattern"),
    "a pattern for ranks that is none": (lambda v: v.config(rank_pattern={"*": 4}), "config.*no pattern"),
    "a pattern that takes for ever": (lambda v: v.config(target_modules=ENDLESS), "config.*after 1 s"),
    "a pattern for alphas that takes for ever": (
        lambda v: v.config(alpha_pattern={ENDLESS: 1}),
        "config.*after 1 s",
    ),
    "20,000 patterns": (
        lambda v: v.config(rank_pattern={f"m{index}": 4 for index in range(20_000)}),
        "config.*patterns",
    ),
    "another rank in the config": (lambda v: v.config(r=8), "shape.*lora_A"),
    "rank 0": (lambda v: v.config(r=0), "config.*r"),
    "rank over the limit": (lambda v: v.config(r=4096), "rank.*MAX_RANK"),
    "more targets in the config": (lambda v: v.config(target_modules=["query", "value", "key"]), "tensors.*key"),
    "fewer targets in the config": (lambda v: v.config(target_modules=["query"]), "tensors.*value"),
    "a saved module that is not there": (lambda v: v.config(modules_to_save=["classifier", "pooler"]), "pooler"),
    "DoRA": (lambda v: v.config(use_dora=True), "LoRA form.*DoRA"),
    "PiSSA": (lambda v: v.config(init_lora_weights="pissa"), "LoRA form.*pissa"),
    "IA3": (lambda v: v.config(peft_type="IA3"), "LoRA form.*IA3"),
    "OLoRA": (lambda v: v.config(init_lora_weights="olora"), "LoRA form.*olora"),
    "an unknown type": (lambda v: v.config(peft_type="NOT_A_TYPE"), "LoRA form.*NOT_A_TYPE"),
    "replicated layers": (lambda v: v.config(layer_replication=[[0, 6], [0, 6]]), "LoRA form.*replicated"),
    "LoRA on raw parameters": (lambda v: v.config(target_parameters=["weight"]), "LoRA form.*raw parameters"),
    "a bias on lora_B": (lambda v: v.config(lora_bias=True), "LoRA form.*lora_bias"),
    "trained biases": (lambda v: v.config(bias="all"), "LoRA form.*all"),
    # manifest
    "manifest is no JSON": (lambda v: (v.directory / MANIFEST).write_text("nonsense"), "manifest"),
    "manifest is empty": (lambda v: v.raw(MANIFEST, ""), "manifest"),
    "manifest is not UTF-8": (lambda v: v.raw(MANIFEST, b'{"name": "\xff"}'), "manifest"),
    "manifest is base64": (
        lambda v: v.raw(MANIFEST, base64.b64encode((v.directory / MANIFEST).read_bytes())),
        "manifest",
    ),
    "manifest nested too deep": (lambda v: v.raw(MANIFEST, '{"metrics": ' + NESTED), "manifest"),
    "manifest of 17 MiB": (lambda v: v.raw(MANIFEST, " " * (17 * 2**20)), "manifest.*at most"),
    "unknown schema": (lambda v: v.says(schema_version=2), "manifest.*schema_version"),
    "unknown key": (lambda v: v.says(surprise=1), "manifest.*surprise"),
    "another name": (lambda v: v.says(name="movies"), "manifest name"),
    "another version": (lambda v: v.says(version=7), "manifest name"),
    "a version of 5,000 digits": (
        lambda v: says_text(v, '"version": 1', f'"version": {LONG_NUMBER}'),
        "manifest.*out of range",
    ),
    "a digest that is none": (lambda v: v.says(files={PEFT_CONFIG: "sha256"}), "manifest.*files"),
    "a base without a digest": (lambda v: v.says(base={"id": "other/base"}), "manifest.*sha256"),
    "wrong base": (lambda v: v.says(base={"id": "other/base", "sha256": "0" * 64}), "base model.*other/base"),
    "doubled label": (lambda v: v.says(labels=["same", "same"], golden=[]), "manifest.*differ"),
    "no labels": (lambda v: v.says(labels=[], golden=[]), "manifest.*labels"),
    "an empty label": (lambda v: v.says(labels=["", "positive"]), "manifest.*labels"),
    "a label that is a number": (lambda v: v.says(labels=[1, 2]), "manifest.*labels"),
    "a label of half a surrogate": (lambda v: v.says(labels=["\ud800", "positive"]), "manifest"),
    "one label too many": (lambda v: v.says(labels=["a", "b", "c"], golden=[]), "labels"),
    "a lying digest": (
        lambda v: v.says(files={PEFT_CONFIG: "0" * 64, PEFT_WEIGHTS: file_sha256(v.directory / PEFT_WEIGHTS)}),
        f"digest of {PEFT_CONFIG}",
    ),
    "no digest of the weights": (lambda v: v.says(files={}), "digest"),
    "a digest of a file outside": (lambda v: v.says(files={"../../etc/passwd": "0" * 64}), "digest"),
    "longer than the base reads": (lambda v: v.says(max_tokens=100_000), "max tokens"),
    "negative max_tokens": (lambda v: v.says(max_tokens=-1), "manifest.*max_tokens"),
    "max_tokens of 5,000 digits": (
        lambda v: says_text(v, '"max_tokens": 128', f'"max_tokens": {LONG_NUMBER}'),
        "manifest.*out of range",
    ),
    "golden infinity": (lambda v: v.says(golden=[{"text": "x", "logits": [float("inf"), 1]}]), "manifest.*golden"),
    "too many golden texts": (lambda v: v.says(golden=[{"text": "x", "logits": [1, 1]}] * 65), "manifest.*golden"),
    "a metric that is NaN": (
        lambda v: v.says(metrics={"accuracy": {"value": float("nan"), "low": 0, "high": 1, "n": 9}}),
        "manifest.*metrics",
    ),
    "golden NaN": (lambda v: v.says(golden=[{"text": "x", "logits": [float("nan"), 1]}]), "manifest.*golden"),
    "golden of another width": (lambda v: v.says(golden=[{"text": "x", "logits": [1]}]), "manifest"),
    "temperature 0": (lambda v: v.says(temperature=0), "manifest.*temperature"),
    "negative temperature": (lambda v: v.says(temperature=-1), "manifest.*temperature"),
    "a temperature that overflows": (lambda v: v.says(temperature=1e-300), "manifest.*temperature"),
    "a temperature that is infinite": (lambda v: v.says(temperature=float("inf")), "manifest.*temperature"),
}

# What only running it shows.
LIES: dict[str, tuple[Callable[[Victim], object], str]] = {
    "wrong golden logits": (
        lambda v: v.says(golden=[{"text": "a fine film", "logits": [9.0, -9.0]}]),
        "golden logits",
    ),
    "golden logits of another text": (lambda v: says_text(v, '"text": "a ', '"text": "no '), "golden logits"),
    "labels the other way round in the head": (
        lambda v: v.tensors(lambda t: set_item(t, f"{HEAD}.weight", t[f"{HEAD}.weight"].flip(0).contiguous())),
        "golden logits",
    ),
    "negative alpha": (lambda v: v.config(lora_alpha=-8), "golden logits"),
    "another alpha": (lambda v: v.config(lora_alpha=9), "golden logits"),
    "rsLoRA that is none": (lambda v: v.config(use_rslora=True), "golden logits"),
    "a LoRA that counts for nothing": (
        lambda v: v.tensors(lambda t: t[f"{QUERY}.lora_B.weight"].zero_()),
        "golden logits",
    ),
    "finite weights whose logits are not": (
        lambda v: v.tensors(lambda t: t[f"{HEAD}.weight"].fill_(3e38)),
        "golden logits",
    ),
}


def damaged(registry: Registry, source: Path, damage: str, name: str = "victim") -> Victim:
    """A good adapter, published and then damaged."""
    victim = Victim(registry, source, name)
    (DAMAGE | LIES)[damage][0](victim)
    return victim
