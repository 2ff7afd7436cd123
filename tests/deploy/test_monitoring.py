"""Metrics as Prometheus reads them, alerts as it judges them, the dashboard as it is asked for."""

import importlib.util
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
import yaml

from service import metrics
from tests.deploy.manifests import K8S
from tests.service.running import KEY, ROOT, Service, free_port

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None, reason="Debian's package prometheus"
)

RULES = K8S / "components" / "prometheus-rule" / "prometheus-rule.yaml"
DASHBOARD = K8S / "components" / "grafana-dashboard"

STEADY = "0+10x60"
"""A counter that grows by ten a minute."""

CASES: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "TonearmDown": ({}, {"tonearm_ready": "1x60"}, "10m"),
    "TonearmNotReady": ({"tonearm_ready": "0x60"}, {"tonearm_ready": "1x60"}, "10m"),
    "TonearmHighErrorRate": (
        {'tonearm_requests_total{status="503"}': STEADY, 'tonearm_requests_total{status="200"}': "0+300x60"},
        {'tonearm_requests_total{status="503"}': "0+1x60", 'tonearm_requests_total{status="200"}': "0+300x60"},
        "15m",
    ),
    "TonearmHighLatency": (
        {
            'tonearm_request_seconds_bucket{route="/classify",le="1"}': "0+90x60",
            'tonearm_request_seconds_bucket{route="/classify",le="2.5"}': "0+100x60",
            'tonearm_request_seconds_bucket{route="/classify",le="+Inf"}': "0+100x60",
        },
        {
            'tonearm_request_seconds_bucket{route="/classify",le="1"}': "0+100x60",
            'tonearm_request_seconds_bucket{route="/classify",le="+Inf"}': "0+100x60",
            'tonearm_request_seconds_bucket{route="/metrics",le="1"}': "0+1x60",
            'tonearm_request_seconds_bucket{route="/metrics",le="+Inf"}': "0+100x60",
        },
        "20m",
    ),
    "TonearmQueueFull": (
        {'tonearm_problems_total{kind="overloaded"}': STEADY, "tonearm_requests_total": "0+300x60"},
        {'tonearm_problems_total{kind="unknown-adapter"}': STEADY, "tonearm_requests_total": "0+300x60"},
        "15m",
    ),
    "TonearmWorkerLost": ({"tonearm_workers_lost_total": "0x10 1x50"}, {"tonearm_workers_lost_total": "3x60"}, "14m"),
    "TonearmAdapterFailed": (
        {'tonearm_adapters{state="failed"}': "1x60"},
        {'tonearm_adapters{state="failed"}': "0x60", 'tonearm_adapters{state="resident"}': "5x60"},
        "10m",
    ),
    "TonearmLoadsThrashing": (
        {"tonearm_adapter_evictions_total": "0+50x60", "tonearm_texts_total": "0+100x60"},
        {"tonearm_adapter_evictions_total": "0+1x60", "tonearm_texts_total": "0+100x60"},
        "30m",
    ),
    "TonearmExperimentsFileRejected": (
        {"tonearm_experiments_good": "0x60"},
        {"tonearm_experiments_good": "1x60"},
        "5m",
    ),
    "TonearmExposuresLost": (
        {'tonearm_exposures_total{outcome="dropped"}': "0x10 5x50"},
        {'tonearm_exposures_total{outcome="written"}': STEADY, 'tonearm_exposures_total{outcome="failed"}': "0x60"},
        "14m",
    ),
    "TonearmSampleRatioMismatch": (
        {'tonearm_experiment_sample_ratio_p{experiment="e"}': "0.0001x60"},
        {'tonearm_experiment_sample_ratio_p{experiment="e"}': "0.4x60"},
        "15m",
    ),
    "TonearmPaddingWaste": (
        {"tonearm_batch_tokens_total": "0+40x90", "tonearm_padded_tokens_total": "0+100x90"},
        {"tonearm_batch_tokens_total": "0+95x90", "tonearm_padded_tokens_total": "0+100x90"},
        "60m",
    ),
}
"""Of each alert: series in which it fires, series in which it does not, when that is looked at."""


