"""Training: `tonearm train`'s fit against the script that people write with PEFT and the plain `Trainer`.

The script is that of the original experiment (training/recipes/imdb-distilbert.yaml) on the default base: LoRA of rank
4 on the query projections, batches of 4, padded to their longest text. Ours trains the same recipe. Each side runs in a
process of its own, so that its peak of memory is its own; sides take turns.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.measure import console, write

SIDES = {
    "the script": "",
    "tonearm": "",
    "tonearm, attention dropout as in the base": "training.attention_dropout=null",
}
_RECIPE = Path(__file__).parents[1] / "training" / "recipes" / "reviews.yaml"
_ORIGINAL = (
    "transfer=null",
    "lora={rank: 4, alpha: 32, dropout: 0.01, targets: [query]}",
    "modules_to_save=[]",
    "training={epochs: 1, batch_size: 4, learning_rate: 1.0e-3, weight_decay: 0.01, warmup_ratio: 0}",
    "truncation_side=left",
)


def run(data: Path, texts: int, rounds: int) -> None:
    """Every side, `rounds` times in turn, on the same texts."""
    with tempfile.TemporaryDirectory() as place:
        for split, most in (("train", texts), ("validation", 8)):
            lines = (data / "movie_reviews" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:most]
            (Path(place) / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in track(range(rounds), "rounds", console=Console(stderr=True), transient=True):
            for side in SIDES:
                found[side].append(_elsewhere(side, Path(place)))
    table = Table(
        "side", "texts/s, median", "times the script (each round)", "peak MiB", title=f"{texts} film reviews, one epoch"
    )
    script = [turn["texts_per_s"] for turn in found["the script"]]
    for side, turns in found.items():
        rates = [turn["texts_per_s"] for turn in turns]
        ratios = [ours / theirs for ours, theirs in zip(rates, script, strict=True)]
        table.add_row(
            side,
            f"{statistics.median(rates):.2f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{statistics.median(turn['peak_mib'] for turn in turns):.0f}",
        )
    console.print(table)
    write("training", {"texts": texts, "sides": found})


def _elsewhere(side: str, place: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", side, str(place)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _side(side: str, place: Path) -> None:
    """Train once, in this process, and print what it took."""
    from training.recipe import load_recipe
    from training.train import prepare

    paths = [f"data.{split}={place}/{split}.jsonl" for split in ("train", "validation")]
    recipe = load_recipe(_RECIPE, [*_ORIGINAL, *paths, *([SIDES[side]] if SIDES[side] else [])])
    if side == "the script":
        train_s = _script(place)
    else:
        from training.train import learn

        prepared = prepare(recipe, place / "runs")
        with tempfile.TemporaryDirectory() as checkpoints:
            _, fit = learn(prepared, recipe, Path(checkpoints), Console(quiet=True))
        train_s = fit.train_s
    texts = sum(1 for _ in (place / "train.jsonl").open(encoding="utf-8"))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"texts_per_s": texts / train_s, "train_s": train_s, "peak_mib": peak_mib}))


def _script(place: Path) -> float:
    """What the original experiment's author wrote, on the default base; seconds of `trainer.train()`."""
    import numpy as np
    import torch
    from datasets import load_dataset
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from adapters.base_model import find_base_model

    base = str(find_base_model().directory)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.truncation_side = "left"
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_alpha=32, lora_dropout=0.01, target_modules=["query"])
    model = get_peft_model(model, config)
    files = {split: str(place / f"{split}.jsonl") for split in ("train", "validation")}
    dataset = load_dataset("json", data_files=files, cache_dir=str(place / "cache"))
    labels = sorted(set(dataset["train"]["label"]))

    def tokenised(rows: dict[str, list[str]]) -> dict[str, object]:
        encoded = tokenizer(rows["text"], truncation=True, max_length=512)
        return {**encoded, "label": [labels.index(label) for label in rows["label"]]}

    dataset = dataset.map(tokenised, batched=True, remove_columns=["text"])
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=output,
                learning_rate=1e-3,
                per_device_train_batch_size=4,
                per_device_eval_batch_size=4,
                num_train_epochs=1,
                weight_decay=0.01,
                eval_strategy="epoch",
                save_strategy="epoch",
                load_best_model_at_end=True,
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.accelerator.is_available(),
            ),
            train_dataset=dataset["train"],
            eval_dataset=dataset["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer=tokenizer),
            compute_metrics=lambda found: {"accuracy": float(np.mean(found[0].argmax(1) == found[1]))},
        )
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began


if __name__ == "__main__":
    _side(sys.argv[1], Path(sys.argv[2]))
