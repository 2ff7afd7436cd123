"""`experiments.yaml`: read again when it changes; a bad edit keeps the last good one, and says so.

What is in force is the file, with what was decided since (`decisions.py`): a promotion's share, a stop.
"""

import time
from pathlib import Path
from typing import Any

import structlog
import yaml
from pydantic import TypeAdapter, ValidationError

from adapters.errors import AdapterError, SettingsError, UnknownExperiment
from adapters.manifest import MANIFEST, digest_files, read_manifest
from adapters.store import Registry
from service import metrics
from service.decisions import Standing, Standings
from service.routing import Experiment, layers_overlap, repeated

LOOK_EVERY_S = 1.0
_MAX_BYTES = 2**20
_SCHEMA = TypeAdapter(tuple[Experiment, ...])

Stamp = tuple[int, int]

log = structlog.get_logger(__name__)


class Experiments:
    """The experiments in force.

    Attributes:
        current: the last good ones, as the file has them.
        standings: what was decided about them.
        error: what is wrong with the file as it is now, or None.
    """

    def __init__(self, path: Path | None, registry: Registry) -> None:
        """
        Raises:
            SettingsError: the file is wrong at the start, when there is no last good one.
        """
        self._path = path
        self._registry = registry
        self._look_due_s = 0.0
        self._stamp: Stamp | None = None
        self.current: tuple[Experiment, ...] = ()
        self.standings: Standings = {}
        self._in_force: tuple[tuple[Experiment, ...], Standings, tuple[Experiment, ...]] = ((), {}, ())
        self.error: str | None = None
        if path is not None:
            self._stamp = self._stamp_now()
            try:
                self.current = read_experiments(path, registry)
            except ValueError as error:
                raise SettingsError(
                    "TONEARM_EXPERIMENTS_FILE", str(path), f"a good experiments file: {error}"
                ) from None

    def refresh(self) -> None:
        """Read the file again if it changed; looks once a second however often it is called."""
        if self._path is None or time.monotonic() < self._look_due_s:
            return
        self._look_due_s = time.monotonic() + LOOK_EVERY_S
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.current = read_experiments(self._path, self._registry)
            self.error = None
            metrics.experiments_reads.labels("good").inc()
            log.info("experiments_read", experiments=[experiment.name for experiment in self.current])
        except ValueError as error:
            self.error = str(error)
            metrics.experiments_reads.labels("bad").inc()
            log.error("experiments_refused", reason=self.error, kept=[experiment.name for experiment in self.current])

    @property
    def in_force(self) -> tuple[Experiment, ...]:
        """Those that take requests, with the weights that were decided last."""
        current, standings = self.current, self.standings
        if self._in_force[0] is not current or self._in_force[1] is not standings:
            found = [weighted(each, self.standing(each)) for each in current]
            running = [each for each in found if not self.standing(each).stopped]
            self._in_force = current, standings, tuple(running)
        return self._in_force[2]

    def standing(self, experiment: Experiment) -> Standing:
        """What was decided about it; nothing, as long as its salt is new."""
        return self.standings.get(experiment.key, Standing())

    def named(self, name: str) -> Experiment:
        """One of the file's, stopped or not, with the weights that were decided last.

        Raises:
            UnknownExperiment: the file has none of this name.
        """
        for experiment in self.current:
            if experiment.name == name:
                return weighted(experiment, self.standing(experiment))
        known = ", ".join(experiment.name for experiment in self.current) or "none"
        raise UnknownExperiment(f"no experiment {name!r} is in the file; there: {known}")

    def gauges(self) -> metrics.Gauges:
        text = "1 if the experiments file is in force as it is, 0 if an older one is."
        return {"tonearm_experiments_good": (text, [({}, float(self.error is None))])}

    def _stamp_now(self) -> Stamp | None:
        assert self._path is not None
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size


def weighted(experiment: Experiment, standing: Standing) -> Experiment:
    """With the weights that were decided last; before the first decision, a promotion is at its first stage."""
    last = standing.last
    if last is not None and last.weights.keys() == {arm.name for arm in experiment.arms}:
        return experiment.weighted(last.weights)
    if experiment.promotion is not None:
        return experiment.weighted(shares(experiment, experiment.promotion.stages[0]))
    return experiment


def shares(experiment: Experiment, percent: float) -> dict[str, float]:
    """Weights with which the second of two arms has so many percent of the units."""
    control, candidate = experiment.arms
    return {control.name: 1 - percent / 100, candidate.name: percent / 100}


def read_experiments(path: Path, registry: Registry) -> tuple[Experiment, ...]:
    """Read and check an experiments file.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise ValueError(f"is larger than {_MAX_BYTES} bytes")
    try:
        parsed: Any = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"is no YAML: {' '.join(str(error).split())}") from None
    try:
        experiments = _SCHEMA.validate_python(() if parsed is None else parsed)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
    twice = repeated(experiment.name for experiment in experiments)
    if twice:
        raise ValueError(f"experiment names must differ, {twice} occurs twice")
    overlap = layers_overlap(experiments)
    if overlap:
        raise ValueError(overlap)
    for experiment in experiments:
        _check_adapters(experiment, registry)
    return experiments


def _check_adapters(experiment: Experiment, registry: Registry) -> None:
    """Only what answers with one label set can be compared, so each adapter must be there, whole, and say its labels.

    What takes an engine to see (shapes, golden logits) the worker checks when it loads the adapter.
    """
    first: tuple[str, frozenset[str]] | None = None
    places = [(f"arm {arm.name}", arm.adapter) for arm in experiment.arms]
    if experiment.shadow is not None:
        places.append(("the shadow", experiment.shadow.adapter))
    for place, reference in places:
        where = f"experiment {experiment.name}, {place}"
        try:
            adapter = registry.resolve(reference)
            directory = registry.directory(adapter)
            if not (directory / MANIFEST).is_file():
                raise ValueError(f"{where}: adapter {adapter} has no manifest, so its labels are not known")
            manifest = read_manifest(directory)
            damaged = manifest.files.items() ^ digest_files(directory).items()
        except (AdapterError, OSError) as error:
            raise ValueError(f"{where}: {error}") from None
        if damaged:
            raise ValueError(f"{where}: {adapter}'s file {min(damaged)[0]} is not the one that its manifest names")
        labels = frozenset(manifest.labels)
        if first is None:
            first = place, labels
        elif labels != first[1]:
            raise ValueError(
                f"{where}: labels {sorted(labels)} are not those of {first[0]}, {sorted(first[1])}; "
                "what is compared must share a label set"
            )