def _rules() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(RULES.read_text())["spec"]
    return spec


def _alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in _rules()["groups"] for rule in group["rules"]}


def _promtool(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True, check=False)


def _dashboard() -> Any:
    pytest.importorskip("grafana_foundation_sdk", reason="pip install grafana-foundation-sdk")
    spec = importlib.util.spec_from_file_location("generate", DASHBOARD / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _known() -> set[str]:
    """Names of every series that the code makes."""
    known: set[str] = set()
    for each in vars(metrics).values():
        if isinstance(each, prometheus_client.Counter):
            known.add(f"{each._name}_total")
        elif isinstance(each, prometheus_client.Histogram):
            known |= {f"{each._name}_{suffix}" for suffix in ("bucket", "sum", "count")}
    for source in (ROOT / "service").glob("*.py"):
        known |= set(re.findall(r'"(tonearm_[a-z_]+)": \(', source.read_text()))
        known |= set(re.findall(r'\{"(tonearm_[a-z_]+)": \(text', source.read_text()))
    return known


def test_every_metric_that_is_asked_for_exists() -> None:
    asked: dict[str, str] = {}
    for path in K8S.rglob("*"):
        if path.suffix in (".yaml", ".json"):
            asked |= dict.fromkeys(re.findall(r"\btonearm_[a-z_]+", path.read_text()), str(path.relative_to(K8S)))
    asked = {name: where for name, where in asked.items() if name != "tonearm_"}
    assert len(asked) > 20
    assert {name: where for name, where in asked.items() if name not in _known()} == {}


@needs_prometheus
def test_the_rules_are_prometheus_own(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(_rules()))
    checked = _promtool("check", "rules", str(tmp_path / "rules.yaml"))
    assert checked.returncode == 0, checked.stderr
    operating = (ROOT / "docs" / "operating.md").read_text()
    for name, alert in _alerts().items():
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["annotations"]["runbook_url"] == f"docs/operating.md#{name.lower()}"
        assert f"### {name}\n" in operating, f"{name} has no place in the playbook"


@needs_prometheus
@pytest.mark.parametrize("name", CASES)
def test_each_alert_fires_and_does_not(name: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(_rules()))
    fires, quiet, at = CASES[name]
    tests = []
    for series, expected in ((fires, True), (quiet, False)):
        given = [{"series": _labelled(one), "values": values} for one, values in series.items()]
        labels = {"severity": _alerts()[name]["labels"]["severity"], "alertname": name}
        query = f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)'
        wanted = {"expr": query, "eval_time": at, "exp_samples": [{"labels": "{}", "value": int(expected)}]}
        tests.append({"interval": "1m", "input_series": given, "promql_expr_test": [wanted], "name": str(labels)})
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    done = _promtool("test", "rules", str(tmp_path / "tests.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def _labelled(series: str) -> str:
    """As one instance's."""
    return series.replace("{", '{instance="a",') if "{" in series else f'{series}{{instance="a"}}'


def test_every_alert_has_its_cases() -> None:
    assert CASES.keys() == _alerts().keys()


def test_the_dashboard_is_what_its_code_makes() -> None:
    assert (DASHBOARD / "tonearm.json").read_text() == _dashboard().generate()
    board = json.loads((DASHBOARD / "tonearm.json").read_text())
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers)) > 20


@needs_prometheus
def test_the_dashboards_queries_are_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel_{at}", "expr": expression}
        for at, expression in enumerate(_dashboard().expressions().values())
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = _promtool("check", "rules", str(path))
    assert checked.returncode == 0, checked.stderr


