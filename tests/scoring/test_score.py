"""`tonearm score` on a real Ray: what the engine says, each row exactly once, also when it is killed on the way."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from adapters.base_model import BaseModelFiles
from adapters.reference import AdapterId
from adapters.store import Registry
from engine.engine import Engine
from engine.rows import Answer, Row
from scoring.units import cut, find_input
from scoring.worker import Scorer, Task
from tests.factory import AdapterShape, save_adapter

pytest.importorskip("ray", reason="pip install 'tonearm[score]'")

ROOT = Path(__file__).parents[2]
SMALL_UNITS = """
import scoring.score
scoring.score.score.__kwdefaults__["rows_at_once"] = 16
from tonearm import main
main()
"""
"""The command, with units that a test has many of."""


@pytest.fixture(scope="module")
def registry(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    root = tmp_path_factory.mktemp("scoring")
    found = Registry(root / "registry")
    found.publish(save_adapter(root / "movies", base, AdapterShape(seed=1), name="movies"), "movies")
    tone = AdapterShape(labels=("negative", "neutral", "positive"), rank=2, seed=2, max_tokens=12)
    found.publish(save_adapter(root / "tone", base, tone, name="tone"), "tone")
    return found


def _command(*arguments: str, registry: Registry) -> list[str]:
    return [sys.executable, "-c", SMALL_UNITS, "score", *arguments, "--registry", str(registry.root)]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def _score(*arguments: str, registry: Registry) -> subprocess.CompletedProcess[str]:
    command = _command(*arguments, registry=registry)
    return subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=240, check=False)


def _write(path: Path, rows: int) -> list[str]:
    texts = [f"sentence number {at} says {'much ' * (at % 9)}of {at * 7919 % 101}" for at in range(rows)]
    path.write_text("".join(json.dumps({"id": at, "text": text}) + "\n" for at, text in enumerate(texts)))
    return texts


def _parts(output: Path) -> list[dict[str, Any]]:
    return [
        row for part in sorted(output.glob("part-*.parquet")) for row in pyarrow.parquet.read_table(part).to_pylist()
    ]


def test_it_says_what_the_engine_says_and_resumes_after_kills(
    registry: Registry, base: BaseModelFiles, tmp_path: Path
) -> None:
    texts = _write(tmp_path / "in.jsonl", 150)
    output = tmp_path / "out"
    arguments = [
        str(tmp_path / "in.jsonl"),
        "--adapter",
        "movies,tone",
        "--output",
        str(output),
        "--scores",
        "--workers",
        "1",
    ]
    killed = subprocess.Popen(
        _command(*arguments, registry=registry),
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not list(output.glob("_units/*.json")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = len(list(output.glob("_units/*.json")))
    assert not (output / "_done.json").exists() or before == 10
    ended = _score(*arguments, registry=registry)
    assert ended.returncode == 0, ended.stderr
    assert "of 10 units were done before" in ended.stdout and "150 rows in 10 parts" in ended.stdout
    rows = _parts(output)
    assert [row["id"] for row in rows] == list(range(150))
    engine = Engine(base, capacity=2)
    ids = [AdapterId("movies", 1), AdapterId("tone", 1)]
    for adapter in ids:
        engine.attach(engine.read(registry.directory(adapter), adapter))
    outcomes, _ = engine.classify([Row(text, adapter) for text in texts for adapter in ids])
    for at, outcome in enumerate(outcomes):
        assert isinstance(outcome, Answer)
        row, name = rows[at // 2], ids[at % 2].name
        assert (row[f"{name}.label"], row[f"{name}.truncated"]) == (outcome.label, outcome.truncated)
        for label, score in zip(outcome.labels, outcome.scores, strict=True):
            assert row[f"{name}.score.{label}"] == pytest.approx(score, abs=1e-4)
    done = json.loads((output / "_done.json").read_text())
    assert done["rows"] == 150 and sum(done["labels"]["tone"].values()) == 150

    # The same again has nothing to do; another input, or another adapter, is another output.
    assert "10 of 10 units were done before" in _score(*arguments, registry=registry).stdout
    other = _score(arguments[0], "--adapter", "movies", *arguments[3:], registry=registry)
    assert other.returncode == 1 and "expected an output of the same" in other.stderr
    _write(tmp_path / "in.jsonl", 151)
    changed = _score(*arguments, registry=registry)
    assert changed.returncode == 1 and "an output of the same input" in changed.stderr


def _task(registry: Registry, base: BaseModelFiles, output: Path, **fields: Any) -> Task:
    usual: dict[str, Any] = {"text": "text", "format": "parquet", "on_error": "fail"}
    return Task(
        base_model=base.id,
        registry=str(registry.root),
        adapters=(("movies", "movies@1"),),
        output=str(output),
        windows=False,
        all_scores=False,
        threads=1,
        **usual | fields,
    )


def test_rows_that_cannot_be_scored(registry: Registry, base: BaseModelFiles, tmp_path: Path) -> None:
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["n", "body"], [1, "fine"], [2, ""], [3, "two\nlines"]])
    source = find_input(str(tmp_path / "in.csv"))
    task = _task(registry, base, tmp_path / "kept", text="body", format="csv", on_error="null")
    done = Scorer(task, source.filesystem).score(next(cut(source, 100)))
    assert (done.rows, done.failed, done.problem) == (3, 1, None)
    rows = list(csv.DictReader((tmp_path / "kept" / "part-000000.csv").open(newline="")))
    assert [row["n"] for row in rows] == ["1", "2", "3"]
    assert rows[1]["error"] == "body is empty, expected text" and rows[1]["movies.label"] == ""
    assert rows[2]["body"] == "two\nlines" and rows[2]["movies.label"] in ("negative", "positive")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"id": 1, "body": "x"}', "line 1: there is no column 'text', found id, body"),
        ('{"text": "x"}\n{"text": null}', "line 2: text is 'None', expected text; --on-error null goes on without"),
        ('{"text": "x", "movies.label": 3}', "line 1: the column 'movies.label' is one that scoring writes"),
    ],
)
def test_a_row_that_ends_the_run_is_named(
    registry: Registry, base: BaseModelFiles, tmp_path: Path, content: str, problem: str
) -> None:
    (tmp_path / "in.jsonl").write_text(content + "\n")
    source = find_input(str(tmp_path / "in.jsonl"))
    task = _task(registry, base, tmp_path / "out")
    done = Scorer(task, source.filesystem).score(next(cut(source, 100)))
    assert done.problem is not None and problem in done.problem
    assert not (tmp_path / "out").exists()


def test_an_unknown_adapter_is_named_with_its_neighbours(registry: Registry, tmp_path: Path) -> None:
    _write(tmp_path / "in.jsonl", 3)
    arguments = [str(tmp_path / "in.jsonl"), "--adapter", "moveis", "--output", str(tmp_path / "out")]
    found = _score(*arguments, registry=registry)
    assert found.returncode == 1 and "movies" in found.stderr
