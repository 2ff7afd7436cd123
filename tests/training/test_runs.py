"""A run that is cut off goes on and ends the same, one that runs out of something says so, several processes agree."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from rich.console import Console
from transformers import DistilBertConfig, DistilBertModel

from adapters.errors import SettingsError
from adapters.manifest import PEFT_WEIGHTS
from adapters.reference import AdapterId
from adapters.store import Registry
from tests.training.conftest import MakeRecipe
from training.recipe import load_recipe
from training.tokenise import tokenise
from training.train import prepare, train

ROOT = Path(__file__).parents[2]

_DIE = """
import os, signal, sys
import safetensors.torch, torch
import training.fit, training.runs, training.train
from tonearm import main

moment, times = sys.argv[1], int(sys.argv[2])

def die_in(owner, name, half=None):
    real = getattr(owner, name)
    def dying(*args, **kwargs):
        global times
        times -= 1
        if times == 0:
            if half:
                half(*args)
            else:
                real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owner, name, dying)

def half_a_file(thing, path, *rest):
    open(path, "wb").write(b"half")

if moment == "checkpoint-half-written":
    die_in(torch, "save", half_a_file)
elif moment == "checkpoint-not-marked":
    die_in(training.fit._Whole, "on_save", lambda *rest: None)
elif moment == "checkpoint-whole":
    die_in(training.fit._Whole, "on_save")
elif moment == "fit-half-written":
    die_in(training.runs, "keep_member", lambda *rest: None)
    training.train.keep_member = training.runs.keep_member
elif moment == "saved":
    die_in(training.train, "save_and_reload")
elif moment == "published":
    die_in(training.train, "publish")