@contextmanager
def _prometheus(service: Service, place: Path) -> Iterator[httpx.Client]:
    """A real Prometheus that reads the service every second; yields a client of its API."""
    job = {
        "job_name": "tonearm",
        "authorization": {"credentials": KEY},
        "static_configs": [{"targets": [f"127.0.0.1:{service.port}"], "labels": {"namespace": "test"}}],
    }
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": [job]}
    (place / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={place / 'prometheus.yaml'}",
        f"--storage.tsdb.path={place / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


def _ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    try:
        answer = client.get("/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return []
    found: list[dict[str, Any]] = answer.json()["data"]["result"] if answer.status_code == 200 else []
    return found


def _until(client: httpx.Client, query: str, at_least: float, timeout_s: float = 40) -> float:
    deadline = time.monotonic() + timeout_s
    value = float("nan")
    while time.monotonic() < deadline:
        found = _ask(client, query)
        value = float(found[0]["value"][1]) if found else float("nan")
        if value >= at_least:
            return value
        time.sleep(0.5)
    raise AssertionError(f"{query} is {value}, expected at least {at_least}")


@needs_prometheus
def test_prometheus_reads_what_was_asked(service: Service, tmp_path: Path) -> None:
    checked = _promtool("check", "metrics", given=service.client.get("/metrics").text)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with _prometheus(service, tmp_path) as client:
        _until(client, "tonearm_ready", 1)
        before = _until(client, 'sum(tonearm_answers_total{adapter="movies@1"}) or vector(0)', 0)
        for _ in range(3):
            assert service.classify([f"a film, seen {time.monotonic_ns()} times"] * 7, "movies").status_code == 200
            time.sleep(1.1)
        service.classify("x", "nothing-of-that-name")
        assert _until(client, 'sum(tonearm_answers_total{adapter="movies@1"})', before + 21) == before + 21
        assert _until(client, 'sum(tonearm_confidence_count{adapter="movies@1"})', before + 21) == before + 21
        _until(client, 'tonearm_problems_total{kind="unknown-adapter"}', 1)
        _until(client, "tonearm_adapters_registered", 5)
        assert _until(client, "tonearm_adapters_capacity", 1) == 16
        assert _until(client, "tonearm_queued_rows_limit", 1) == 1024
        _until(client, 'tonearm_process_resident_bytes{process="worker-0"}', 100 * 2**20)
        without = [title for title, query in _dashboard().expressions().items() if not _ask(client, query)]
        # What nobody did meanwhile: experiments, shadows, feedback, failed loads.
        assert len(without) <= 8, without
        assert not [title for title in without if title.startswith(("Requests", "Time", "Queue", "Memory", "Adapters"))]


@pytest.mark.harmful
def test_a_killed_workers_counts_stay_and_its_state_goes(service: Service) -> None:
    assert service.classify(["one", "two"], "movies").status_code == 200
    counted = service.metric("tonearm_answers_total", adapter="movies@1")
    lost = service.metric("tonearm_workers_lost_total")
    killed = service.worker()
    killed.kill()
    deadline = time.monotonic() + 60
    while service.metric("tonearm_workers_lost_total") == lost and time.monotonic() < deadline:
        time.sleep(0.1)
    service.wait_ready()
    assert service.metric("tonearm_workers_lost_total") == lost + 1
    assert service.metric("tonearm_answers_total", adapter="movies@1") == counted
    assert service.metric("tonearm_worker_up") == 1
    assert service.classify("three", "movies").status_code == 200
    assert service.metric("tonearm_answers_total", adapter="movies@1") == counted + 1


def test_the_busiest_have_names() -> None:
    label = metrics.BusiestLabel(limit=2, window=100)
    assert [label(name) for name in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]
    for _ in range(96):
        label("c")
    # The window is over: c came more than twice as often as b.
    assert [label(name) for name in ("a", "b", "c")] == ["a", "other", "c"]
    seen = {label(f"n{at % 37}") for at in range(20_000)}
    assert len(seen | {"a", "b", "c"}) <= 2 * 2 + 1 + 1
