"""Writes tonearm.json: one dashboard, a row for each of the four who look at it.

python k8s/components/grafana-dashboard/generate.py        # pip install grafana-foundation-sdk
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import StackingConfig, VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh

TARGET = Path(__file__).with_name("tonearm.json")

_HERE = 'namespace=~"$namespace", instance=~"$instance"'
"""Selector of every query."""

_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 24


@dataclass(frozen=True, slots=True)
class Panel:
    """
    Attributes:
        queries: legend -> PromQL, in which HERE stands for the selected instances' labels.
        stacked: parts of a whole.
        single: the newest value, large, in place of a curve.
    """

    title: str
    queries: dict[str, str]
    about: str = ""
    unit: str = "short"
    stacked: bool = False
    single: bool = False


def _quantile(share: float, metric: str, by: str = "") -> str:
    return (
        f"histogram_quantile({share}, sum by (le{by and ', ' + by}) (rate({metric}_bucket{{HERE}}[$__rate_interval])))"
    )


def _rate(metric: str, by: str = "", more: str = "") -> str:
    selector = f"HERE, {more}" if more else "HERE"
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{selector}}}[$__rate_interval]))"


_FAILED = _rate("tonearm_requests_total", more="status=~`5..`")
_SHADOWS = ("tonearm_shadow_texts_total", "experiment, shadow")

ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Panel("Instances that take work", {"": "sum(tonearm_ready{HERE})"}, single=True),
        Panel("Texts a second", {"": _rate("tonearm_texts_total")}, single=True),
        Panel(
            "Requests that fail",
            {"": f"({_FAILED} or vector(0)) / {_rate('tonearm_requests_total')}"},
            unit="percentunit",
            single=True,
        ),
    ),
    "Callers: is it fast, does it answer": (
        Panel(
            "Requests by status", {"{{status}}": _rate("tonearm_requests_total", "status")}, unit="reqps", stacked=True
        ),
        Panel(
            "Time to answer, /classify",
            {
                f"p{share * 100:g}": (
                    f"histogram_quantile({share}, sum by (le) "
                    '(rate(tonearm_request_seconds_bucket{HERE, route="/classify"}[$__rate_interval])))'
                )
                for share in (0.5, 0.95, 0.99)
            },
            unit="s",
        ),
        Panel(
            "What goes wrong, by kind",
            {"{{kind}}": _rate("tonearm_problems_total", "kind")},
            "The last part of a problem document's type.",
            unit="reqps",
            stacked=True,
        ),
    ),
    "Operators: where time and memory go": (
        Panel(
            "Time in each stage, p95",
            {"{{stage}}": _quantile(0.95, "tonearm_stage_seconds", "stage")},
            "queue is a job's wait; tokenise and forward are a batch's.",
            unit="s",
        ),
        Panel(
            "Queue, share of its limits",
            {
                "texts": "max(tonearm_queued_rows{HERE} / tonearm_queued_rows_limit{HERE})",
                "tokens": "max(tonearm_queued_tokens{HERE} / tonearm_queued_tokens_limit{HERE})",
            },
            unit="percentunit",
        ),
        Panel(
            "Padding, share of what is computed",
            {"": f"1 - {_rate('tonearm_batch_tokens_total')} / {_rate('tonearm_padded_tokens_total')}"},
            unit="percentunit",
        ),
        Panel(
            "Texts in a batch",
            {"p50": _quantile(0.5, "tonearm_batch_rows"), "p95": _quantile(0.95, "tonearm_batch_rows")},
        ),
        Panel(
            "Adapters",
            {
                "registered": "max(tonearm_adapters_registered{HERE})",
                "{{state}}": "max by (state) (tonearm_adapters{HERE})",
                "capacity": "max(tonearm_adapters_capacity{HERE})",
            },
        ),
        Panel(
            "Loads and evictions a second",
            {
                "{{outcome}}": _rate("tonearm_adapter_loads_total", "outcome"),
                "evicted": _rate("tonearm_adapter_evictions_total"),
            },
            "Many evictions: the working set is larger than the bank. Route by adapter, or raise its capacity.",
            unit="ops",
        ),
        Panel("Time of a load, p95", {"{{stage}}": _quantile(0.95, "tonearm_adapter_load_seconds", "stage")}, unit="s"),
        Panel("Memory", {"{{instance}} {{process}}": "tonearm_process_resident_bytes{HERE}"}, unit="bytes"),
        Panel(
            "Workers",
            {
                "up": "sum(tonearm_worker_up{HERE})",
                "lost in 15 min": "sum(increase(tonearm_workers_lost_total{HERE}[15m]))",
            },
        ),
    ),
    "Trainers: what adapters say": (
        Panel(
            "Texts by adapter",
            {"{{adapter}}": _rate("tonearm_texts_total", "adapter", "adapter=~`$adapter`")},
            stacked=True,
        ),
        Panel(
            "Labels given",
            {"{{adapter}} {{label}}": _rate("tonearm_answers_total", "adapter, label", "adapter=~`$adapter`")},
            "A share that moves while the adapter stays is a change in the texts.",
            stacked=True,
        ),
        Panel(
            "How sure, mean of the highest score",
            {
                "{{adapter}}": f"{_rate('tonearm_confidence_sum', 'adapter', 'adapter=~`$adapter`')} / "
                f"{_rate('tonearm_confidence_count', 'adapter', 'adapter=~`$adapter`')}"
            },
            unit="percentunit",
        ),
    ),
    "Experimenters: what is being compared": (
        Panel(
            "Units assigned, by arm", {"{{experiment}} {{arm}}": _rate("tonearm_assignments_total", "experiment, arm")}
        ),
        Panel(
            "Split against weights, p",
            {"{{experiment}}": "min by (experiment) (tonearm_experiment_sample_ratio_p{HERE})"},
            "Below 0.001 the results are void.",
        ),
        Panel(
            "Exposures and feedback",
            {
                "exposures {{outcome}}": _rate("tonearm_exposures_total", "outcome"),
                "feedback {{outcome}}": _rate("tonearm_feedback_total", "outcome"),
            },
        ),
        Panel(
            "Shadows, share of the texts they read",
            {"{{experiment}} {{shadow}}": f"{_rate(*_SHADOWS, 'outcome=`read`')} / {_rate(*_SHADOWS)}"},
            unit="percentunit",
        ),
        Panel(
            "Decisions",
            {
                "{{experiment}} {{kind}}": "sum by (experiment, kind) (tonearm_experiment_decisions_total{HERE})",
            },
        ),
    ),
}


def expressions() -> dict[str, str]:
    """Every query as Prometheus reads it with everything selected, by `panel: legend`."""
    found = {}
    for panels in ROWS.values():
        for panel in panels:
            for legend, query in panel.queries.items():
                plain = query.replace("HERE", 'namespace=~".*", instance=~".*"').replace("$__rate_interval", "1m")
                found[f"{panel.title}: {legend}"] = plain.replace("$adapter", ".*")
    return found


def generate() -> str:
    """The dashboard as Grafana imports it."""
    source = DataSourceRef(type_val="prometheus", uid="${datasource}")
    board = (
        dashboard.Dashboard("Tonearm")
        .uid("tonearm")
        .description("Text classifiers from one shared encoder: callers, operators, trainers, experimenters.")
        .tags(["tonearm"])
        .refresh("30s")
        .time("now-3h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Data source"))
    )
    variables = {"namespace": "tonearm_ready", "instance": "tonearm_ready", "adapter": "tonearm_texts_total"}
    for name, metric in variables.items():
        board = board.with_variable(
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .query(f"label_values({metric}, {name})")
            .datasource(source)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    numbers = itertools.count(1)
    for title, panels in ROWS.items():
        board = board.with_row(dashboard.Row(title).id(next(numbers)))
        for panel in panels:
            board = board.with_panel(_drawn(panel, source).id(next(numbers)))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _drawn(panel: Panel, source: DataSourceRef) -> stat.Panel | timeseries.Panel:
    drawn = stat.Panel() if panel.single else timeseries.Panel().fill_opacity(25 if panel.stacked else 5)
    drawn = drawn.title(panel.title).description(panel.about).unit(panel.unit).datasource(source)
    drawn = drawn.span(_WIDTH).height(_HEIGHT // 2 if panel.single else _HEIGHT)
    if not panel.single:
        drawn = drawn.legend(
            VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
        )
        if panel.stacked:
            drawn = drawn.stacking(StackingConfig().mode(StackingMode.NORMAL))
    for at, (legend, query) in enumerate(panel.queries.items()):
        target = prometheus.Dataquery().expr(query.replace("HERE", _HERE)).ref_id(chr(ord("A") + at))
        drawn = drawn.with_target(target.legend_format(legend or panel.title))
    return drawn


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