sys.argv = ["tonearm", *sys.argv[3:]]
main()
"""

MOMENTS = (
    ("checkpoint-half-written", 2),
    ("checkpoint-whole", 1),
    ("checkpoint-not-marked", 1),
    ("checkpoint-half-written", 5),
    ("fit-half-written", 1),
    ("saved", 1),
    ("published", 1),
)
SOME_MOMENTS = (MOMENTS[0], MOMENTS[4])
"""Each costs a process that imports all there is; `make soak` dies at every one."""


@pytest.fixture
def write_recipe(slices: Path, tmp_path: Path) -> Callable[..., Path]:
    """A recipe file that another process can read."""

    def write(**fields: Any) -> Path:
        data = {"name": "slices", **{split: str(slices / f"{split}.jsonl") for split in ("train", "validation")}}
        training = {"epochs": 4, "batch_size": 16, "learning_rate": 5e-3} | fields.pop("training", {})
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"name": "tiny", "data": data, "max_tokens": 32, "training": training} | fields))
        return path

    return write


def _run(*command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | more.pop("env", {})
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300, check=False, **more
    )


def _arguments(recipe: Path, root: Path) -> list[str]:
    return ["train", str(recipe), "--registry", str(root / "registry"), "--output", str(root / "runs")]


def _weights(root: Path, version: int = 1) -> bytes:
    return (Registry(root / "registry").directory(AdapterId("tiny", version)) / PEFT_WEIGHTS).read_bytes()


def _epochs(root: Path) -> list[dict[str, float]]:
    report = Registry(root / "registry").directory(AdapterId("tiny", 1)) / "report" / "metrics.json"
    epochs: list[dict[str, float]] = json.loads(report.read_text())["epochs"]
    return epochs


@pytest.mark.parametrize("moments", [SOME_MOMENTS, pytest.param(MOMENTS, marks=pytest.mark.soak)], ids=len)
def test_killed_again_and_again_it_ends_the_same(
    write_recipe: Callable[..., Path],
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    console: Console,
    moments: tuple[tuple[str, int], ...],
) -> None:
    # It stops early: a resumed run must not forget that it had.
    training = {"early_stopping_patience": 2, "epochs": 6}
    lora = {"rank": 2, "dropout": 0.1}
    recipe = write_recipe(base_model=str(tiny_bases["distilbert"]), lora=lora, training=training)
    whole = tmp_path / "whole"
    train(load_recipe(recipe), registry=whole / "registry", runs=whole / "runs", console=console)
    cut = tmp_path / "cut"
    for moment, times in moments:
        died = _run("-c", _DIE, moment, str(times), *_arguments(recipe, cut))
        assert died.returncode == -signal.SIGKILL, (moment, died.stdout, died.stderr)
    ended = _run("-m", "tonearm", *_arguments(recipe, cut))
    assert ended.returncode == 0, ended.stderr
    assert "(gone on with)" in ended.stdout and "published tiny@1" in ended.stdout
    assert Registry(cut / "registry").versions("tiny") == (1,)
    assert _weights(whole) == _weights(cut)
    directories = [path for path in (cut / "runs").glob("tiny-*") if path.is_dir()]
    assert len(directories) == 1 and not list(directories[0].glob("*/checkpoints"))
    assert _epochs(cut) == _epochs(whole)


def test_a_finished_run_is_not_gone_on_with(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console
) -> None:
    recipe = make_recipe(base_model=str(tiny_bases["distilbert"]))
    for version in (1, 2):
        published = train(recipe, registry=tmp_path / "registry", runs=tmp_path / "runs", console=console)
        assert published == AdapterId("tiny", version)
    assert len([path for path in (tmp_path / "runs").glob("tiny-*") if path.is_dir()]) == 2


def test_accumulated_batches_are_one_larger_batch(
    make_recipe: MakeRecipe, still_base: Path, tmp_path: Path, console: Console
) -> None:
    found = []
    for batch_size, steps in ((16, 1), (4, 4)):
        training = {"batch_size": batch_size, "gradient_accumulation_steps": steps, "epochs": 2}
        recipe = make_recipe(base_model=str(still_base), lora={"rank": 2}, training=training)
        root = tmp_path / str(batch_size)
        train(recipe, registry=root / "registry", runs=root / "runs", console=console)
        found.append(safetensors.torch.load(_weights(root)))
    assert all(torch.allclose(found[0][key], found[1][key], atol=2e-4) for key in found[0])


@pytest.fixture(scope="module")
def still_base(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base without dropout, which every process and every batch size would draw otherwise."""
    directory = tmp_path_factory.mktemp("still") / "still"
    torch.manual_seed(0)
    config = DistilBertConfig(
        dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64, dropout=0.0, seq_classif_dropout=0.0
    )
    DistilBertModel(config).save_pretrained(directory)
    for file in tiny_bases["distilbert"].glob("*"):
        if file.name.startswith(("tokenizer", "special", "vocab")):
            (directory / file.name).write_bytes(file.read_bytes())
    return directory


def test_two_processes_are_as_one(
    write_recipe: Callable[..., Path], still_base: Path, tmp_path: Path, console: Console
) -> None:
    recipe = write_recipe(
        base_model=str(still_base),
        lora={"rank": 2},
        transfer={"epochs": 1},
        training={"epochs": 2, "early_stopping_patience": 2},
    )
    one, two = tmp_path / "one", tmp_path / "two"
    train(load_recipe(recipe), registry=one / "registry", runs=one / "runs", console=console)
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517", "-m", "tonearm"]
    ended = _run(*command, *_arguments(recipe, two), env={"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("published tiny@1") == 1, ended.stdout
    assert Registry(two / "registry").versions("tiny") == (1,)
    ours, theirs = (safetensors.torch.load(_weights(root)) for root in (one, two))
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-3) for key in ours)


