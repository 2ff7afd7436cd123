"""What must hold before an adapter is served, but for the golden logits, which need the engine.

`read_adapter` reads a directory once (each file's bytes are hashed and used, never read twice) and returns it in the
bank's own form, or raises `VerificationError` naming the check, what was expected and what was found.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from adapters.base_model import weights_sha256
from adapters.errors import BaseModelError, VerificationError
from adapters.manifest import (
    MANIFEST,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    GoldenExample,
    Manifest,
    digest_files,
    read_manifest,
)
from adapters.peft_config import PeftLoraConfig
from adapters.reference import AdapterId

GOLDEN_TOLERANCE = 1e-4
"""Largest difference of a golden logit from what training computed, in fp32."""

_MAX_HEADER_BYTES = 8 * 2**20
_MAX_CONFIG_BYTES = 2**20
_MAX_WEIGHTS_BYTES = 2 * 2**30
_MAX_DIRECTORY_BYTES = 2 * _MAX_WEIGHTS_BYTES
"""All of its files are hashed, and a sparse one has any size at no cost."""

_PREFIX = "base_model.model."
_LORA_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_DTYPES = {"F32", "F16", "BF16"}


@dataclass(frozen=True)
class BaseLayout:
    """What an adapter is checked against: the shape of the base with a classification head on it.

    Attributes:
        id, sha256: the base model and the digest of its weights.
        linears: (D_in, D_out) of every linear module, by dotted name.
        parameters: shape of every parameter, by dotted name.
        fresh: parameters that the base's own weights do not hold, so that an adapter must bring them.
        output: the linear module that makes the logits; its first dimension is the adapter's own.
        max_tokens: longest input, special tokens included.
    """

    id: str
    sha256: str
    linears: Mapping[str, tuple[int, int]]
    parameters: Mapping[str, tuple[int, ...]]
    fresh: frozenset[str]
    output: str
    max_tokens: int


@dataclass(frozen=True)
class LoraPair:
    """One module's LoRA: delta = x @ a @ b."""

    a: Tensor  # [D, R] fp32
    b: Tensor  # [R, D_out] fp32, scaling folded in


@dataclass(frozen=True, eq=False)
class Adapter:
    """A verified adapter in the bank's form.

    Attributes:
        lora: by dotted module name; empty for a head alone.
        saved: full parameters that replace the base's, by dotted parameter name, fp32.
        verified: it has a manifest, and all that the manifest says was checked.
    """

    id: AdapterId
    labels: tuple[str, ...]
    max_tokens: int
    truncation_side: Literal["left", "right"]
    temperature: float
    multi_label: bool
    golden: tuple[GoldenExample, ...]
    verified: bool
    lora: Mapping[str, LoraPair] = field(repr=False)
    saved: Mapping[str, Tensor] = field(repr=False)

    @property
    def rank(self) -> int:
        return max((pair.a.shape[1] for pair in self.lora.values()), default=0)

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        tensors = [tensor for pair in self.lora.values() for tensor in (pair.a, pair.b)]
        return sum(tensor.nbytes for tensor in (*tensors, *self.saved.values()))


def read_adapter(directory: Path, adapter: AdapterId, layout: BaseLayout, *, max_rank: int) -> Adapter:
    """Read and check everything in an adapter directory that can be checked without running it.

    Args:
        directory: an adapter directory; nothing outside it is read.
        adapter: the name and version it is registered under.
        layout: the base it will be served on.
        max_rank: largest LoRA rank the bank takes.

    Raises:
        VerificationError: some check failed.
    """
    return _Reader(directory, adapter, layout, max_rank).read()


