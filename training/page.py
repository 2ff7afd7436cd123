"""The report for people: one page, `report/index.html`, with everything in it and nothing loaded from elsewhere."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.calibrate import softmax
from training.checks import balance, finding_sentences
from training.evaluate import Evaluation, decisions
from training.outcome import Outcome
from training.report import (
    REPORT,
    chance,
    interval_text,
    label_text,
    predicted_text,
    recipe_fields,
    sentences,
)

PAGE = "index.html"
_WORST = 20
_CHANGED = 12
_TRIALS = 25
_EXCERPT_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class _Text:
    """A validation text and what was said of it.

    Attributes:
        score: how sure the adapter was of what it said.
    """

    text: str
    label: str
    base: str
    tuned: str
    score: float


def write_page(directory: Path, outcome: Outcome, pictures: Mapping[str, bytes], *, with_texts: bool) -> None:
    """Write `report/index.html`.

    Args:
        pictures: the plots, by file name.
        with_texts: show validation texts: the worst mistakes, and what changed. What is published leaves them out
            where the recipe has examples of its own, for then the data is not for publishing.
    """
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inline = {name.removesuffix(".png"): _inline(plot) for name, plot in pictures.items()}
    if outcome.search is not None:
        inline["search"] = _inline(outcome.search.plot)
    worst, gained, lost = _mistakes(outcome) if with_texts else ([], [], [])
    verdict, *others = sentences(outcome)
    rendered = environment.get_template("page.html").render(
        name=outcome.recipe.name,
        description=outcome.recipe.description,
        base=outcome.base_id,
        dataset=outcome.dataset.name,
        source=outcome.recipe.data.source,
        verdict=verdict,
        sentences=others,
        stages=[
            (name, interval_text(found.accuracy), interval_text(found.macro_f1), f"{found.loss:.3f}")
            for name, found in outcome.stages
        ],
        chance=chance(outcome),
        n=len(outcome.dataset.validation),
        train_n=len(outcome.dataset.train),
        multi_label=outcome.tuned_evaluation.multi_label,
        train_balance=balance(outcome.dataset.labels, outcome.dataset.train.targets),
        validation_balance=balance(outcome.dataset.labels, outcome.dataset.validation.targets),
        findings=finding_sentences(outcome.dataset.findings, examples=with_texts),
        truncated=outcome.tokens.train.truncated,
        max_tokens=outcome.recipe.max_tokens,
        side="beginning" if outcome.recipe.truncation_side == "left" else "end",
        members=outcome.members,
        transfer=outcome.transfer,
        search=outcome.search,
        trials=_TRIALS,
        fit=outcome.fit,
        temperature=outcome.calibration.temperature,
        with_texts=with_texts,
        mistakes=int((~outcome.tuned_evaluation.right).sum()),
        worst=worst,
        gained=gained,
        lost=lost,
        pictures=inline,
        recipe=yaml.safe_dump(recipe_fields(outcome), sort_keys=False, allow_unicode=True),
    )
    (directory / REPORT).mkdir(exist_ok=True)
    (directory / REPORT / PAGE).write_text(rendered, encoding="utf-8")


def _inline(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _mistakes(outcome: Outcome) -> tuple[list[_Text], list[_Text], list[_Text]]:
    """The mistakes that the adapter was surest of; texts that it gets right and the base does not; and the reverse."""
    tuned, base = outcome.tuned_evaluation, outcome.base_evaluation
    sure = _surest(tuned, outcome.calibration.temperature)

    def shown(chosen: NDArray[np.bool_], most: int) -> list[_Text]:
        ordered = sorted(np.flatnonzero(chosen).tolist(), key=lambda at: -sure[at])[:most]
        return [
            _Text(
                _excerpt(outcome.dataset.validation.texts[at]),
                label_text(outcome, outcome.dataset.validation.targets[at]),
                predicted_text(outcome, base, at),
                predicted_text(outcome, tuned, at),
                float(sure[at]),
            )
            for at in ordered
        ]

    gained, lost = tuned.right & ~base.right, ~tuned.right & base.right
    return shown(~tuned.right, _WORST), shown(gained, _CHANGED), shown(lost, _CHANGED)


def _surest(evaluation: Evaluation, temperature: float) -> NDArray[np.float64]:
    """[N] how sure the model was: of the label it gave, or of a multi-label task of the decision that is most wrong."""
    logits, targets = decisions(evaluation.logits, evaluation.targets)
    scores = softmax(logits / temperature)
    highest: NDArray[np.float64] = scores.max(axis=1)
    if not evaluation.multi_label:
        return highest
    wrong = scores.argmax(axis=1) != targets
    worst: NDArray[np.float64] = np.where(wrong, highest, 0).reshape(evaluation.targets.shape).max(axis=1)
    return worst


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT_CHARACTERS else text[: _EXCERPT_CHARACTERS - 1] + "…"
