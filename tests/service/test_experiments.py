"""The experiments file: checked against the registry, re-read, and the last good one kept."""

import time
from pathlib import Path

import pytest

from adapters.errors import SettingsError, UnknownExperiment
from adapters.store import Registry
from service.decisions import Decision, Standing
from service.experiments import LOOK_EVERY_S, Experiments, read_experiments
from tests.service.running import EXPERIMENTS

LAYERED = """
- name: first
  salt: ""
  layer: {name: page, from: 0, to: 50}
  arms: [{name: control, adapter: base}, {name: treatment, adapter: movies}]
"""


@pytest.fixture
def filled(registry: Registry, made: dict[str, Path]) -> Registry:
    for name, source in made.items():
        registry.publish(source, name)
    return registry


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("- name: [", "is no YAML"),
        ("name: x", "valid tuple"),
        (EXPERIMENTS + EXPERIMENTS, "experiment names must differ, movies-2026-12"),
        (EXPERIMENTS.replace("movies, weight", "nope, weight"), "arm treatment: no adapter 'nope'"),
        (
            EXPERIMENTS.replace("movies, weight", "tone, weight"),
            r"labels \['negative', 'neutral', .* are not",
        ),
        (EXPERIMENTS.replace("movies, weight", "plain, weight"), "no manifest, so its labels are not known"),
        (EXPERIMENTS + "  shadow: {adapter: movies, share: 10}\n", "0.shadow.share: Extra inputs"),
        (EXPERIMENTS + "  shadow: {adapter: tone}\n", r"the shadow: labels \['negative', 'neutral', .* are not"),
        (EXPERIMENTS + "  shadow: {adapter: movies@7}\n", "the shadow: no adapter 'movies@7'"),
        (EXPERIMENTS + LAYERED + LAYERED.replace("first", "second"), "first and second overlap in layer page"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(filled: Registry, tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=expected):
        read_experiments(path, filled)
    with pytest.raises(SettingsError, match="EXPERIMENTS_FILE"):
        Experiments(path, filled)


def test_a_bad_edit_keeps_the_last_good_one(filled: Registry, tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(EXPERIMENTS)
    experiments = Experiments(path, filled)
    good = experiments.current
    assert [experiment.name for experiment in good] == ["movies-2026-12"]

    def edit(content: str) -> None:
        path.write_text(content)
        time.sleep(LOOK_EVERY_S)
        experiments.refresh()

    experiments.refresh()
    edit("- name: [")
    assert experiments.current == good
    assert experiments.error is not None and "no YAML" in experiments.error
    edit(EXPERIMENTS.replace("movies-2026-12", "next"))
    assert experiments.error is None
    assert [experiment.name for experiment in experiments.current] == ["next"]
    path.unlink()
    edit_missing = experiments.current
    time.sleep(LOOK_EVERY_S)
    experiments.refresh()
    assert experiments.current == edit_missing
    assert experiments.error is not None


def test_an_adapter_that_is_not_whole_is_refused(filled: Registry, tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(EXPERIMENTS)
    with (filled.root / "movies" / "1" / "adapter_model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"movies@1's file adapter_model.safetensors is not the one"):
        read_experiments(path, filled)


def test_what_was_decided_is_in_force(filled: Registry, tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(EXPERIMENTS)
    experiments = Experiments(path, filled)
    assert experiments.in_force[0].weights == {"control": 0.5, "treatment": 0.5}
    given = Standing((Decision(1, 0.0, "stepped", {"control": 0.9, "treatment": 0.1}, ""),))
    experiments.standings = {("movies-2026-12", "v1"): given}
    assert experiments.in_force[0].weights == {"control": 0.9, "treatment": 0.1}
    stopped = given.next("stopped", {"control": 0.9, "treatment": 0.1}, "enough")
    experiments.standings = {("movies-2026-12", "v1"): Standing((*given.decisions, stopped))}
    assert experiments.in_force == () and experiments.named("movies-2026-12").weights["treatment"] == 0.1
    path.write_text(EXPERIMENTS.replace("salt: v1", "salt: v2"))
    time.sleep(LOOK_EVERY_S)
    experiments.refresh()
    assert experiments.in_force[0].weights == {"control": 0.5, "treatment": 0.5}  # anew, though nothing was decided yet
    with pytest.raises(UnknownExperiment, match="there: movies-2026-12"):
        experiments.named("other")
