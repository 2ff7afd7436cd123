"""Where bases come from: the package, a directory, the hub (a stand-in for its HTTP API); and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from adapters import base_model
from adapters.base_model import DEFAULT_BASE_MODEL, BaseModelFiles, find_base_model, weights_sha256
from adapters.errors import BaseModelError
from tests.hub import COMMIT, serve_model

FIND = """
import json, sys
from adapters.base_model import find_base_model
from adapters.errors import BaseModelError
for reference in sys.argv[1:]:
    try:
        found = find_base_model(reference)
    except BaseModelError as error:
        print(json.dumps({"error": str(error)}))
    else:
        files = sorted(path.name for path in found.directory.iterdir())
        print(json.dumps({"id": found.id, "revision": found.revision, "sha256": found.sha256, "files": files}))
"""


@pytest.fixture(scope="module")
def tiny(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model directory, with a pickled copy of the weights beside the safe one, as old uploads have."""
    directory = tmp_path_factory.mktemp("tiny")
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=30522
    )
    transformers.BertModel(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(base.directory).save_pretrained(directory)
    torch.save({"x": torch.ones(1)}, directory / "pytorch_model.bin")
    return directory


def find(references: list[str], endpoint: str, cache: Path, token: str | None = None) -> list[dict[str, object]]:
    """What `find_base_model` says to each, in a process of its own: its library reads the address when imported."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    environment.pop("HF_TOKEN", None)
    if token is not None:
        environment["HF_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, "-c", FIND, *references],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_default_comes_from_its_package(base: BaseModelFiles) -> None:
    assert (base.id, base.revision) == (DEFAULT_BASE_MODEL, None)
    assert base.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_a_package_that_is_not_the_original_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "_DEFAULT_SHA256", "0" * 64)
    with pytest.raises(BaseModelError, match="does not hold the original"):
        find_base_model()


def test_a_directory(tiny: Path) -> None:
    found = find_base_model(str(tiny))
    assert (found.directory, found.revision) == (tiny, None)
    assert found.sha256 == weights_sha256(tiny)


def test_pickled_weights_alone_are_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "pytorch_model.bin", tmp_path)
    with pytest.raises(BaseModelError, match=r"no model\.safetensors.*pytorch_model\.bin"):
        find_base_model(str(tmp_path))


def test_shards_have_one_digest(tiny: Path, tmp_path: Path) -> None:
    for shard in ("a.safetensors", "b.safetensors"):
        shutil.copy(tiny / "model.safetensors", tmp_path / shard)
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    before = weights_sha256(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"other")
    assert weights_sha256(tmp_path) != before


def test_the_hub(tiny: Path, tmp_path: Path) -> None:
    with serve_model("org/tiny", tiny) as endpoint:
        for found in find(["org/tiny", f"org/tiny@{COMMIT}"], endpoint, tmp_path / "cache"):
            assert found["id"] == "org/tiny"
            assert found["revision"] == COMMIT
            assert found["sha256"] == weights_sha256(tiny)
            assert "pytorch_model.bin" not in list(found["files"])  # type: ignore[call-overload]


def test_the_hub_wants_a_token(tiny: Path, tmp_path: Path) -> None:
    with serve_model("org/tiny", tiny, token="hf_secret") as endpoint:
        assert "HF_TOKEN" in str(find(["org/tiny"], endpoint, tmp_path / "without")[0]["error"])
        assert find(["org/tiny"], endpoint, tmp_path / "with", token="hf_secret")[0]["revision"] == COMMIT


def test_what_the_hub_does_not_have(tiny: Path, tmp_path: Path) -> None:
    with serve_model("org/tiny", tiny) as endpoint:
        unknown, misspelt = find(["org/other", "no/such/place"], endpoint, tmp_path)
        assert "'org/other'" in str(unknown["error"])
        assert "neither a directory nor a hub id" in str(misspelt["error"])
