"""Metrics of all processes of one run, merged at `/metrics`.

`prometheus_client` decides at import whether it counts over processes, by `PROMETHEUS_MULTIPROC_DIR`: main sets that
before anything here is imported. Counters and histograms live in that directory; what is a state rather than a count
(queue, adapters, workers) is looked up when scraped, so that no dead process leaves a stale gauge.
"""

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from service.settings import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SHIFTS = (-0.5, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5)
_SCORES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_DEFAULT_ADAPTERS = 200
_MAX_LABEL_LABELS = 100

requests = Counter("tonearm_requests", "Requests answered.", ("route", "status", "adapter", "experiment", "arm"))
request_seconds = Histogram("tonearm_request_seconds", "Time to answer a request.", ("route",), buckets=_SECONDS)
texts = Counter("tonearm_texts", "Texts times adapters, by how they ended.", ("adapter", "outcome"))
assignments = Counter("tonearm_assignments", "Units assigned to an arm, once a request.", ("experiment", "arm"))
answers = Counter("tonearm_answers", "Texts answered, by adapter and the label given.", ("adapter", "label"))
confidence = Histogram(
    "tonearm_confidence", "Highest score of an answer; where it drifts, the texts have.", ("adapter",), buckets=_SCORES
)
problems = Counter("tonearm_problems", "Requests answered with a problem document, by its kind.", ("kind",))
feedback = Counter("tonearm_feedback", "Labels given as the truth, by what became of them.", ("outcome",))
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
evictions = Counter("tonearm_adapter_evictions", "Adapters that made room for others.")
workers_lost = Counter("tonearm_workers_lost", "Inference workers that died.")


class BusiestLabel:
    """Keeps a label's cardinality bounded: the busiest values as they are, `other` for the rest.

    The first `limit` values have series of their own. Once in a window of calls, values that came more than twice as
    often as one of these take its place, and that one is `other` from then on. A counter must not go down, so series
    stay as they are once they exist; a process makes at most twice the limit of them in its life.
    """

    def __init__(self, limit: int, window: int = 10_000) -> None:
        self.limit = limit
        self._window = window
        self._named: dict[str, int] = {}
        self._others: dict[str, int] = {}
        self._calls = self._replaced = 0

    def __call__(self, value: str) -> str:
        count = self._named.get(value)
        if count is not None:
            self._named[value] = count + 1
        elif len(self._named) < self.limit:
            self._named[value] = 1
        else:
            if value in self._others or len(self._others) < _MOST_WATCHED:
                self._others[value] = self._others.get(value, 0) + 1
            value = OTHER
        self._calls += 1
        if self._calls >= self._window:
            self._look()
        return value

    def _look(self) -> None:
        """The end of a window: those that were busier take the places of the idle."""
        idle = sorted(self._named.items(), key=itemgetter(1))
        busy = sorted(self._others.items(), key=itemgetter(1), reverse=True)
        for (least, below), (newcomer, above) in zip(idle, busy, strict=False):
            if above <= 2 * below or self._replaced >= self.limit:
                break
            self._replaced += 1
            del self._named[least]
            self._named[newcomer] = 0
        self._named = dict.fromkeys(self._named, 0)
        self._others.clear()
        self._calls = 0


OTHER = "other"
_MOST_WATCHED = 4096
"""Values without series of their own whose calls are counted within a window."""

adapter_label = BusiestLabel(_DEFAULT_ADAPTERS)
label_label = BusiestLabel(_MAX_LABEL_LABELS)
"""Of adapters' own labels."""


def configure(settings: "Settings") -> None:
    """What an operator decides; once a process, before anything is counted."""
    adapter_label.limit = settings.metrics_adapters


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
