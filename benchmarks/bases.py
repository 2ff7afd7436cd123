"""The bank on bases of different sizes: rows a second and memory, for sizing.

Each base has its real architecture and size with random weights, for speed does not depend on what they say: no hub is
needed. A batch's rows are spread over 32 adapters of rank 8 on all linear modules. On a GPU, where there is one.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.table import Table
from transformers import AutoModel, AutoTokenizer, PretrainedConfig

from adapters.base_model import BaseModelFiles, find_base_model
from adapters.reference import AdapterId
from benchmarks.made import ALL_LINEAR, make_adapter, token_ids
from benchmarks.measure import console, device, in_turn, write
from engine.engine import Engine

ADAPTERS = 32
SHAPES = ((1, 16), (32, 32), (8, 128))

BASES: dict[str, Callable[[], PretrainedConfig] | None] = {
    "MiniLM-L6": None,  # the default, with its own weights
    "DistilBERT": transformers.DistilBertConfig,
    "BERT-base": transformers.BertConfig,
    "RoBERTa-base": lambda: transformers.RobertaConfig(vocab_size=50265, max_position_embeddings=514),
    "ModernBERT-base": lambda: transformers.ModernBertConfig(cls_token_id=101, sep_token_id=102, pad_token_id=0),
    "DeBERTa-v3-base": lambda: transformers.DebertaV2Config(
        vocab_size=128_100,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    ),
    "Qwen2.5-0.5B": lambda: transformers.Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
    ),
}

ENCODERS = tuple(name for name in BASES if name != "Qwen2.5-0.5B")


def run(rounds: int, names: Sequence[str]) -> None:
    """Measure and print these bases."""
    on = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        engines = {name: _engine(name, Path(place), on) for name in names}
        for name, engine in engines.items():
            parameters = sum(math.prod(shape) for shape in engine.layout.parameters.values())
            found[name] = {"parameters": parameters, "adapter_bytes": engine.bytes_per_adapter()}
        for rows, tokens in SHAPES:
            calls = {name: _call(engine, rows, tokens) for name, engine in engines.items()}
            shape = f"{rows} x {tokens}"
            for name, side in in_turn(calls, rounds=rounds, what=shape).items():
                found[name][shape] = {
                    "rows_per_s": rows / side.median_ms * 1e3,
                    "best_rows_per_s": rows / side.best_ms * 1e3,
                    "undisturbed": side.undisturbed,
                }
    _show(found, on)
    write(f"bases-{on}", found)


def _engine(name: str, place: Path, on: str) -> Engine:
    config = BASES[name]
    base = find_base_model() if config is None else _written(place / name, config())
    engine = Engine(base, capacity=ADAPTERS, device=on)
    for seed in range(ADAPTERS):
        adapter = AdapterId(f"a{seed}", 1)
        directory = make_adapter(
            place / f"{name}-adapters" / f"{seed}", base, engine.layout, rank=8, targets=ALL_LINEAR, seed=seed
        )
        engine.attach(engine.read(directory, adapter))
    return engine


def _written(directory: Path, config: PretrainedConfig) -> BaseModelFiles:
    """A base of this shape as hubs hold it: the bare encoder, and a tokeniser, which is the default's."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(find_base_model().directory).save_pretrained(directory)
    return find_base_model(str(directory))


def _call(engine: Engine, rows: int, tokens: int) -> Callable[[], Any]:
    ids = token_ids(rows, tokens).tolist()
    slots = [engine.slot(AdapterId(f"a{row % ADAPTERS}", 1)) for row in range(rows)]
    return lambda: engine.forward(ids, slots)


def _show(found: dict[str, dict[str, Any]], on: str) -> None:
    shapes = [f"{rows} x {tokens}" for rows, tokens in SHAPES]
    table = Table(
        "base",
        "parameters",
        "adapter MiB",
        "adapters in 1 GiB",
        *(f"rows/s, {shape}" for shape in shapes),
        title=f"rank 8 on all linear modules, rows over {ADAPTERS} adapters ({device()}); median, best in brackets",
    )
    for name, facts in found.items():
        speeds = (f"{facts[shape]['rows_per_s']:,.0f} ({facts[shape]['best_rows_per_s']:,.0f})" for shape in shapes)
        adapter = facts["adapter_bytes"]
        table.add_row(
            name, f"{facts['parameters'] / 1e6:.1f}M", f"{adapter / 2**20:.1f}", f"{2**30 // adapter:,}", *speeds
        )
    console.print(table)
