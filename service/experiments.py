"""`experiments.yaml`: read again when it changes; a bad edit keeps the last good one, and says so."""

import time
from pathlib import Path
from typing import Any

import structlog
import yaml
from pydantic import TypeAdapter, ValidationError

from adapters.errors import AdapterError, SettingsError
from adapters.manifest import MANIFEST, read_manifest
from adapters.store import Registry
from service import metrics
from service.routing import Experiment, repeated

LOOK_EVERY_S = 1.0
_MAX_BYTES = 2**20
_SCHEMA = TypeAdapter(tuple[Experiment, ...])

Stamp = tuple[int, int]

log = structlog.get_logger(__name__)


class Experiments:
    """The experiments in force.

    Attributes:
        current: the last good ones.
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
    for experiment in experiments:
        _check_labels(experiment, registry)
    return experiments


def _check_labels(experiment: Experiment, registry: Registry) -> None:
    """Arms can only be compared over one label set, so each must exist and say what its labels are."""
    first: tuple[str, frozenset[str]] | None = None
    for arm in experiment.arms:
        where = f"experiment {experiment.name}, arm {arm.name}"
        try:
            adapter = registry.resolve(arm.adapter)
            directory = registry.directory(adapter)
            if not (directory / MANIFEST).is_file():
                raise ValueError(f"{where}: adapter {adapter} has no manifest, so its labels are not known")
            labels = frozenset(read_manifest(directory).labels)
        except AdapterError as error:
            raise ValueError(f"{where}: {error}") from None
        if first is None:
            first = arm.name, labels
        elif labels != first[1]:
            raise ValueError(
                f"{where}: labels {sorted(labels)} are not those of arm {first[0]}, {sorted(first[1])}; "
                "arms of one experiment must share a label set"
            )
