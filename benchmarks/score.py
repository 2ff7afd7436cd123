"""Bulk scoring: `tonearm score` with one and two workers against the plain loop, rows a second.

The plain loop is what one would write without it: `transformers` and PEFT, the table in batches of 32 as it comes, each
padded to its longest row. Every side writes its labels to Parquet, and has all cores. A whole run counts, start and end
included; beside it the rate between the first unit done and the last, which is what a long table sees.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from adapters.store import SHIPPED
from benchmarks.load import texts_of
from benchmarks.measure import console, write

_ROOT = Path(__file__).parents[1]
_ADAPTER = "movies"
_LOOP = """
import sys, time, json
import pyarrow, pyarrow.parquet, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from adapters.base_model import find_base_model
source, target, adapter = sys.argv[1:]
base = find_base_model()
config = json.load(open(f"{adapter}/tonearm.json"))
labels = config["labels"]
tokenizer = AutoTokenizer.from_pretrained(base.directory)
model = AutoModelForSequenceClassification.from_pretrained(base.directory, num_labels=len(labels))
model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
texts = pyarrow.parquet.read_table(source).column("text").to_pylist()
began, said, scores = time.perf_counter(), [], []
with torch.inference_mode():
    for at in range(0, len(texts), 32):
        batch = tokenizer(
            texts[at : at + 32], padding=True, truncation=True, max_length=config["max_tokens"], return_tensors="pt"
        )
        best, place = (model(**batch).logits / config["temperature"]).softmax(1).max(1)
        said += [labels[one] for one in place.tolist()]
        scores += best.tolist()
pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": said, "score": scores}), target)
print(json.dumps({"steady_per_s": len(texts) / (time.perf_counter() - began)}))
"""


def run(data: Path | None, rows: int, rounds: int) -> None:
    """Measure and print."""
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "rows.parquet"
        texts = texts_of(data, rows)
        pyarrow.parquet.write_table(pyarrow.table({"text": (texts * (rows // len(texts) + 1))[:rows]}), source)
        sides: dict[str, list[dict[str, float]]] = {}
        answers: dict[str, list[str]] = {}
        for number in range(rounds):
            for name in ("the plain loop", "1 worker", "2 workers"):
                target = Path(place) / f"{name.replace(' ', '-')}-{number}"
                sides.setdefault(name, []).append(_turn(name, source, target, rows))
                answers[name] = _labels(target)
    first, *others = answers.values()
    differ = max(sum(one != other for one, other in zip(first, each, strict=True)) for each in others)
    table = Table("side", "rows/s, whole run", "ratio", "rows/s, steady", "ratio", title=f"{rows:,} rows, {_ADAPTER}")
    for name, turns in sides.items():
        shown = []
        for key in ("whole_per_s", "steady_per_s"):
            ratios = [turn[key] / loop[key] for turn, loop in zip(turns, sides["the plain loop"], strict=True)]
            shown.append(f"{statistics.median(turn[key] for turn in turns):,.0f}")
            shown.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        table.add_row(name, *shown)
    console.print(table)
    console.print(f"labels that differ from the plain loop's: {differ} of {rows:,}")
    write("score", {"rows": rows, "sides": sides, "differ": differ})


def _turn(name: str, source: Path, target: Path, rows: int) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": str(os.cpu_count())}
    if name == "the plain loop":
        target.mkdir()
        adapter = SHIPPED / _ADAPTER / "1"
        command = [sys.executable, "-c", _LOOP, str(source), str(target / "part-0.parquet"), str(adapter)]
    else:
        workers = int(name[0])
        command = [sys.executable, "-m", "tonearm", "score", str(source), "--adapter", f"{_ADAPTER}@1"]
        command += ["--output", str(target), "--workers", str(workers)]
        command += ["--threads", str(max(1, (os.cpu_count() or 1) // workers))]
        environment["OMP_NUM_THREADS"] = command[-1]
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True, check=False)
    took_s = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = {"whole_per_s": rows / took_s}
    if name == "the plain loop":
        return found | json.loads(done.stdout.splitlines()[-1])
    # Each unit leaves a file when it is done; the first one's time holds the start.
    notes = target.glob("_units/*.json")
    units = sorted((note.stat().st_mtime, json.loads(note.read_text())["rows"]) for note in notes)
    after_first = sum(count for _, count in units[1:])
    return found | {"steady_per_s": after_first / (units[-1][0] - units[0][0])}


def _labels(target: Path) -> list[str]:
    import pyarrow.parquet

    found: list[str] = []
    for part in sorted(target.glob("part-*.parquet")):
        table = pyarrow.parquet.read_table(part)
        name = "label" if "label" in table.column_names else f"{_ADAPTER}.label"
        found += table.column(name).to_pylist()
    return found
