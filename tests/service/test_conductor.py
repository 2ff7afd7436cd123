"""Experiments on the clock: started, weighted, stepped, taken back, ended, by one replica and by several."""

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.store import Registry
from service import conductor as conductor_module
from service.conductor import Conductor, arm_named
from service.experiments import LOOK_EVERY_S, Experiments
from service.routing import assign
from service.store import Exposure, Store
from tests.service.running import EXPERIMENTS

PROMOTION = """
- name: movies-2026-12
  salt: v1
  arms:
    - {name: control, adapter: base}
    - {name: candidate, adapter: movies@1}
  promotion:
    stages: [10, 50, 100]
    hold_s: 0
    units: 20
    alias: production
    guardrails: {error_rate: 0.05, accuracy: 0.1}
"""


class Replica:
    """One API process's parts, without its HTTP."""

    def __init__(self, path: Path, registry: Registry, store: Store) -> None:
        self.experiments = Experiments(path, registry)
        self.conductor = Conductor(self.experiments, store, registry)
        self.store = store

    def look(self) -> None:
        self.conductor.look()

    @property
    def decisions(self) -> list[tuple[str, float]]:
        standing = self.experiments.standing(self.experiments.current[0])
        arm = self.experiments.current[0].arms[1].name
        return [(decision.kind, round(decision.weights[arm], 6)) for decision in standing.decisions]

    def traffic(self, units: int, accuracy: float = 0.9, error: str | None = None) -> None:
        """So many new units, each to its arm, with feedback.

        Args:
            accuracy, error: of the second arm.
        """
        experiment, now_s = self.experiments.in_force[0], time.time()
        noted: list[Exposure] = []
        for at in range(units):
            arm = assign(experiment, f"{now_s} {at}")
            mine = error if arm.name == experiment.arms[1].name else None
            place = (f"{now_s} {at}", 0, "movies@1", now_s, experiment.name, arm.name, f"{now_s} {at}")
            noted.append(Exposure(*place, "positive", 0.9, 5.0, mine))
        self.store.expose(noted)
        asyncio.run(self._say(noted, {experiment.arms[0].name: 0.9, experiment.arms[1].name: accuracy}))

    async def _say(self, noted: list[Exposure], accuracy: dict[str, float]) -> None:
        draw = random.Random(1)
        for exposure in noted:
            if exposure.error is None:
                label = "positive" if draw.random() < accuracy[str(exposure.arm)] else "negative"
                await self.store.feedback(exposure.request_id, 0, label)


@pytest.fixture
def filled(registry: Registry, made: dict[str, Path]) -> Registry:
    for name in ("base", "movies"):
        registry.publish(made[name], name)
    return registry


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/store.db", 30)
    store.migrate()
    store.start()
    yield store
    store.stop(5)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conductor_module, "_JUDGE_EVERY_S", 0.0)


def test_the_start_and_changed_weights_are_written_down_once(filled: Registry, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(EXPERIMENTS)
    replicas = [Replica(path, filled, store) for _ in range(2)]
    for _ in range(2):
        for replica in replicas:
            replica.look()
    assert [replica.decisions for replica in replicas] == [[("started", 0.5)]] * 2
    path.write_text(EXPERIMENTS.replace("movies, weight: 50", "movies, weight: 150"))
    time.sleep(LOOK_EVERY_S)
    for replica in replicas:
        replica.experiments.refresh()
        replica.look()
    replicas[0].look()
    assert [replica.decisions for replica in replicas] == [[("started", 0.5), ("weighted", 0.75)]] * 2
    assert replicas[0].experiments.in_force[0].weights["treatment"] == 0.75
    path.write_text(EXPERIMENTS.replace("salt: v1", "salt: v2"))
    time.sleep(LOOK_EVERY_S)
    replicas[1].experiments.refresh()
    replicas[1].look()
    assert replicas[1].decisions == [("started", 0.5)]


def test_a_good_candidate_is_promoted_step_by_step(filled: Registry, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(PROMOTION)
    first, second = Replica(path, filled, store), Replica(path, filled, store)
    assert first.experiments.in_force[0].weights == {"control": 0.9, "candidate": 0.1}
    first.look()
    second.look()
    first.look()
    assert "0 of 20 units" in first.conductor.waiting["movies-2026-12"]
    steps = 0
    while first.decisions[-1][0] != "promoted":
        steps += 1
        assert steps < 20
        second.traffic(400)
        first.look()
        second.look()
    assert first.decisions == [("started", 0.1), ("stepped", 0.5), ("stepped", 1.0), ("promoted", 1.0)]
    assert second.decisions == first.decisions
    assert filled.aliases("movies") == {"production": 1}
    assert all(decision.reason for decision in first.experiments.standings["movies-2026-12", "v1"].decisions)
    assert "movies-2026-12" not in first.conductor.waiting


def test_a_worse_candidate_never_gets_all(filled: Registry, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(PROMOTION)
    replica = Replica(path, filled, store)
    for _ in range(8):
        replica.look()
        replica.traffic(400, accuracy=0.6)
        replica.look()
    assert replica.decisions[-1] == ("taken-back", 0.0) and ("stepped", 1.0) not in replica.decisions
    standing = replica.experiments.standings["movies-2026-12", "v1"]
    assert standing.last is not None and standing.last.reason.startswith("accuracy: -")


def test_harm_takes_the_candidate_back(filled: Registry, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(PROMOTION)
    replica = Replica(path, filled, store)
    replica.look()
    replica.traffic(600, error="WorkerLost")
    replica.look()
    assert replica.decisions == [("started", 0.1), ("taken-back", 0.0)]
    standing = replica.experiments.standings["movies-2026-12", "v1"]
    assert "error rate: " in standing.decisions[-1].reason
    assert replica.experiments.in_force[0].weights == {"control": 1.0, "candidate": 0.0}
    replica.look()
    assert len(replica.decisions) == 2
    assert filled.aliases("movies") == {}


def test_an_administrators_word_is_final(filled: Registry, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(EXPERIMENTS)
    first, second = Replica(path, filled, store), Replica(path, filled, store)
    first.look()
    experiment = first.experiments.named("movies-2026-12")
    first.conductor.end(experiment, "promoted", arm_named(experiment, None), "production", "better")
    assert filled.aliases("movies") == {"production": 1}
    again = second.conductor.end(experiment, "stopped", None, None, "too late")
    assert again.last is not None and again.last.kind == "promoted"
    second.look()
    assert second.experiments.in_force[0].weights == {"control": 0.0, "treatment": 1.0}
