"""Traces: a real service that exports to a real collector, over HTTP, what OTLP says."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from adapters.store import Registry
from service.messages import Timings
from service.record import Facts, RecordRequests, facts_of
from service.tracing import Stage, TraceRequests, Tracing, stages
from tests.service.running import EXPERIMENTS, ROOT, environment, free_port, run_service

PRIVATE = "Zanzibar"
"""In every text that is sent, and allowed nowhere in what is exported."""

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["validate", "route", "queue", "tokenise", "forward", "labels"]
MALFORMED = {
    "no-hex": f"00-{TRACE[:-1]}g-{PARENT}-01",
    "zeros": f"00-{'0' * 32}-{PARENT}-01",
    "short": f"00-{TRACE}-{PARENT}",
    "no-such-version": f"ff-{TRACE}-{PARENT}-01",
    "too-much": f"00-{TRACE}-{PARENT}-01-more",
}


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Export)
        self.bodies: list[bytes] = []
        self.heads: list[tuple[str, str | None]] = []

    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resource(self) -> dict[str, Any]:
        request = ExportTraceServiceRequest.FromString(self.bodies[0])
        return attributes(request.resource_spans[0].resource)


class _Export(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        collector = self.server
        assert isinstance(collector, Collector)
        collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        collector.heads.append((self.path, self.headers["X-Tenant"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def attributes(of: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}


@dataclass
class Run:
    """What one service was asked and answered, and what the collector and the log had at its end."""

    collector: Collector
    responses: dict[str, httpx.Response] = field(default_factory=dict)
    sent_ns: dict[str, int] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    exported_before_sigterm: int = -1
    exit_status: int = -1

    def server(self, name: str) -> Span:
        found = [span for span in self.spans if attributes(span).get("tonearm.request_id") == name]
        assert len(found) == 1, (name, found)
        assert found[0].kind == Span.SPAN_KIND_SERVER
        return found[0]

    def children(self, name: str) -> dict[str, Span]:
        """By name, in the order in which they began."""
        server = self.server(name)
        found = [span for span in self.spans if span.parent_span_id == server.span_id]
        assert {span.trace_id for span in found} <= {server.trace_id}
        return {span.name: span for span in sorted(found, key=lambda span: STAGES.index(span.name))}


@pytest.fixture(scope="module")
def run(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One service for all: asked everything, told to end, and looked at afterwards."""
    directory = tmp_path_factory.mktemp("traced")
    registry = Registry(directory / "registry")
    for name in ("base", "movies", "tone"):
        registry.publish(made[name], name)
    experiments = directory / "experiments.yaml"
    experiments.write_text(EXPERIMENTS)
    collector = Collector()
    run = Run(collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith("OTEL_")]:
            patch.delenv(key)
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=music")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        # Nothing goes by itself: what the collector has in the end was flushed at the end.
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        settings = {"experiments_file": experiments, "drain_delay_s": 0.2, "traces": "otlp"}
        with run_service(registry, directory, **settings) as service:

            def ask(name: str, body: Any = None, method: str = "POST", path: str = "/classify", **headers: str) -> None:
                named = {key.replace("_", "-"): value for key, value in headers.items()} | {"X-Request-Id": name}
                run.sent_ns[name] = time.time_ns()
                run.responses[name] = service.client.request(method, path, json=body, headers=named)

            one = {"text": f"a night in {PRIVATE}"}
            continued = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=opaque"}
            ask("arm", one, path=f"/classify?text={PRIVATE}", X_Unit_Id="user-42", **continued)
            ask("list", {"text": [one["text"], "meh"]}, X_Adapter="movies,tone")
            for name, value in MALFORMED.items():
                ask(name, one, X_Adapter="movies", traceparent=value)
            ask("not-sampled", one, X_Adapter="movies", traceparent=f"00-{TRACE}-{PARENT}-00")
            ask("unknown", one, X_Adapter="nobody", **continued)
            ask("bad-body", {"text": {PRIVATE: 1}}, **continued)
            ask("listing", method="GET", path="/adapters")
            ask("nowhere", method="GET", path="/nope")
            ask("probe", method="GET", path="/livez")
            worker = service.worker()
            worker.suspend()
            try:
                ask("late", one, X_Adapter="movies", X_Request_Timeout_Ms="300", **continued)
            finally:
                worker.resume()
            run.exported_before_sigterm = len(collector.bodies)
            service.process.send_signal(signal.SIGTERM)
            run.exit_status = service.process.wait(60)
            run.log = service.log_lines()
    run.spans = collector.spans()
    yield run
    collector.shutdown()
    collector.server_close()


def test_spans_are_flushed_on_sigterm(run: Run) -> None:
    assert run.exported_before_sigterm == 0
    assert run.exit_status == 0
    assert run.spans


