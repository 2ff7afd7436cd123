"""A recipe: one YAML file that says everything about one training run.

Any field can be overridden by its dotted name: `load_recipe(path, ["training.epochs=2", "lora=null"])`.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.base_model import DEFAULT_BASE_MODEL
from adapters.errors import SettingsError
from adapters.reference import NAME

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Choice = Literal["keep", "drop", "error"]
"""What to do with training rows of which something is to be said; all of it is reported."""


class DataSettings(_Strict):
    """Where the labelled texts are and what the model card says of them.

    `train` and `validation` are files (.jsonl, .csv, .parquet), relative to the recipe, in which `${VAR}` and
    `${VAR:-default}` stand for environment variables; with `hub` they are the names of the splits.
    """

    name: str
    """For the model card; a hub id where there is one."""
    hub: str | None = None
    revision: str | None = None
    """Commit of the hub data set."""
    train: str
    validation: str | None = None
    """Left out, `validation_share` of the training rows is set aside: by text, and the same rows every time."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    text: str = "text"
    """Column of the text."""
    label: str = "label"
    """Column of the label; for a multi-label task of a list of labels, or of text with `label_separator` in it."""
    label_separator: Annotated[str, Field(min_length=1)] = ","
    """Between the labels of a multi-label row where they are text, as in CSV."""
    labels: tuple[str, ...] | None = None
    """Labels in the order of the logits; by default those of the training rows, sorted."""
    label_names: dict[str | int, str] = {}
    """Label in the data -> label as served, e.g. {0: negative, 1: positive}."""
    duplicates: Choice = "keep"
    """Rows that repeat another's text and label."""
    conflicts: Choice = "keep"
    """Rows whose text occurs with another label, too."""
    leakage: Choice = "keep"
    """Rows whose text is a validation text, too: what is measured on them was learnt by heart."""
    source: str = ""
    licence: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) != len(self.labels)):
            raise ValueError("labels must be at least two different ones")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision needs hub")
        if self.validation is not None and "validation_share" in self.model_fields_set:
            raise ValueError("validation_share is for data without validation: leave one of them out")
        return self


class LoraSettings(_Strict):
    """The shape of the LoRA (Hu et al., arXiv 2106.09685)."""

    rank: PositiveInt = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Fraction = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Module names as PEFT matches them: the end of the dotted name."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski, arXiv 2312.03732)."""
    learning_rate_ratio: Annotated[float, Field(ge=1)] = 1
    """LoRA+: the learning rate of B over that of A (Hayou et al., arXiv 2402.12354)."""


class TransferSettings(_Strict):
    """What is learnt before the recipe's own adapter, published as an adapter of its own, and started from."""

    recipe: str | None = None
    """A first task: another recipe, relative to this one. Where the registry's newest version of its name is what it
    would train, that is taken. Left out, the first stage is this recipe's head alone, on the frozen encoder,
    published as `<name>-head`."""
    epochs: PositiveInt = 12
    """Of the head alone."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of the head alone."""
    compare: bool = False
    """Train without this stage, too, with the same seeds, and report what it brings."""