def test_a_batch_that_processes_cannot_share(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console, monkeypatch: Any
) -> None:
    monkeypatch.setattr("training.fit.world_size", lambda: 3)
    with pytest.raises(SettingsError, match="a multiple of the 3 processes"):
        recipe = make_recipe(base_model=str(tiny_bases["distilbert"]))
        train(recipe, registry=tmp_path / "registry", runs=tmp_path / "runs", console=console)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(
    ("full", "goes_on"),
    [("registry", False), *(pytest.param(full, True, marks=pytest.mark.soak) for full in ("runs", "registry"))],
)
def test_a_full_disk_is_named_and_nothing_half_published(
    write_recipe: Callable[..., Path],
    tiny_bases: dict[str, Path],
    small_disk: Path,
    tmp_path: Path,
    full: str,
    goes_on: bool,
) -> None:
    recipe = write_recipe(base_model=str(tiny_bases["distilbert"]), lora={"rank": 32}, training={"epochs": 1})
    places = {"runs": tmp_path / "runs", "registry": tmp_path / "registry"} | {full: small_disk / full}
    (small_disk / "ballast").write_bytes(b"x" * 600_000)
    arguments = ["train", str(recipe), "--registry", str(places["registry"]), "--output", str(places["runs"])]
    ended = _run("-m", "tonearm", *arguments)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert ended.stderr.startswith("tonearm: no space left to write"), ended.stderr
    assert ended.stderr.count("\n") == 1 and "the run goes on from its last epoch" in ended.stderr
    assert not Registry(places["registry"]).names()
    assert not list(places["registry"].glob("*/.publishing-*"))
    if not goes_on:
        return
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    ended = _run("-m", "tonearm", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert "(gone on with)" in ended.stdout or full == "runs"


def test_too_little_memory_is_named(
    write_recipe: Callable[..., Path], tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    recipe = write_recipe(base_model=str(tiny_bases["distilbert"]), training={"epochs": 1})
    # Enough to begin with, too little for a step: a pass is made to ask for more than there is.
    greedy = """
import resource, sys, torch, transformers
real = transformers.Trainer.training_step
def greedy(self, *args, **kwargs):
    torch.empty(1 << 46)
    return real(self, *args, **kwargs)
transformers.Trainer.training_step = greedy
from tonearm import main
sys.argv = ["tonearm", *sys.argv[1:]]
main()
"""
    ended = _run("-c", greedy, *_arguments(recipe, tmp_path))
    assert ended.returncode == 1, ended.stderr
    assert "tonearm: out of memory with training.batch_size=16 and max_tokens=32" in ended.stderr
    assert "training.batch_size=8 with training.gradient_accumulation_steps=2" in ended.stderr
    assert not Registry(tmp_path / "registry").names()


def test_tokens_are_kept_and_a_damaged_file_is_made_again(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    prepared = prepare(make_recipe(base_model=str(tiny_bases["distilbert"])), tmp_path)
    (first, second) = sorted((tmp_path / "tokens").iterdir())
    first.write_bytes(first.read_bytes()[:100])
    stamp = second.stat().st_mtime_ns
    again = tokenise(prepared.dataset, prepared.tokenizer, 32, cache=tmp_path / "tokens")
    assert second.stat().st_mtime_ns == stamp and len(list((tmp_path / "tokens").iterdir())) == 2
    plain = tokenise(prepared.dataset, prepared.tokenizer, 32)
    for split in ("train", "validation"):
        ours, kept = getattr(plain, split), getattr(again, split)
        assert np.array_equal(ours.ids, kept.ids) and np.array_equal(ours.starts, kept.starts)
        assert ours.truncated == kept.truncated
    tokenise(prepared.dataset, prepared.tokenizer, 16, cache=tmp_path / "tokens")
    assert len(list((tmp_path / "tokens").iterdir())) == 4


def test_trackers_are_told(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console
) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = make_recipe(base_model=str(tiny_bases["distilbert"]), report_to=["tensorboard"], training={"epochs": 2})
    train(recipe, registry=tmp_path / "registry", runs=tmp_path / "runs", console=console)
    (events,) = (tmp_path / "runs").glob("tiny-*/seed-0/tensorboard/**/events.out.tfevents.*")
    told = event_accumulator.EventAccumulator(str(events))
    told.Reload()
    assert [event.step for event in told.Scalars("eval/accuracy")] == [3, 6]
    assert len(told.Scalars("train/loss")) == 2


def test_a_tracker_that_is_not_there_is_named(
    make_recipe: MakeRecipe, tiny_bases: dict[str, Path], tmp_path: Path, console: Console, monkeypatch: Any
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SettingsError, match=r"report_to is 'wandb', expected its package: pip install 'tonearm\[wandb\]'"
    ):
        recipe = make_recipe(base_model=str(tiny_bases["distilbert"]), report_to=["wandb"])
        train(recipe, registry=tmp_path / "registry", runs=tmp_path / "runs", console=console)
