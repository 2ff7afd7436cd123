"""`adapter_config.json`, PEFT's own, read without PEFT: modules, ranks, scaling, and what is refused."""

import math
import time
from collections.abc import Iterable
from typing import Annotated, Any, Self

import regex
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from adapters.manifest import MAX_COUNT, FiniteFloat

DUMMY_TARGETS = "dummy-target-modules"
"""PEFT's own name for "no LoRA at all": how a head without LoRA is saved."""

_EDITS_BASE = {"pissa", "olora", "corda", "lora_ga", "loftq"}
"""Initialisations that subtract from the base weights; what they leave is no LoRA on the original base."""

_MATCHING_S = 1.0
"""Time that all patterns of a config may take: `(.*)*x` takes for ever, and Python's own `re` holds the GIL for it."""

_MOST_PATTERNS = 10_000

Rank = Annotated[int, Field(ge=1, le=MAX_COUNT)]

# Forms whose forward pass is not x @ A @ B, or that touch what one shared encoder cannot change per row.
_REFUSED: dict[str, str] = {
    "use_dora": "DoRA renormalises the base weights by row; train with use_dora=False",
    "lora_bias": "a bias on lora_B; train with lora_bias=False",
    "use_qalora": "QA-LoRA pools the input",
    "use_bdlora": "block-diagonal LoRA",
    "target_parameters": "LoRA on raw parameters",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "megatron_config": "Megatron layers",
    "velora_config": "VeLoRA",
    "kasa_config": "KaSA singular value adaptation",
    "monteclora_config": "MonteCLoRA",
}


class PeftLoraConfig(BaseModel):
    """The fields of PEFT's `LoraConfig` that decide what an adapter computes."""

    model_config = ConfigDict(frozen=True, extra="allow")

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: Rank = 8
    lora_alpha: FiniteFloat = 8
    use_rslora: bool = False
    rank_pattern: dict[str, Rank] = {}
    alpha_pattern: dict[str, FiniteFloat] = {}
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True

    _matching_s: float = PrivateAttr(0.0)

    @model_validator(mode="after")
    def _patterns_compile(self) -> Self:
        named = [pattern for pattern in (self.target_modules, self.exclude_modules) if isinstance(pattern, str)]
        patterns = [*self.rank_pattern, *self.alpha_pattern, *_tuple(self.layers_pattern), *named]
        patterns += self.modules_to_save or ()
        if len(patterns) > _MOST_PATTERNS:
            raise ValueError(f"{len(patterns)} patterns, expected at most {_MOST_PATTERNS}")
        for pattern in patterns:
            try:
                regex.compile(pattern)
            except (regex.error, RecursionError) as error:
                raise ValueError(f"{pattern[:40]!r} is no pattern: {error}") from None
        return self

    def matches(self, pattern: str, name: str, *, whole: bool = False) -> "regex.Match[str] | None":
        """Whether a pattern matches the beginning of a module's name, or all of it.

        Raises:
            TimeoutError: the config's patterns take too long.
        """
        left_s = _MATCHING_S - self._matching_s
        # The thread's own time: a machine that stops for a second is not the pattern's fault.
        started_s = time.thread_time()
        try:
            if left_s > 0:
                # Concurrent: it lets go of the GIL meanwhile.
                match = regex.fullmatch if whole else regex.match
                return match(pattern, name, timeout=left_s, concurrent=True)
        except TimeoutError:
            pass
        finally:
            self._matching_s += time.thread_time() - started_s
        raise TimeoutError(f"{pattern[:40]!r} after {_MATCHING_S:g} s")

    def refusal(self) -> tuple[str, str] | None:
        """(expected, found) if this form of adapter cannot be served exactly, else None."""
        if self.peft_type != "LORA":
            return "peft_type LORA", self.peft_type
        if self.bias != "none":
            return "bias none (the encoder's biases are shared by all adapters)", self.bias
        init = self.init_lora_weights.lower() if isinstance(self.init_lora_weights, str) else ""
        if any(init.startswith(kind) for kind in _EDITS_BASE):
            return (
                "LoRA on the unchanged base (save with path_initial_model_for_weight_conversion to convert)",
                f"init_lora_weights {self.init_lora_weights}",
            )
        extra: dict[str, Any] = self.model_extra or {}
        for field, why in _REFUSED.items():
            if extra.get(field):
                return "plain LoRA", f"{field}: {why}"
        return None

    def rank(self, module: str) -> int:
        return self.rank_pattern.get(self._pattern_key(self.rank_pattern, module), self.r)

    def scaling(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski, arXiv 2312.03732)."""
        alpha = self.alpha_pattern.get(self._pattern_key(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, linears: Iterable[str], output: str) -> set[str]:
        """Which of the base's linear modules this config puts LoRA on, by PEFT's rules of matching.

        Args:
            linears: dotted names of the base's linear modules.
            output: the one that makes the logits; PEFT leaves it out of `all-linear`.
        """
        if self.target_modules is None or self.target_modules == DUMMY_TARGETS:
            return set()
        return {name for name in linears if self._targets(name, output)}

    def saves(self, parameter: str) -> bool:
        """Whether `parameter` belongs to a module that is saved whole; PEFT matches module names by their end."""
        named = self.modules_to_save or ()
        if self.task_type == "SEQ_CLS":
            named = (*named, "classifier", "score")
        parts = parameter.split(".")[:-1]
        ancestors = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
        return any(ancestor.endswith(name) for ancestor in ancestors for name in named)

    def _targets(self, name: str, output: str) -> bool:
        if self._names(self.exclude_modules, name):
            return False
        if any(self.matches(rf"(^|.*\.){saved}($|\..*)", name) for saved in self.modules_to_save or ()):
            return False
        if self.target_modules == "all-linear":
            return name != output
        if not self._names(self.target_modules, name):
            return False
        if isinstance(self.target_modules, str) or self.layers_to_transform in (None, ()):
            return True
        if self.target_modules is not None and name in self.target_modules:
            return True
        return self._layer(name) in _tuple(self.layers_to_transform)

    def _layer(self, name: str) -> int | None:
        """The layer index in a dotted name: after one of `layers_pattern`, else the first number in it."""
        patterns = _tuple(self.layers_pattern)
        if not patterns:
            found = self.matches(r".*?\.[^.]*\.(?P<index>\d+)\.", name)
        else:
            found = None
            for pattern in patterns:
                found = self.matches(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", name)
                if found:
                    break
        return int(found["index"]) if found else None

    def _names(self, patterns: str | tuple[str, ...] | None, name: str) -> bool:
        if not patterns:
            return False
        if isinstance(patterns, str):
            return self.matches(patterns, name, whole=True) is not None
        return name in patterns or any(name.endswith(f".{pattern}") for pattern in patterns)

    def _pattern_key(self, patterns: Iterable[str], module: str) -> str:
        """PEFT's rule for `rank_pattern` and `alpha_pattern`: the first pattern that matches the end of the name."""
        for pattern in patterns:
            if self.matches(rf"(.*\.)?({pattern})$", module):
                return pattern
        return module


def _tuple(value: Any) -> tuple[Any, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)