class _Reader:
    """One pass over one directory; its methods are the checks, in the order in which they run."""

    def __init__(self, directory: Path, adapter: AdapterId, layout: BaseLayout, max_rank: int) -> None:
        self.directory = directory
        self.adapter = adapter
        self.layout = layout
        self.max_rank = max_rank

    def read(self) -> Adapter:
        self.check_plain_files()
        # Read once: the bytes that are hashed are the bytes that are used.
        self.content = {
            PEFT_CONFIG: self.read_bounded(PEFT_CONFIG, "config", _MAX_CONFIG_BYTES),
            PEFT_WEIGHTS: self.read_bounded(PEFT_WEIGHTS, "weights size", _MAX_WEIGHTS_BYTES),
        }
        manifest = read_manifest(self.directory) if (self.directory / MANIFEST).exists() else None
        if manifest is not None:
            self.check_manifest(manifest)
        config = self.read_config()
        if manifest is None:
            self.check_base_by_config(config)
        tensors = self.read_tensors()
        try:
            lora = self.check_lora(config, tensors)
            saved = tensors  # check_lora has taken its own out
            self.check_saved_shapes(saved)
            self.check_saved_whole(config, saved)
        except TimeoutError as error:
            self.fail("config", "patterns that are matched in no time", str(error))
        classes = saved[f"{self.layout.output}.weight"].shape[0]
        if manifest is None:
            labels = tuple(f"LABEL_{index}" for index in range(classes))
            return Adapter(self.adapter, labels, self.layout.max_tokens, "right", 1.0, False, (), False, lora, saved)
        if len(manifest.labels) != classes:
            self.fail("labels", f"{classes}, as many as the head has rows", f"{len(manifest.labels)} in the manifest")
        return Adapter(
            self.adapter,
            manifest.labels,
            manifest.max_tokens,
            manifest.truncation_side,
            manifest.temperature,
            manifest.task == "multi_label",
            manifest.golden,
            True,
            lora,
            saved,
        )

    def fail(self, check: str, expected: str, found: str) -> NoReturn:
        raise VerificationError(str(self.adapter), check, expected, found)

    def check_plain_files(self) -> None:
        in_all = 0
        for path in self.directory.rglob("*"):
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                self.fail("containment", "plain files", f"{path.relative_to(self.directory)} is a link")
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                self.fail("containment", "plain files", f"{path.relative_to(self.directory)} is a pipe or a device")
            in_all += status.st_size
        if in_all > _MAX_DIRECTORY_BYTES:
            self.fail("directory size", f"at most {_MAX_DIRECTORY_BYTES} bytes", f"{in_all} bytes")
        for file in (PEFT_WEIGHTS, PEFT_CONFIG):
            path = self.directory / file
            if path.is_dir():
                self.fail("files", f"the file {file}", "a directory")
            if not path.is_file():
                others = sorted(other.name for other in self.directory.glob(f"{path.stem}.*"))
                pickled = f"{others[0]} (pickled weights are never read)" if others else "no such file"
                self.fail("files", file, pickled if file == PEFT_WEIGHTS else "no such file")

    def check_manifest(self, manifest: Manifest) -> None:
        named = AdapterId(manifest.name, manifest.version)
        if named != self.adapter:
            self.fail("manifest name", str(self.adapter), str(named))
        if manifest.base.sha256 != self.layout.sha256:
            self.fail(
                "base model",
                f"{self.layout.id} with weights {self.layout.sha256[:12]}…",
                f"trained on {manifest.base.id} with weights {manifest.base.sha256[:12]}…",
            )
        if manifest.max_tokens > self.layout.max_tokens:
            self.fail("max tokens", f"at most {self.layout.max_tokens}, as the base reads", str(manifest.max_tokens))
        found = digest_files(self.directory, self.content)
        for path in sorted(manifest.files.keys() | found.keys()):
            if manifest.files.get(path) != found.get(path):
                self.fail(
                    f"digest of {path}", manifest.files.get(path, "no such file"), found.get(path, "no such file")
                )
        for path in (PEFT_CONFIG, PEFT_WEIGHTS):
            if path not in manifest.files:
                self.fail("manifest files", f"a digest of {path}", "none")

    def read_bounded(self, file: str, check: str, max_bytes: int) -> bytes:
        size = (self.directory / file).stat().st_size
        if size > max_bytes:
            self.fail(check, f"at most {max_bytes} bytes", f"{size} bytes")
        return (self.directory / file).read_bytes()

    def read_config(self) -> PeftLoraConfig:
        try:
            config = PeftLoraConfig.model_validate_json(self.content[PEFT_CONFIG])
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or PEFT_CONFIG
            self.fail("config", "PEFT's LoraConfig", f"{place}: {first['msg']}")
        refusal = config.refusal()
        if refusal is not None:
            self.fail("LoRA form", *refusal)
        return config

    def check_base_by_config(self, config: PeftLoraConfig) -> None:
        """Without a manifest, the base is known by PEFT's `base_model_name_or_path`: an id, or a directory here."""
        named = config.base_model_name_or_path
        if named == self.layout.id or named == self.layout.id.partition("@")[0]:
            return
        found = str(named)
        if named and os.path.isdir(named):
            try:
                digest = weights_sha256(Path(named))
            except (BaseModelError, OSError) as error:
                self.fail("base model", self.layout.id, str(error))
            if digest == self.layout.sha256:
                return
            found = f"{named} with weights {digest[:12]}…"
        self.fail("base model", f"{self.layout.id} with weights {self.layout.sha256[:12]}…", found)

    def read_tensors(self) -> dict[str, Tensor]:
        content = self.content[PEFT_WEIGHTS]
        header_bytes = int.from_bytes(content[:8], "little")
        if header_bytes > min(_MAX_HEADER_BYTES, len(content)):
            self.fail("weights header", f"a safetensors header of at most {_MAX_HEADER_BYTES} bytes", str(header_bytes))
        try:
            header: dict[str, Any] = json.loads(content[8 : 8 + header_bytes])
            dtypes = {entry["dtype"] for key, entry in header.items() if key != "__metadata__"}
            if not dtypes <= _DTYPES:
                self.fail("weights dtype", "F32, F16 or BF16", ", ".join(sorted(dtypes - _DTYPES)))
            tensors = safetensors.torch.load(content)
        except (
            safetensors.SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            self.fail("weights file", "a whole safetensors file", str(error)[:200])
        stripped: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            if not key.startswith(_PREFIX):
                self.fail("tensor name", f"a name that begins with {_PREFIX}", key)
            if not torch.isfinite(tensor).all():
                self.fail("finite values", f"finite numbers in {key}", "NaN or infinity")
            stripped[key.removeprefix(_PREFIX)] = tensor.to(torch.float32)
        return stripped

    def check_lora(self, config: PeftLoraConfig, tensors: dict[str, Tensor]) -> dict[str, LoraPair]:
        """Takes what it uses out of `tensors`."""
        sides: dict[str, dict[str, Tensor]] = {}
        for key in [key for key in tensors if ".lora_" in key]:
            match = _LORA_KEY.fullmatch(key)
            if match is None:
                self.fail("LoRA form", "lora_A and lora_B on linear modules", key)
            if match["module"] not in self.layout.linears:
                self.fail("tensor name", "a linear module of the base", key)
            sides.setdefault(match["module"], {})[match["side"]] = tensors.pop(key)
        expected = config.targets(self.layout.linears, self.layout.output)
        for module in sorted(expected ^ sides.keys()):
            if module in expected:
                self.fail("tensors", f"LoRA on {module}, which target_modules names", "none in the file")
            self.fail("tensors", "LoRA on the modules that target_modules names alone", f"LoRA on {module}")
        pairs: dict[str, LoraPair] = {}
        for module, side in sides.items():
            if side.keys() != {"A", "B"}:
                missing = "lora_B" if "A" in side else "lora_A"
                self.fail("tensors", f"{module}.{missing}.weight", "none in the file")
            d_in, d_out = self.layout.linears[module]
            rank = config.rank(module)
            if rank > self.max_rank:
                self.fail("rank", f"at most {self.max_rank} (MAX_RANK)", f"{rank} on {module}")
            for name, tensor, shape in (("lora_A", side["A"], (rank, d_in)), ("lora_B", side["B"], (d_out, rank))):
                if tuple(tensor.shape) != shape:
                    self.fail("shape", f"{list(shape)} for {module}.{name}", str(list(tensor.shape)))
            b = (side["B"].T * config.scaling(module)).contiguous()
            if not torch.isfinite(b).all():
                self.fail("finite values", f"finite numbers in {module}.lora_B times alpha", "NaN or infinity")
            pairs[module] = LoraPair(side["A"].T.contiguous(), b)
        return pairs

    def check_saved_shapes(self, tensors: dict[str, Tensor]) -> None:
        parameters, output = self.layout.parameters, self.layout.output
        for key, tensor in tensors.items():
            if key not in parameters:
                self.fail("tensor name", "a parameter of the base with its head", key)
            # The number of classes is the adapter's own; everything else is the base's.
            free = 1 if key in (f"{output}.weight", f"{output}.bias") else 0
            if tuple(tensor.shape[free:]) != parameters[key][free:] or tensor.ndim != len(parameters[key]):
                self.fail("shape", f"{list(parameters[key])} for {key}", str(list(tensor.shape)))
        if f"{output}.weight" not in tensors:
            self.fail("tensors", f"a head: {output}.weight", "none in the file")
        if not tensors[f"{output}.weight"].shape[0]:
            self.fail("shape", f"at least one class in {output}.weight", "none")
        bias = tensors.get(f"{output}.bias")
        if bias is not None and bias.shape[0] != tensors[f"{output}.weight"].shape[0]:
            self.fail("shape", f"one {output}.bias a class", str(list(bias.shape)))

    def check_saved_whole(self, config: PeftLoraConfig, tensors: dict[str, Tensor]) -> None:
        """No module is saved by half, none is missing, and none is there that the config does not name."""
        parameters = self.layout.parameters
        for key in sorted(self.layout.fresh - tensors.keys()):
            self.fail("tensors", f"{key}, which the base's own weights do not hold", "none in the file")
        for module in {key.rpartition(".")[0] for key in tensors}:
            for key in parameters:
                if key.rpartition(".")[0] == module and key not in tensors:
                    self.fail("tensors", f"all of {module}, {key} too", "a part of it")
        for key in tensors:
            if not config.saves(key):
                self.fail("tensors", "modules that modules_to_save names alone", key)
        for name in config.modules_to_save or ():
            known = [key for key in parameters if config.matches(rf"(^|.*\.){name}\.", key)]
            missing = [key for key in known if key not in tensors]
            if missing:
                self.fail("tensors", f"{missing[0]}, which modules_to_save names", "none in the file")