def test_the_standard_variables_are_honoured(run: Run) -> None:
    assert set(run.collector.heads) == {("/v1/traces", "music")}
    resource = run.collector.resource()
    assert resource["service.name"] == "tonearm"
    assert resource["deployment.environment.name"] == "test"


def test_a_request_goes_on_the_trace_that_it_came_with(run: Run) -> None:
    server = run.server("arm")
    assert server.trace_id.hex() == TRACE
    assert server.parent_span_id.hex() == PARENT
    assert server.trace_state == "vendor=opaque"
    assert not {"traceparent", "tracestate", "traceresponse"} & {key.lower() for key in run.responses["arm"].headers}


def test_its_stages_follow_each_other_within_it(run: Run) -> None:
    for name in ("arm", "list", "no-hex"):
        server, children = run.server(name), run.children(name)
        assert list(children) == STAGES
        edges = [server.start_time_unix_nano]
        for child in children.values():
            edges += [child.start_time_unix_nano, child.end_time_unix_nano]
        edges.append(server.end_time_unix_nano)
        assert edges == sorted(edges)
        assert edges[0] >= run.sent_ns[name]
        assert edges[-1] - edges[0] < 60e9
        # As the answer's own Server-Timing says, which has two decimals.
        for part in run.responses[name].headers["Server-Timing"].split(", "):
            stage, dur_ms = part.split(";dur=")
            if stage in ("tokenise", "forward"):
                took_ms = (children[stage].end_time_unix_nano - children[stage].start_time_unix_nano) / 1e6
                assert took_ms == pytest.approx(float(dur_ms), abs=0.02) and took_ms > 0


def test_what_a_span_says_of_its_request(run: Run) -> None:
    answer = run.responses["arm"].json()
    found = attributes(run.server("arm"))
    assert run.server("arm").name == "POST /classify"
    assert found.pop("server.port") > 1024
    assert found == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/classify",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "tonearm.request_id": "arm",
        "tonearm.adapter": answer["adapter"],
        "tonearm.rows": 1,
        "tonearm.experiment": answer["experiment"],
        "tonearm.arm": answer["arm"],
    }
    assert answer["arm"] in ("control", "treatment")
    several = attributes(run.server("list"))
    assert (several["tonearm.adapter"], several["tonearm.rows"]) == ("several", 4)
    assert "tonearm.experiment" not in several


def test_no_text_leaves_in_a_span(run: Run) -> None:
    assert {name: run.responses[name].status_code for name in ("arm", "list", "bad-body")} == {
        "arm": 200,
        "list": 200,
        "bad-body": 422,
    }
    assert not any(PRIVATE.encode() in body for body in run.collector.bodies)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_traceparent_starts_a_new_trace(run: Run, name: str) -> None:
    server = run.server(name)
    assert run.responses[name].status_code == 200
    assert server.trace_id.hex() != TRACE and any(server.trace_id)
    assert server.parent_span_id == b""


def test_what_the_caller_does_not_sample_is_not_exported(run: Run) -> None:
    assert run.responses["not-sampled"].status_code == 200
    assert not [span for span in run.spans if attributes(span).get("tonearm.request_id") == "not-sampled"]


def test_a_failure_is_the_spans_and_its_stages(run: Run) -> None:
    assert run.responses["late"].status_code == 504
    server, children = run.server("late"), run.children("late")
    assert (server.status.code, attributes(server)["error.type"]) == (Status.STATUS_CODE_ERROR, "504")
    assert list(children) == ["validate", "route", "queue"]
    codes = [child.status.code for child in children.values()]
    assert codes == [Status.STATUS_CODE_UNSET, Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR]
    assert 0.3e9 <= children["queue"].end_time_unix_nano - children["queue"].start_time_unix_nano < 10e9


def test_a_callers_mistake_is_no_failure(run: Run) -> None:
    for name, status, came_to in (("unknown", 404, ["validate", "route"]), ("bad-body", 422, [])):
        server = run.server(name)
        assert (server.name, server.trace_id.hex()) == ("POST /classify", TRACE)
        assert attributes(server)["http.response.status_code"] == status
        assert server.status.code == Status.STATUS_CODE_UNSET
        assert list(run.children(name)) == came_to


def test_other_routes_have_a_span_and_probes_have_none(run: Run) -> None:
    assert (run.server("listing").name, run.children("listing")) == ("GET /adapters", {})
    assert run.server("nowhere").name == "GET"
    assert "http.route" not in attributes(run.server("nowhere"))
    assert run.responses["probe"].status_code == 200
    assert {span.name for span in run.spans} == {"POST /classify", "GET /adapters", "GET", *STAGES}