class FitSettings(_Strict):
    """How the trainable parameters are fitted."""

    epochs: PositiveInt = 5
    batch_size: PositiveInt = 32
    """Texts a step, over all processes."""
    gradient_accumulation_steps: PositiveInt = 1
    """Batches whose gradients make one step: what a larger batch would do, in the memory of a smaller one."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_ratio: Fraction = 0.1
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: every class counts alike in the loss, however many texts it has."""
    group_by_length: bool = True
    """Batches of texts of like length: less padding, a little less random."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the matrix products while training; auto is bf16 where the device multiplies in it, else fp32. Weights stay
    fp32, and what is reported and published is computed in fp32."""
    attention_dropout: Fraction | None = 0.0
    """In the base's own attention, while training; null leaves it as the base has it. With any, attention over long
    texts is not one fused kernel on a CPU: a step over 512 tokens takes four times as long."""
    metric_for_best: Literal["accuracy", "macro_f1"] = "accuracy"
    early_stopping_patience: PositiveInt | None = None
    """Epochs without a better metric after which training ends."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """So many runs, with `seed` and those after it. The best is published; the spread is in the report."""


class Recipe(_Strict):
    """One training run. `lora: null` trains the head alone on the frozen encoder (the transfer stage)."""

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    description: str = ""
    task: Literal["single_label", "multi_label"] = "single_label"
    """multi_label: a text has any number of the labels, each with a score of its own."""
    base_model: str = DEFAULT_BASE_MODEL
    """`org/name`, `org/name@revision`, or a directory relative to the recipe that begins with a dot or slash."""
    data: DataSettings
    max_tokens: Annotated[int, Field(ge=3)] = 128
    """Longest input in tokens, special tokens included."""
    truncation_side: Literal["left", "right"] = "right"
    """The side that is cut off a longer text."""
    lora: LoraSettings | None = LoraSettings()
    modules_to_save: tuple[str, ...] = ()
    """Modules trained in full and saved with the adapter, besides the head and whatever the base does not hold."""
    warm_start_from: str | None = None
    """Adapter directory, relative to the recipe, to start from: its LoRA, and its head if the labels are the same."""
    transfer: TransferSettings | None = None
    quantise: Literal["4bit"] | None = None
    """QLoRA: train on a base in 4-bit NormalFloat (Dettmers et al., arXiv 2305.14314); needs `tonearm[qlora]`. What is
    measured and published is the adapter on the base as it is served, unquantised."""
    example_texts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts for the golden examples and the card. Without any, validation texts are taken, and so published: set it
    where the data is not yours to publish."""
    training: FitSettings = FitSettings()
    report_to: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Trackers that are told of losses and metrics as they come; each needs its own package."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.transfer is not None and self.warm_start_from is not None:
            raise ValueError("transfer and warm_start_from are two starts: leave one of them out")
        if self.transfer is not None and self.transfer.recipe is None and self.lora is None:
            raise ValueError("transfer without a recipe trains the head alone, and so does lora: null: leave one out")
        if self.quantise is not None and self.lora is None:
            raise ValueError("quantise needs a LoRA: a head alone learns on the encoder as it is")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        path: a YAML file; paths inside it are relative to its directory.
        overrides: `dotted.key=value`, the value in YAML.

    Raises:
        SettingsError: the file, a key or a value is wrong.
    """
    content = _read(path)
    for override in overrides:
        _override(content, override)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise _settings_error(error) from error
    return _located(recipe, path.parent)


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema()
    parent = {"type": "string", "description": "A recipe, relative to this one, whose keys hold where none are given."}
    schema["properties"] = {"extends": parent, **schema["properties"]}
    # With `extends`, anything may come from the parent.
    schema.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's keys with those of the recipe it extends below them; paths of the latter are relative to itself.

    Raises:
        SettingsError: a file is no recipe, or extends itself.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError("recipe", str(path), f"a readable YAML file ({error})") from error
    if not isinstance(content, dict):
        raise SettingsError("recipe", str(path), "a YAML mapping of recipe keys")
    parent = content.pop("extends", None)
    if parent is None:
        return content
    if not isinstance(parent, str):
        raise SettingsError("extends", parent, "the path of a recipe, relative to this one")
    extended = (path.parent / Path(_expand("extends", parent)).expanduser()).resolve()
    if extended in (*seen, path.resolve()):
        raise SettingsError("extends", parent, "another recipe: this one extends itself")
    inherited = _read(extended, (*seen, path.resolve()))
    _relocate(inherited, extended.parent, path.parent)
    return _merged(inherited, content)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _relocate(content: dict[str, Any], directory: Path, into: Path) -> None:
    """Paths relative to one directory, made relative to another; what a variable decides is left to it."""

    def move(holder: dict[str, Any], key: str) -> None:
        text = holder.get(key)
        if isinstance(text, str) and not Path(text).expanduser().is_absolute() and not text.startswith("${"):
            holder[key] = os.path.relpath(directory / text, into)
        elif isinstance(text, str) and (match := _VARIABLE.match(text)) and match["default"]:
            default = match["default"]
            if not Path(default).expanduser().is_absolute():
                holder[key] = text.replace(f":-{default}", f":-{os.path.relpath(directory / default, into)}", 1)

    data = content.get("data")
    if isinstance(data, dict) and data.get("hub") is None:
        for key in ("train", "validation"):
            move(data, key)
    if isinstance(transfer := content.get("transfer"), dict):
        move(transfer, "recipe")
    move(content, "warm_start_from")
    if str(content.get("base_model", "")).startswith((".", "~")):
        move(content, "base_model")


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SettingsError("--set", override, "key=value, e.g. training.epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(key, text, f"a YAML value ({error})") from error
    for part in parts[:-1]:
        # `lora: null` in the file and `lora.rank=8` on the command line: the command line means a LoRA.
        inner = content.get(part) or {}
        if not isinstance(inner, dict):
            raise SettingsError(key, text, f"a key of the recipe; {part} has none below it")
        content[part] = dict(inner)
        content = content[part]
    content[parts[-1]] = value


def _settings_error(error: ValidationError) -> SettingsError:
    """The first of pydantic's complaints, with the alternatives for an unknown key."""
    first = error.errors(include_url=False)[0]
    # pydantic ends the place of a failed union with the member's type: no key of the recipe.
    place = [str(part) for part in first["loc"] if re.fullmatch(r"[\w-]+", str(part))]
    key = ".".join(place) or "recipe"
    if first["type"] == "extra_forbidden":
        known = _keys(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"no such key; did you mean {near[0]}?" if near else f"no such key; the keys here are {', '.join(known)}"
        return SettingsError(key, first["input"], hint)
    if first["type"] == "missing":
        return SettingsError(key, None, "a value: it is required")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return SettingsError(key, first["input"], message)


def _keys(place: Sequence[str]) -> list[str]:
    section: Mapping[str, type[BaseModel]] = {
        "data": DataSettings,
        "lora": LoraSettings,
        "training": FitSettings,
        "transfer": TransferSettings,
    }
    return list((section[place[0]] if place else Recipe).model_fields)


def _located(recipe: Recipe, directory: Path) -> Recipe:
    """The same recipe with its paths made absolute, so that later stages need not know where it came from."""

    def locate(key: str, text: str) -> str:
        return str((directory / Path(_expand(key, text)).expanduser()).resolve())

    changes: dict[str, Any] = {}
    if recipe.data.hub is None:
        given = {"train": recipe.data.train, "validation": recipe.data.validation}
        paths = {key: locate(f"data.{key}", path) for key, path in given.items() if path is not None}
        changes["data"] = recipe.data.model_copy(update=paths)
    if recipe.transfer is not None and recipe.transfer.recipe is not None:
        first = locate("transfer.recipe", recipe.transfer.recipe)
        changes["transfer"] = recipe.transfer.model_copy(update={"recipe": first})
    if recipe.warm_start_from is not None:
        changes["warm_start_from"] = locate("warm_start_from", recipe.warm_start_from)
    if recipe.base_model.startswith((".", "/", "~")):
        changes["base_model"] = locate("base_model", recipe.base_model)
    return recipe.model_copy(update=changes)


def _expand(key: str, text: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match["name"]) or match["default"]
        if found is None:
            raise SettingsError(key, text, f"the environment variable {match['name']} to be set")
        return found

    return _VARIABLE.sub(value, text)
