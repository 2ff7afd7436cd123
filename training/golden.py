"""Golden examples: a few texts whose logits every later load must give again. Each load pays for them."""

from typing import Any

from adapters.manifest import GoldenExample
from training.dataset import Split
from training.evaluate import Evaluation
from training.tokenise import TokenisedSplit

MAX_GOLDEN_TOKENS = 32
_MIN_GOLDEN = 4
_MAX_GOLDEN = 8
_EXCERPT_WORDS = 16


def choose_texts(split: Split, tokens: TokenisedSplit, evaluation: Evaluation) -> tuple[str, ...]:
    """A text of middling length for each label, or set of labels, that is predicted (eight at most), then a spread of
    lengths up to four.

    Where all texts are long, beginnings of the shortest ones stand in.
    """
    lengths = tokens.lengths.tolist()
    short = sorted((index for index, n in enumerate(lengths) if n <= MAX_GOLDEN_TOKENS), key=lengths.__getitem__)
    if not short:
        order = sorted(range(len(split)), key=lengths.__getitem__)
        excerpts = (" ".join(split.texts[index].split()[:_EXCERPT_WORDS]) for index in order)
        return tuple(dict.fromkeys(excerpts))[:_MIN_GOLDEN]
    by_label: dict[tuple[int, ...], list[int]] = {}
    predicted = evaluation.predicted
    for index in short:
        by_label.setdefault(tuple(predicted[index].nonzero()[0].tolist()), []).append(index)
    chosen = [indices[len(indices) // 2] for _, indices in sorted(by_label.items())][:_MAX_GOLDEN]
    spread = [short[len(short) * part // 8] for part in range(8)]
    # dict.fromkeys: each text once, in this order.
    texts = dict.fromkeys(split.texts[index] for index in chosen + spread)
    return tuple(texts)[: max(_MIN_GOLDEN, len(chosen))]


def golden_examples(texts: tuple[str, ...], model: Any, tokenizer: Any, max_tokens: int) -> tuple[GoldenExample, ...]:
    """Each text alone through `model` (eval mode, fp32, CPU)."""
    import torch

    def logits(text: str) -> tuple[float, ...]:
        inputs = tokenizer(
            text, truncation=True, max_length=max_tokens, return_token_type_ids=False, return_tensors="pt"
        )
        return tuple(model(**inputs).logits[0].tolist())  # [C]

    with torch.inference_mode():
        return tuple(GoldenExample(text=text, logits=logits(text)) for text in texts)
