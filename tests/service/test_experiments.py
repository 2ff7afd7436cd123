"""The experiments file: checked against the registry, re-read, and the last good one kept."""

import time
from pathlib import Path

import pytest

from adapters.errors import SettingsError
from adapters.store import Registry
from service.experiments import LOOK_EVERY_S, Experiments, read_experiments
from tests.service.running import EXPERIMENTS


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
        (EXPERIMENTS + "  shadow: {adapter: movies, percent: 10}\n", "0.shadow: Extra inputs"),
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
