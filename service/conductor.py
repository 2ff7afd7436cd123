"""Follows experiments on the clock: notes their start and every change of their weights, and conducts promotions.

One runs in every replica's API process, off its event loop; the database says whose decision holds.
"""

import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from adapters.errors import AdapterError, StoreUnavailable, UnknownExperiment
from adapters.store import Registry
from service import metrics, promotion
from service.analysis import Analysis, ArmData, analyse, sample_ratio_p
from service.decisions import Decision, Kind, Standing, read_standings, record
from service.experiments import Experiments, shares, weighted
from service.results import arms, evidence
from service.routing import Arm, Experiment
from service.store import Store

LOOK_EVERY_S = 1.0

_JUDGE_EVERY_S = 5.0
"""The analysis reads every exposure of an experiment: not at each look."""

_CHECK_EVERY_S = 30.0
"""Between two checks of the splits, for the metrics."""

log = structlog.get_logger(__name__)


class Conductor:
    """Belongs to one thread at a time; `Experiments` is read by others, and gets whole standings only."""

    def __init__(self, experiments: Experiments, store: Store, registry: Registry) -> None:
        """
        Args:
            registry: one of its own: the event loop's remembers what it saw, and is no other thread's to use.
        """
        self._experiments = experiments
        self._store = store
        self._registry = registry
        self._judge_due_s: dict[tuple[str, str], float] = {}
        self._check_due_s = 0.0
        self._sample_ratio_p: dict[str, float] = {}
        self.waiting: dict[str, str] = {}
        """Why a promotion does not move now, by experiment."""

    def look(self) -> None:
        """Read what was decided, and decide what is due. Never raises for a database that is away."""
        experiments = self._experiments.current
        try:
            standings = read_standings(self._store, experiments)
            for experiment in experiments:
                standing = standings[experiment.key]
                decision = self._due(experiment, standing)
                if decision is not None and self._take(experiment, decision):
                    standings[experiment.key] = Standing((*standing.decisions, decision))
        except StoreUnavailable:
            return  # the store has said so
        if standings != self._experiments.standings:
            self._experiments.standings = standings

    def gauges(self) -> metrics.Gauges:
        text = "Chi-squared test of an experiment's split against its weights; below 0.001 its results are void."
        samples = [({"experiment": name}, p) for name, p in sorted(self._sample_ratio_p.items())]
        return {"tonearm_experiment_sample_ratio_p": (text, samples)} if samples else {}

    def end(self, experiment: Experiment, kind: Kind, arm: Arm | None, alias: str | None, reason: str) -> Standing:
        """What an administrator decides: `stopped`, or `promoted` to an arm.

        Args:
            alias: of the arm's adapter, moved to its version.

        Raises:
            StoreUnavailable: nothing was decided.
            AdapterError: the arm's adapter is gone.
            OSError: the registry cannot be written; nothing was decided.
        """
        while True:
            standing = read_standings(self._store, [experiment])[experiment.key]
            if standing.ended:
                return standing
            weights = weighted(experiment, standing).weights
            if arm is not None:
                weights = {each.name: float(each.name == arm.name) for each in experiment.arms}
                if alias is not None:
                    self._point(alias, arm)
            decision = standing.next(kind, weights, reason)
            if self._take(experiment, decision):
                standing = Standing((*standing.decisions, decision))
                self._experiments.standings = {**self._experiments.standings, experiment.key: standing}
                return standing

    def analysis(self, experiment: Experiment) -> Analysis:
        """
        Raises:
            StoreUnavailable: the database does not answer.
        """
        return analyse(self._arms(experiment))

    def _arms(self, experiment: Experiment) -> list[ArmData]:
        return arms(self._store, experiment, self._experiments.standing(experiment).changes_s)

    def check_splits(self) -> None:
        """Look, now and then, whether units are split as they should be; `gauges` has what was found."""
        now_s = time.monotonic()
        if now_s < self._check_due_s:
            return
        self._check_due_s = now_s + _CHECK_EVERY_S
        found = {}
        for experiment in self._experiments.current:
            with suppress(StoreUnavailable):
                p = sample_ratio_p(self._arms(experiment))
                if p is not None:
                    found[experiment.name] = p
        self._sample_ratio_p = found

    def _due(self, experiment: Experiment, standing: Standing) -> Decision | None:
        now = weighted(experiment, standing)
        if standing.last is None:
            return standing.next("started", now.weights, "it is in the file")
        if standing.ended:
            return None
        if experiment.promotion is not None:
            return self._promote(now, standing)
        if standing.last.weights != experiment.weights:
            return standing.next("weighted", experiment.weights, "the file gives other weights")
        return None

    def _promote(self, experiment: Experiment, standing: Standing) -> Decision | None:
        assert experiment.promotion is not None and standing.last is not None
        key, now_s = experiment.key, time.monotonic()
        if now_s < self._judge_due_s.get(key, 0.0):
            return None
        self._judge_due_s[key] = now_s + _JUDGE_EVERY_S
        candidate, since_s = experiment.arms[1], standing.last.at_s
        slow_ms = experiment.promotion.guardrails.p99_ms or float("inf")
        seen = evidence(self._store, experiment, candidate.name, since_s, slow_ms)
        found = self.analysis(experiment)
        difference = found.differences[0] if found.differences else None
        percent, held_s = 100 * candidate.weight, time.time() - since_s
        step = promotion.decide(experiment.promotion, percent, held_s, seen, difference, found.void)
        self.waiting[experiment.name] = step.reason
        if step.towards == "wait":
            return None
        if step.towards == "forward":
            return standing.next("stepped", shares(experiment, step.percent), step.reason)
        if step.towards == "back":
            return standing.next("taken-back", shares(experiment, 0), step.reason)
        try:
            if experiment.promotion.alias is not None:
                self._point(experiment.promotion.alias, candidate)
        except (AdapterError, OSError) as error:
            self.waiting[experiment.name] = f"the alias {experiment.promotion.alias} cannot be moved: {error}"
            log.error("alias_not_moved", experiment=experiment.name, reason=str(error))
            return None
        return standing.next("promoted", shares(experiment, 100), step.reason)

    def _point(self, alias: str, arm: Arm) -> None:
        adapter = self._registry.resolve(arm.adapter)
        self._registry.set_alias(adapter.name, alias, adapter.version)
        log.info("alias_moved", alias=f"{adapter.name}@{alias}", adapter=str(adapter))

    def _take(self, experiment: Experiment, decision: Decision) -> bool:
        if not record(self._store, experiment, decision):
            return False
        self.waiting.pop(experiment.name, None)
        metrics.decisions.labels(experiment.name, decision.kind).inc()
        facts = {"kind": decision.kind, "weights": decision.weights, "reason": decision.reason}
        log.info("experiment_decision", experiment=experiment.name, **facts)
        return True


def arm_named(experiment: Experiment, name: str | None) -> Arm:
    """
    Args:
        name: None is the second of two.

    Raises:
        UnknownExperiment: there is no such arm.
    """
    named: Sequence[Arm] = [arm for arm in experiment.arms if arm.name == name]
    if name is None and len(experiment.arms) == 2:
        named = experiment.arms[1:]
    if not named:
        known = ", ".join(arm.name for arm in experiment.arms)
        raise UnknownExperiment(f"experiment {experiment.name} has no arm {name!r}; it has {known}")
    return named[0]
