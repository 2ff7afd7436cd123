"""`tonearm.json`: what an adapter directory says of itself. Written last, its presence is the commit."""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.errors import VerificationError
from adapters.reference import NAME

MANIFEST = "tonearm.json"
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"

MAX_MANIFEST_BYTES = 16 * 2**20
"""A manifest is read whole, so its size is bounded before that."""

MAX_COUNT = 2**31 - 1
"""Python refuses to print an integer of some thousand digits; JSON can hold one."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Label = Annotated[str, Field(min_length=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseReference(_Frozen):
    """The base model an adapter was trained on."""

    id: str
    revision: str | None = None
    sha256: Sha256


class LoraShape(_Frozen):
    """Largest rank and targeted module names; rank 0 and no targets is a head alone."""

    rank: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    targets: tuple[str, ...] = ()


class TrainingSet(_Frozen):
    """What it was trained on: a name for people, a digest of the rows, their number."""

    name: str
    sha256: Sha256
    examples: Annotated[int, Field(ge=1)]


class Metric(_Frozen):
    """A measured value with its 95 % interval over `n` examples."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    n: Annotated[int, Field(ge=1)]


class GoldenExample(_Frozen):
    """A text with the logits that training computed for it in fp32, in label order."""

    text: str
    logits: tuple[FiniteFloat, ...]


class Manifest(_Frozen):
    """Schema 1. `files` maps every other file of the directory, by its relative path, to its SHA-256."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    version: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    created: str
    """UTC, ISO 8601."""
    task: Literal["single_label", "multi_label"] = "single_label"
    description: str = ""
    base: BaseReference
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=10_000)]
    max_tokens: Annotated[int, Field(ge=3, le=MAX_COUNT)]
    truncation_side: Literal["left", "right"] = "right"
    lora: LoraShape
    training: TrainingSet | None = None
    metrics: dict[str, Metric] = {}
    temperature: Annotated[FiniteFloat, Field(ge=1e-3, le=1e3)] = 1.0
    golden: Annotated[tuple[GoldenExample, ...], Field(max_length=64)] = ()
    files: dict[str, Sha256]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            doubled = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise ValueError(f"labels must differ, {doubled} occur twice")
        for example in self.golden:
            if len(example.logits) != len(self.labels):
                raise ValueError(
                    f"golden text {example.text[:40]!r} has {len(example.logits)} logits for {len(self.labels)} labels"
                )
        return self


def read_manifest(directory: Path) -> Manifest:
    """Read and validate `tonearm.json`.

    Raises:
        VerificationError: it is no plain file, too large, no JSON, or does not fit the schema.
        OSError: it cannot be read.
    """
    where = f"{directory.parent.name}@{directory.name}"
    try:
        content = read_plain_file(directory / MANIFEST, MAX_MANIFEST_BYTES)
    except ValueError as error:
        expected = f"a plain file of at most {MAX_MANIFEST_BYTES} bytes"
        raise VerificationError(where, "manifest", expected, str(error)) from None
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or MANIFEST
        raise VerificationError(where, "manifest", "the manifest schema 1", f"{place}: {first['msg']}") from error


def read_plain_file(path: Path, max_bytes: int) -> bytes:
    """A file's bytes. Never waits: to open a pipe, or to read a device through a link, may take for ever.

    Raises:
        ValueError: it is a link, no plain file, or too large.
        OSError: it cannot be read.
    """
    if path.is_symlink():
        raise ValueError(f"{path.name} is a link")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path.name} is no plain file")
        if found.st_size > max_bytes:
            raise ValueError(f"{found.st_size} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        os.close(descriptor)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `tonearm.json` with its keys in the order of the model, readable by people."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def digest_files(directory: Path, held: Mapping[str, bytes] | None = None) -> dict[str, str]:
    """SHA-256 of every file below `directory` but the manifest itself, by POSIX relative path.

    Args:
        held: content of files that were read already, and are not read again.
    """
    held = held or {}
    files = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {
        name: hashlib.sha256(held[name]).hexdigest() if name in held else file_sha256(path)
        for name, path in files.items()
        if name != MANIFEST
    }


def weights_sha256(directory: Path) -> str:
    """Of an adapter's weights file."""
    return file_sha256(directory / PEFT_WEIGHTS)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