def test_the_logs_lines_name_trace_and_span(run: Run) -> None:
    lines = {line["request_id"]: line for line in run.log if line["event"] == "request"}
    for name in ("arm", "list", "late", "unknown"):
        server = run.server(name)
        assert (lines[name]["trace_id"], lines[name]["span_id"]) == (server.trace_id.hex(), server.span_id.hex())
    assert lines["not-sampled"]["trace_id"] == TRACE
    assert not any("trace_id" in line for line in run.log if line["event"] == "worker_ready")


# Without a service


def test_a_batch_that_never_was_leaves_the_wait_whole() -> None:
    facts = Facts(stages=[("route", 1.0), ("queue", 2.0), ("labels", 5.0)], timings=Timings(0, 0, 0))
    assert list(stages(facts, 0.5, 6.0)) == [
        Stage("validate", 0.5, 1.0),
        Stage("route", 1.0, 2.0),
        Stage("queue", 2.0, 5.0),
        Stage("labels", 5.0, 6.0),
    ]
    facts.timings = Timings(1.0, 0.25, 0.5, batch_s=3.0)
    assert list(stages(facts, 0.5, 6.0))[2:5] == [
        Stage("queue", 2.0, 3.0),
        Stage("tokenise", 3.0, 3.25),
        Stage("forward", 3.25, 3.75),
    ]
    assert not list(stages(Facts(), 0.5, 6.0))


async def _handler(request: Request) -> Response:
    facts_of(request).enter("route")
    return PlainTextResponse("done")


async def ask_once(tracing: Tracing, headers: list[tuple[str, str]]) -> None:
    recorded = RecordRequests(Starlette(routes=[Route("/adapters", _handler)]), draining=lambda: False)
    transport = httpx.ASGITransport(TraceRequests(recorded, tracing=tracing))
    async with tracing.running(), httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        assert (await client.get("/adapters", headers=headers)).text == "done"


def test_the_console_gets_one_line_a_span(capsys: pytest.CaptureFixture[str]) -> None:
    parents = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "a=1"), ("tracestate", "b=2")]
    asyncio.run(ask_once(Tracing("console"), parents))
    spans = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [span["name"] for span in spans] == ["validate", "route", "GET /adapters"]
    assert spans[-1]["context"]["trace_id"] == f"0x{TRACE}"
    assert spans[-1]["context"]["trace_state"] == "['{key=a, value=1}', '{key=b, value=2}']"
    asyncio.run(ask_once(Tracing("console"), [parents[0], parents[0]]))
    spans = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert spans[-1]["context"]["trace_id"] != f"0x{TRACE}"


def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began_s = time.monotonic()
        asyncio.run(ask_once(Tracing("otlp", flush_timeout_s=0.4), []))
        assert 0.4 <= time.monotonic() - began_s < 5


def start_with(registry: Registry, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m service` after some code."""
    start = f"import runpy, sys; {code}; sys.argv = ['service']; runpy.run_module('service', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", start],
        cwd=ROOT,
        env=environment(registry.root, port=free_port(), traces="otlp") | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_switched_on_but_not_installed_it_does_not_start_and_says_what_to_install(registry: Registry) -> None:
    process = start_with(registry, "sys.modules['opentelemetry.exporter'] = None")
    assert process.returncode == 2, process.stderr
    last = process.stderr.splitlines()[-1]
    assert "TONEARM_TRACES is 'otlp', expected off, or pip install 'tonearm[otel]'" in last


def test_a_variable_that_cannot_be_used_stops_the_start(registry: Registry) -> None:
    process = start_with(registry, "pass", OTEL_BSP_MAX_QUEUE_SIZE="-1")
    assert process.returncode == 2, process.stderr
    assert "TONEARM_TRACES is 'otlp', expected OTEL_ variables" in process.stderr.splitlines()[-1]
    assert "max_queue_size" in process.stderr.splitlines()[-1]


def test_switched_off_we_import_no_opentelemetry(registry: Registry, tmp_path: Path) -> None:
    # FastAPI itself imports its API, so what counts is who imports.
    code = """
import builtins, sys
from pathlib import Path
found, load = [], builtins.__import__
def noting(name, names=None, *rest, **more):
    importer = (names or {}).get("__name__", "").partition(".")[0]
    if name.startswith("opentelemetry") and importer in ("service", "engine", "adapters"):
        found.append(names["__name__"])
    return load(name, names, *rest, **more)
builtins.__import__ = noting
from service.run_directory import RunDirectory
from service.serve import _build
from service.settings import read_settings
server = _build(read_settings(), RunDirectory(Path(sys.argv[1])))
assert server.app.state.service.tracing is None
assert "TraceRequests" not in str(server.app.user_middleware)
heavy = [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
assert not found + heavy, found + heavy
import service.tracing
assert found, "the watch is blind"
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=environment(registry.root) | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        check=True,
        timeout=120,
    )
