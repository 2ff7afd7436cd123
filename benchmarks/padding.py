"""Padding waste: micro-batches in arrival order against planned ones, on a mix of short and long texts.

Texts come from a labelled set's directory where one is given (`--data`), else lengths are drawn from two log-normal
distributions that resemble film sentences and whole film reviews.
"""

import json
import math
import random
import statistics
import time
from pathlib import Path

from rich.table import Table

from adapters.base_model import find_base_model
from benchmarks.measure import console, write
from engine.engine import PASS_COST_TOKENS
from engine.plan import MicroBatch, plan

_TOKEN_BUDGET = 8192
_ROWS_AT_ONCE = 64
_MAX_TOKENS = 512


def lengths_of(data: Path | None, count: int) -> list[int]:
    """Token lengths of a shuffled mix, four short texts to a long one."""
    chosen = random.Random(3)
    if data is None:
        short = [round(math.exp(chosen.gauss(3.1, 0.5))) + 2 for _ in range(count * 4 // 5)]
        long = [round(math.exp(chosen.gauss(6.6, 0.4))) + 2 for _ in range(count // 5)]
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(find_base_model().directory)
        texts = {
            name: [json.loads(line)["text"] for line in (data / name / "validation.jsonl").open()]
            for name in ("sst2", "movie_reviews")
        }
        short, long = ([len(ids) for ids in tokenizer(texts[name])["input_ids"]] for name in texts)
        short, long = chosen.choices(short, k=count * 4 // 5), chosen.choices(long, k=count // 5)
    mixed = [max(3, min(length, _MAX_TOKENS)) for length in (*short, *long)]
    chosen.shuffle(mixed)
    return mixed


def arrival_order(lengths: list[int]) -> list[MicroBatch]:
    """As rows come, a new batch when the budget is full: what a server without a planner does."""
    batches: list[MicroBatch] = []
    rows: list[int] = []
    for at in range(len(lengths)):
        longest = max(lengths[row] for row in (*rows, at))
        if rows and longest * (len(rows) + 1) > _TOKEN_BUDGET:
            batches.append(MicroBatch(tuple(rows), max(lengths[row] for row in rows)))
            rows = []
        rows.append(at)
    batches.append(MicroBatch(tuple(rows), max(lengths[row] for row in rows)))
    return batches


def run(data: Path | None = None, count: int = 6400) -> None:
    """Measure and print, on `count` texts."""
    lengths = lengths_of(data, count)
    table = Table("order", "padding waste", "passes for 64 rows", "planning ms for 64 rows", title="padding waste")
    found = {}
    planned = {
        "arrival order": arrival_order,
        "planned": lambda rows: plan(rows, token_budget=_TOKEN_BUDGET, pass_cost_tokens=PASS_COST_TOKENS),
    }
    for name, cut in planned.items():
        real = padded = passes = 0
        taken = []
        for start in range(0, len(lengths), _ROWS_AT_ONCE):
            rows = lengths[start : start + _ROWS_AT_ONCE]
            started = time.perf_counter()
            batches = cut(rows)
            taken.append(time.perf_counter() - started)
            real += sum(rows)
            padded += sum(batch.padded_tokens for batch in batches)
            passes += len(batches)
        waste, calls = 1 - real / padded, len(taken)
        found[name] = {"waste": waste, "passes": passes / calls, "planning_ms": statistics.median(taken) * 1e3}
        table.add_row(name, f"{waste:.1%}", f"{passes / calls:.1f}", f"{found[name]['planning_ms']:.2f}")
    console.print(table)
    write("padding", found)
