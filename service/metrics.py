"""Metrics of all processes of one run, merged at `/metrics`.

`prometheus_client` decides at import whether it counts over processes, by `PROMETHEUS_MULTIPROC_DIR`: main sets that
before anything here is imported. Counters and histograms live in that directory; what is a state rather than a count
(queue, adapters, workers) is looked up when scraped, so that no dead process leaves a stale gauge.
"""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SHIFTS = (-0.5, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5)
_MAX_ADAPTER_LABELS = 200
_MAX_LABEL_LABELS = 100

requests = Counter("tonearm_requests", "Requests answered.", ("route", "status", "adapter", "experiment", "arm"))
request_seconds = Histogram("tonearm_request_seconds", "Time to answer a request.", ("route",), buckets=_SECONDS)
texts = Counter("tonearm_texts", "Texts times adapters, by how they ended.", ("adapter", "outcome"))
assignments = Counter("tonearm_assignments", "Units assigned to an arm, once a request.", ("experiment", "arm"))
experiments_reads = Counter("tonearm_experiments_reads", "Times the experiments file was read.", ("outcome",))

_PAIR = ("experiment", "adapter", "shadow")
shadow_texts = Counter(
    "tonearm_shadow_texts", "Texts meant for a shadow, read or shed.", ("experiment", "shadow", "outcome")
)
shadow_labels = Counter(
    "tonearm_shadow_labels", "Texts by what was answered and what the shadow said.", (*_PAIR, "answered", "said")
)
shadow_score_shift = Histogram(
    "tonearm_shadow_score_shift", "A shadow's highest score less the answer's.", _PAIR, buckets=_SHIFTS
)
decisions = Counter("tonearm_experiment_decisions", "Decisions taken by this replica.", ("experiment", "kind"))
exposures = Counter("tonearm_exposures", "Answers noted for the analysis, by what became of them.", ("outcome",))

stage_seconds = Histogram(
    "tonearm_stage_seconds", "Time of a batch in a stage; queue is a job's wait.", ("stage",), buckets=_SECONDS
)
batch_rows = Histogram("tonearm_batch_rows", "Texts times adapters in a batch.", buckets=_ROWS)
micro_batches = Counter("tonearm_micro_batches", "Forward passes.")
batch_tokens = Counter("tonearm_batch_tokens", "Tokens read, without padding.")
padded_tokens = Counter("tonearm_padded_tokens", "Tokens computed on, padding included.")
loads = Counter("tonearm_adapter_loads", "Adapters read and attached.", ("outcome",))
load_seconds = Histogram("tonearm_adapter_load_seconds", "Time of a load: read, attach.", ("stage",), buckets=_SECONDS)
workers_lost = Counter("tonearm_workers_lost", "Inference workers that died.")


class BoundedLabel:
    """Keeps a label's cardinality bounded: the first so many values as they are, `other` for the rest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value not in self._seen:
            if len(self._seen) >= self._limit:
                return "other"
            self._seen.add(value)
        return value


adapter_label = BoundedLabel(_MAX_ADAPTER_LABELS)
label_label = BoundedLabel(_MAX_LABEL_LABELS)
"""Of adapters' own labels."""


Sample = tuple[dict[str, str], float]
Gauges = dict[str, tuple[str, list[Sample]]]
"""By metric name: its help text and its samples."""


class _States(Collector):
    def __init__(self, look: Callable[[], Gauges]) -> None:
        self._look = look

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, (text, samples) in self._look().items():
            labels = list(samples[0][0]) if samples else []
            family = GaugeMetricFamily(name, text, labels=labels)
            for values, number in samples:
                family.add_metric(list(values.values()), number)
            yield family


def scrape(look: Callable[[], Gauges]) -> bytes:
    """All processes' metrics in Prometheus' text format.

    Args:
        look: gives the gauges as they are now.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(_States(look))
    return generate_latest(registry)


def forget_process(pid: int) -> None:
    """Drop what a dead process left that is not a count."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
