"""The bank against the plain base and against PEFT, on the same token ids in one process.

Sides, for a batch of B rows of T tokens:
- `base`: the engine without LoRA; what every ratio is to.
- `bank N`: the engine, the rows spread over N adapters.
- `peft mixed N`: PEFT's own mixed batch, `adapter_names`.
- `peft switching N`: `set_adapter`, one forward pass for each adapter's rows.
- `merged N`: one model with an adapter merged in for each adapter's rows (the time of N models, the memory of one).
- `transformers`: the plain model as its users run it.
- `onnxruntime`: the plain model, exported, where onnxruntime is installed.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.table import Table
from transformers import AutoModelForSequenceClassification

from adapters.base_model import BaseModelFiles, find_base_model
from adapters.reference import AdapterId
from adapters.store import Registry
from benchmarks.made import ALL_LINEAR, QUERY_VALUE, Targets, make_adapter, targeted, token_ids
from benchmarks.measure import Side, console, device, in_turn, matmul_flops_per_s, write
from engine.engine import Engine

ADAPTERS = 64


class Bench:
    """An engine and the same adapters in PEFT."""

    def __init__(self, root: Path, base: BaseModelFiles, *, rank: int, targets: Targets, peft: bool) -> None:
        self.engine = Engine(base, capacity=ADAPTERS)
        registry = Registry(root)
        self.ids: list[AdapterId] = []
        directories = []
        for seed in range(ADAPTERS):
            adapter = AdapterId(f"a{seed}", 1)
            directory = registry.root / adapter.name / "1"
            make_adapter(directory, base, self.engine.layout, rank=rank, targets=targets, seed=seed)
            self.engine.attach(self.engine.read(directory, adapter))
            self.ids.append(adapter)
            directories.append(directory)
        self.plain = AutoModelForSequenceClassification.from_pretrained(base.directory, num_labels=2).eval()
        self.peft: PeftModel | None = None
        if peft:
            model = AutoModelForSequenceClassification.from_pretrained(base.directory, num_labels=2)
            self.peft = PeftModel.from_pretrained(model, directories[0], adapter_name="a0")
            for seed in range(1, ADAPTERS):
                self.peft.load_adapter(directories[seed], f"a{seed}")
            self.peft.eval()

    def slots(self, rows: list[int]) -> list[int]:
        return [self.engine.slot(self.ids[adapter]) for adapter in rows]


def popularity(kind: str, rows: int, distinct: int) -> list[int]:
    """Which adapter each row asks for (the distributions of Punica's tests)."""
    chosen = random.Random(7)
    if kind == "identical":
        return [0] * rows
    if kind == "uniform":
        return [chosen.randrange(distinct) for _ in range(rows)]
    if kind == "zipf":
        return chosen.choices(range(distinct), weights=[1 / (rank + 1) for rank in range(distinct)], k=rows)
    return [row % distinct for row in range(rows)]


def groups(rows: list[int]) -> dict[int, list[int]]:
    """Adapter to its rows."""
    found: dict[int, list[int]] = {}
    for at, adapter in enumerate(rows):
        found.setdefault(adapter, []).append(at)
    return found


def sides(
    bench: Bench, ids: torch.Tensor, mixes: dict[str, list[int]], *, rivals: bool
) -> dict[str, Callable[[], Any]]:
    """The calls to time for one batch shape; `mixes` names which adapter each row asks for."""
    rows = ids.tolist()
    engine, mask = bench.engine, torch.ones_like(ids)
    zero = [0] * len(rows)
    calls: dict[str, Callable[[], Any]] = {"base": lambda: engine.forward(rows, zero, lora=False)}
    for name, mix in mixes.items():
        slots = bench.slots(mix)
        calls[f"bank {name}"] = lambda slots=slots: engine.forward(rows, slots)
    calls["transformers"] = lambda: bench.plain(input_ids=ids, attention_mask=mask)
    if rivals and bench.peft is not None:
        peft = bench.peft
        for name, mix in mixes.items():
            names = [f"a{adapter}" for adapter in mix]
            parts = [(f"a{adapter}", ids[at], mask[at]) for adapter, at in groups(mix).items()]

            def mixed(names: list[str] = names) -> None:
                peft(input_ids=ids, attention_mask=mask, adapter_names=names)

            def switching(parts: list[Any] = parts) -> None:
                for adapter, own_ids, own_mask in parts:
                    peft.set_adapter(adapter)
                    peft(input_ids=own_ids, attention_mask=own_mask)

            def merged(parts: list[Any] = parts) -> None:
                for _, own_ids, own_mask in parts:
                    bench.plain(input_ids=own_ids, attention_mask=own_mask)

            calls |= {f"peft mixed {name}": mixed, f"peft switching {name}": switching, f"merged {name}": merged}
    return calls


def onnx_session(model: Any, directory: Path) -> Callable[[torch.Tensor], Any] | None:
    """The plain model in ONNX Runtime with as many threads as torch uses, or None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    path = directory / "model.onnx"
    example = torch.ones(2, 16, dtype=torch.int64)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    torch.onnx.export(
        model,
        (example, torch.ones_like(example)),
        str(path),
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
        dynamo=True,
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda ids: session.run(None, {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()})


def encoder_flops(engine: Engine, rows: int, tokens: int) -> float:
    """Floating-point operations of the encoder's linear modules as the lean pass runs them (its last layer is mostly
    the first token alone), without attention, norms and embeddings."""
    total = 0.0
    linears = [(name, dims) for name, dims in engine.layout.linears.items() if ".layer." in name]
    last = max(int(name.split(".layer.")[1].split(".")[0]) for name, _ in linears)
    for name, (d_in, d_out) in linears:
        first_token_only = f".layer.{last}." in name and not name.endswith((".key", ".value"))
        total += 2 * d_in * d_out * rows * (1 if first_token_only else tokens)
    return total


TABLES = ("small", "distinct", "popularity", "speed", "all-linear")


def run(rounds: int = 8, tables: Sequence[str] = TABLES) -> None:
    """Measure and print these tables."""
    base = find_base_model()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root, torch.inference_mode():
        rivals = "distinct" in tables or "popularity" in tables
        bench = Bench(Path(root) / "qv", base, rank=8, targets=QUERY_VALUE, peft=rivals)
        if "small" in tables:
            report["small"] = _small(bench, onnx_session(bench.plain, Path(root)), rounds * 2)
        if "distinct" in tables:
            report["distinct"] = _distinct(bench, rounds)
        if "popularity" in tables:
            report["popularity"] = _popularity(bench, rounds)
        if "speed" in tables:
            report["speed"] = _speed(bench, rounds)
        report["memory"] = _memory(bench, 8, QUERY_VALUE)
        if "all-linear" in tables:
            wide = Bench(Path(root) / "all", base, rank=16, targets=ALL_LINEAR, peft=False)
            report["all-linear r=16"] = _wide(wide, rounds)
    write("bank", report)


def _small(bench: Bench, onnx: Callable[[torch.Tensor], Any] | None, rounds: int) -> dict[str, dict[str, Side]]:
    found = {}
    for rows, tokens in ((1, 16), (8, 32)):
        ids = token_ids(rows, tokens)
        calls = sides(bench, ids, {"1": [0] * rows, f"{rows}": popularity("distinct", rows, rows)}, rivals=False)
        if onnx is not None:
            # First, so that the ratios are to it.
            calls = {"onnxruntime": lambda ids=ids: onnx(ids), **calls}
        found[f"{rows} x {tokens}"] = in_turn(calls, rounds=rounds, what=f"{rows} x {tokens}")
        _print(f"small batches, {rows} x {tokens} tokens, r=8 q+v", found[f"{rows} x {tokens}"])
    return found


def _distinct(bench: Bench, rounds: int) -> dict[str, dict[str, Side]]:
    found = {}
    for rows, tokens in ((32, 32), (8, 128), (64, 32)):
        mixes = {
            f"{distinct}": popularity("distinct", rows, distinct) for distinct in (1, 8, 32, 64) if distinct <= rows
        }
        name = f"{rows} x {tokens}"
        found[name] = in_turn(sides(bench, token_ids(rows, tokens), mixes, rivals=True), rounds=rounds, what=name)
        _print(f"distinct adapters in one batch, {name} tokens, r=8 q+v", found[name])
    return found


def _popularity(bench: Bench, rounds: int) -> dict[str, Side]:
    mixes = {kind: popularity(kind, 32, 32) for kind in ("identical", "distinct", "uniform", "zipf")}
    found = in_turn(sides(bench, token_ids(32, 32), mixes, rivals=True), rounds=rounds, what="popularity")
    _print("popularity of adapters, 32 x 32 tokens, r=8 q+v", found)
    return found


def _speed(bench: Bench, rounds: int) -> dict[str, float]:
    """The encoder's share of the machine's own speed at its commonest product."""
    shares = {}
    table = Table("batch", "GFLOP/s", "machine GFLOP/s", "share", title=f"share of the machine's speed ({device()})")
    for rows, tokens in ((1, 16), (8, 32), (32, 32), (8, 128), (32, 128)):
        ids, slots = token_ids(rows, tokens).tolist(), bench.slots(popularity("distinct", rows, rows))
        own = in_turn(
            {"bank": lambda ids=ids, slots=slots: bench.engine.forward(ids, slots)}, rounds=rounds, what="speed"
        )
        machine = matmul_flops_per_s(rows * tokens, 384, 1536)
        speed = encoder_flops(bench.engine, rows, tokens) / (own["bank"].best_ms / 1e3)
        shares[f"{rows} x {tokens}"] = speed / machine
        table.add_row(f"{rows} x {tokens}", f"{speed / 1e9:.0f}", f"{machine / 1e9:.0f}", f"{speed / machine:.2f}")
    console.print(table)
    return shares


def _wide(bench: Bench, rounds: int) -> dict[str, Side]:
    mixes = {"1": [0] * 32, "32": popularity("distinct", 32, 32)}
    found = in_turn(sides(bench, token_ids(32, 32), mixes, rivals=False), rounds=rounds, what="all-linear")
    _print("r=16 on all linear modules, 32 x 32 tokens", found)
    return found


def _memory(bench: Bench, rank: int, targets: Targets) -> dict[str, float]:
    adapted, _ = targeted(bench.engine.layout, targets)
    weights = sum(4 * rank * (d_in + d_out) for d_in, d_out in adapted.values())
    hidden = bench.engine.layout.linears[bench.engine.layout.output][0]
    own = weights + 4 * 2 * (hidden + 1)
    per_slot = bench.engine.bytes_per_adapter()
    console.print(
        f"memory for each resident adapter: {per_slot:,.0f} bytes, its own weights at the bank's rank {own:,}"
    )
    return {"bytes_per_slot": per_slot, "weights_bytes": own, "ratio": per_slot / own}


def _print(title: str, found: dict[str, Side]) -> None:
    first = next(iter(found))
    table = Table(
        "side",
        "best ms",
        "median ms",
        f"best / best of {first}",
        f"median of time / {first}",
        "10 % to 90 %",
        "undisturbed",
        title=title,
    )
    for name, side in found.items():
        table.add_row(
            name,
            f"{side.best_ms:.1f}",
            f"{side.median_ms:.1f}",
            f"{side.best_ratio:.2f}",
            f"{side.ratio:.2f}",
            f"{side.ratio_low:.2f} to {side.ratio_high:.2f}",
            f"{side.undisturbed:.0%}",
        )
    console.print(table)
