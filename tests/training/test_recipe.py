"""Recipes: overrides, paths, and errors that name key, value and what was expected."""

import json
from pathlib import Path

import pytest
import yaml

from adapters.base_model import DEFAULT_BASE_MODEL
from adapters.errors import SettingsError
from training.recipe import LoraSettings, load_recipe, recipe_schema

SHIPPED = Path(__file__).parents[2] / "training" / "recipes"
CONTENT = {"name": "tiny", "data": {"name": "made", "train": "a.jsonl", "validation": "${SOMEWHERE:-else}/b.jsonl"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    return path


def test_defaults_and_paths(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(path)
    assert recipe.base_model == DEFAULT_BASE_MODEL
    assert recipe.lora == LoraSettings()
    assert recipe.data.train == str(path.parent / "a.jsonl")
    assert recipe.data.validation == str(path.parent / "else" / "b.jsonl")
    monkeypatch.setenv("SOMEWHERE", "/data")
    assert load_recipe(path).data.validation == "/data/b.jsonl"


def test_overrides_are_yaml_by_dotted_key(path: Path) -> None:
    recipe = load_recipe(path, ["training.epochs=2", "training.learning_rate=5e-4", "lora.targets=[query, value]"])
    assert recipe.training.epochs == 2
    assert recipe.training.learning_rate == 5e-4
    assert recipe.lora is not None
    assert recipe.lora.targets == ("query", "value")
    assert load_recipe(path, ["lora=null"]).lora is None
    assert load_recipe(path, ["lora=null", "lora.rank=2"]).lora == LoraSettings(rank=2)


@pytest.mark.parametrize(
    ("override", "key", "value", "expected"),
    [
        ("training.epochs=ten", "training.epochs", "ten", "integer"),
        ("training.epochs=0", "training.epochs", 0, "greater than or equal to 1"),
        ("training.learning_rat=1", "training.learning_rat", 1, "did you mean learning_rate?"),
        ("lora.rank=-1", "lora.rank", -1, "greater than or equal to 1"),
        ("flavour=sour", "flavour", "sour", "the keys here are name, description"),
        ("data.train=null", "data.train", None, "string"),
        ("data.revision=abc", "data", None, "revision needs hub"),
        ("data.labels=[one]", "data", None, "at least two"),
        ("name=No Spaces", "name", "No Spaces", "match pattern"),
        ("truncation_side=middle", "truncation_side", "middle", "'left' or 'right'"),
        ("name.inner=1", "name.inner", "1", "none below it"),
        ("nonsense", "--set", "nonsense", "key=value"),
    ],
)
def test_a_bad_field_is_named(path: Path, override: str, key: str, value: object, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_recipe(path, [override])
    assert caught.value.key == key
    if value is not None:
        assert caught.value.value == value
    assert expected in str(caught.value)


def test_an_unset_variable_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(SettingsError, match="environment variable NOWHERE"):
        load_recipe(path, ["data.train=${NOWHERE}/a.jsonl"])


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00"])
def test_a_file_that_is_no_recipe(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError):
        load_recipe(path)
    with pytest.raises(SettingsError, match=r"absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description
    assert recipe.data.source
    assert recipe.data.licence


def test_the_original_experiment_is_as_it_was() -> None:
    recipe = load_recipe(SHIPPED / "imdb-distilbert.yaml")
    assert recipe.base_model.endswith("distilbert-base-uncased")
    assert recipe.data.hub == "shawhin/imdb-truncated"
    assert recipe.data.train == "train"
    assert recipe.lora == LoraSettings(rank=4, alpha=32, dropout=0.01, targets=("q_lin",))
    assert (recipe.training.learning_rate, recipe.training.batch_size, recipe.training.epochs) == (1e-3, 4, 10)
    assert (recipe.max_tokens, recipe.truncation_side) == (512, "left")


def test_a_recipe_extends_another(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "variants"
    inner.mkdir()
    child = inner / "child.yaml"
    child.write_text("extends: ../recipe.yaml\nname: child\nlora: {rank: 4}\ntraining: {epochs: 2}\n")
    grandchild = inner / "grandchild.yaml"
    grandchild.write_text("extends: child.yaml\ndata: {train: own.jsonl}\n")
    recipe = load_recipe(grandchild, ["training.seed=3"])
    assert (recipe.name, recipe.lora, recipe.training.epochs, recipe.training.seed) == (
        "child",
        LoraSettings(rank=4),
        2,
        3,
    )
    assert recipe.data.train == str(inner / "own.jsonl")
    assert recipe.data.validation == str(tmp_path / "else" / "b.jsonl")
    assert load_recipe(child).data.train == str(tmp_path / "a.jsonl")
    monkeypatch.setenv("SOMEWHERE", "/data")
    assert load_recipe(child).data.validation == "/data/b.jsonl"
    path.write_text("extends: variants/child.yaml\n")
    with pytest.raises(SettingsError, match="extends itself"):
        load_recipe(child)
    child.write_text("extends: nowhere.yaml\n")
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        load_recipe(child)


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_schema_fits_the_shipped_recipes(file: Path) -> None:
    import jsonschema_rs

    # Through JSON, whose keys are texts: {0: negative} is {"0": negative} to an editor.
    content = json.loads(json.dumps(yaml.safe_load(file.read_text())))
    validator = jsonschema_rs.validator_for(recipe_schema())
    assert not list(validator.iter_errors(content))
    assert list(validator.iter_errors(content | {"colour": "red"}))
