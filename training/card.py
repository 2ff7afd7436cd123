"""The model card: the adapter's README.md, in the hub's format."""

import json
import shlex
from importlib.metadata import version
from pathlib import Path

import yaml

from training.checks import finding_sentences
from training.evaluate import Evaluation
from training.outcome import Outcome
from training.report import (
    calibration_sentence,
    chance,
    comparison_sentence,
    example_rows,
    interval_text,
    overfitting_sentence,
    recipe_fields,
    seeds_sentence,
    transfer_sentence,
)

_CARD = """\
---
{front}---

# {name}

{description}

A {kind} for [Tonearm](#how-to-call-it) on `{base_id}`{revision}, for the labels {labels}.

## Results

On the {n} texts of the validation split, which chose the epoch too, so that these figures are a little kind.
Brackets hold 95 % intervals (Wilson for accuracy, bootstrap for macro-F1). Always giving the commonest label would
score {chance:.3f}. The untrained base has the head that it has before training.

| | accuracy | macro-F1 | loss |
| --- | --- | --- | --- |
{stages}

{comparison}

{examples}![Which labels are taken for which](report/confusion.png)

## Training

![Loss and accuracy by epoch](report/curves.png)

![What the scores are worth](report/calibration.png)

{overfitting}{more}

{trained:,} parameters were trained, for {train_min:.1f} minutes. The recipe:

```yaml
{recipe}```

## Data

`{dataset}`: {train_n:,} training and {n:,} validation texts.{source}{licence} Of the training texts, {truncated:.1%}
were longer than {max_tokens} tokens and lost the {lost_side} of the text. SHA-256 of the training rows:
`{sha256}`.{findings}

## Limits

- It was measured on one data set. Text of another kind, length or language is untested.
- {given}
- {calibration}
- Text over {max_tokens} tokens is cut, and the {lost_side} is not read.
- The manifest, `tonearm.json`, holds {golden_n} short texts{golden_from} with their logits, so that every load can
  check itself.

## How to call it

```bash
{curl}
```

Or with PEFT {peft_version}:

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained("{base_id}", num_labels={classes})
model = PeftModel.from_pretrained(base, "path/to/this/directory").eval()
```
"""


def write_card(directory: Path, outcome: Outcome) -> None:
    """Write README.md, in place of the one that `save_pretrained` left."""
    recipe, data = outcome.recipe, outcome.recipe.data
    tuned = outcome.tuned_evaluation
    front = {
        "license": "apache-2.0",
        "base_model": outcome.base_id,
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["tonearm", "lora" if recipe.lora else "head", "text-classification"],
        "datasets": [outcome.dataset.name],
        "metrics": ["accuracy", "f1"],
    }
    labels = ", ".join(f"`{label}`" for label in outcome.dataset.labels)
    body = json.dumps({"text": outcome.golden[0].text}, ensure_ascii=False)
    card = _CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        name=recipe.name,
        description=recipe.description,
        kind=f"LoRA adapter of rank {recipe.lora.rank}" if recipe.lora else "classification head, without LoRA,",
        base_id=outcome.base_id,
        revision=f" at `{outcome.base.revision}`" if outcome.base.revision else "",
        labels=labels,
        given=f"Labels are always one of {labels}, also for text that is none of them."
        if not tuned.multi_label
        else f"Each of {labels} is given where its score is at least 0.5; a text may have none.",
        n=tuned.accuracy.n,
        chance=chance(outcome),
        stages="\n".join(_stage(name, evaluation, outcome) for name, evaluation in outcome.stages),
        more="".join(f" {sentence}" for sentence in _more(outcome)),
        comparison=comparison_sentence(outcome),
        examples=_examples(outcome),
        overfitting=overfitting_sentence(outcome.fit),
        trained=outcome.fit.trained_parameters,
        train_min=outcome.fit.train_s / 60,
        recipe=yaml.safe_dump(recipe_fields(outcome), sort_keys=False, allow_unicode=True),
        dataset=outcome.dataset.name,
        train_n=len(outcome.tokens.train),
        source=f" Source: {data.source}." if data.source else "",
        licence=f" Licence: {data.licence}." if data.licence else "",
        truncated=outcome.tokens.train.truncated / len(outcome.tokens.train),
        max_tokens=recipe.max_tokens,
        lost_side="beginning" if recipe.truncation_side == "left" else "end",
        sha256=outcome.dataset.sha256,
        calibration=calibration_sentence(outcome),
        findings="".join(f" {text}." for text in finding_sentences(outcome.dataset.findings, examples=False)),
        golden_n=len(outcome.golden),
        golden_from="" if recipe.example_texts else " taken from the validation split,",
        curl=(
            f"curl -s localhost:8000/classify -H 'X-Adapter: {recipe.name}' "
            f"-H 'content-type: application/json' -d {shlex.quote(body)}"
        ),
        peft_version=version("peft"),
        classes=len(outcome.dataset.labels),
    )
    (directory / "README.md").write_text(card, encoding="utf-8")


def _stage(name: str, evaluation: Evaluation, outcome: Outcome) -> str:
    shown = f"**{name}**" if evaluation is outcome.tuned_evaluation else name
    figures = f"{interval_text(evaluation.accuracy)} | {interval_text(evaluation.macro_f1)} | {evaluation.loss:.3f}"
    return f"| {shown} | {figures} |"


def _more(outcome: Outcome) -> list[str]:
    found = []
    if len(outcome.members) > 1:
        found.append(seeds_sentence(outcome.members, outcome.recipe))
    if outcome.transfer is not None:
        found.append(f"It started from `{outcome.transfer.adapter}`.")
        if outcome.transfer.plain:
            found.append(transfer_sentence(outcome.transfer, outcome.members, outcome.recipe))
    if outcome.search is not None:
        found.append(f"Its learning rate, rank and dropout are the best of {outcome.search.trials} trials.")
    return found


def _examples(outcome: Outcome) -> str:
    """A table of the same texts before and after, or nothing if no golden text is a whole validation text."""
    rows = example_rows(outcome)
    if not rows:
        return ""
    lines = ["The same texts by both:", "", "| text | label | base | tuned |", "| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
