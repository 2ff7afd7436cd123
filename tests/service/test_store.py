"""Exposures and feedback: written, found again, hashed, forgotten, and not lost to a kill. On SQLite and PostgreSQL."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters.errors import SettingsError, StoreUnavailable, UnknownRequest
from service import results
from service.analysis import ArmData
from service.decisions import Standing, read_standings, record
from service.routing import Arm, Experiment
from service.store import Exposure, Pair, Store
from tests.service.running import ROOT, Service, free_port

FILMS = Experiment(
    name="films",
    salt="",
    arms=(
        Arm(name="control", adapter="base", weight=50),
        Arm(name="treatment", adapter="movies", weight=50),
    ),
)


def exposure(request_id: str, text: int = 0, **values: object) -> Exposure:
    found = Exposure(request_id, text, "movies@1", time.time(), "films", "treatment", "user-42", "positive", 0.9, 12.5)
    return found._replace(**values)  # type: ignore[arg-type]


def arms_of(store: Store, since_s: tuple[float, ...] = (0.0,)) -> list[ArmData]:
    return results.arms(store, FILMS, since_s)


def said(store: Store, request_id: str, text: int, label: str) -> bool:
    return asyncio.run(store.feedback(request_id, text, label))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL of the tests' own."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'tonearm[postgres]'")
    if not binaries and shutil.which("initdb") is None:
        pytest.skip("PostgreSQL is not installed here: Debian's package postgresql brings it")
    bin_directory = binaries[-1] if binaries else Path(str(shutil.which("initdb"))).parent
    # Not below pytest's own directory: other users may not enter it.
    root, port = Path(tempfile.mkdtemp(prefix="tonearm-postgres-")), free_port()
    as_user: dict[str, object] = {}
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        shutil.chown(root, "postgres", "postgres")
        as_user = {"user": "postgres", "group": "postgres"}
    data = root / "data"
    run = [str(bin_directory / "initdb"), "-D", str(data), "-A", "trust", "-U", "tonearm", "-E", "UTF8"]
    subprocess.run(run, check=True, capture_output=True, cwd=root, **as_user)  # type: ignore[call-overload]
    command = [str(bin_directory / "postgres"), "-D", str(data), "-p", str(port), "-k", str(root)]
    server = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL, **as_user)  # type: ignore[call-overload]
    try:
        yield f"postgresql://tonearm@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    found: str = request.getfixturevalue("postgres")
    engine = sa.create_engine(found.replace("postgresql:", "postgresql+psycopg:"))
    deadline = time.monotonic() + 30
    while True:
        try:
            with engine.begin() as connection:
                connection.execute(sa.text("DROP SCHEMA public CASCADE"))
                connection.execute(sa.text("CREATE SCHEMA public"))
            return found
        except sa.exc.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url, retention_days=30)
    store.migrate()
    store.start()
    yield store
    store.stop(5)


def test_feedback_finds_what_was_exposed_a_moment_ago(store: Store) -> None:
    store.expose([exposure("r1"), exposure("r1", 1, label="negative")])
    assert said(store, "r1", 0, "positive") is False
    assert said(store, "r1", 0, "positive") is False  # said again
    assert said(store, "r1", 1, "positive") is False
    assert said(store, "r1", 1, "negative") is True  # corrected
    _, arm = arms_of(store)
    assert (arm.name, arm.texts, arm.units, arm.labelled) == ("treatment", 2, 1, 2)
    assert [sums[:2] for sums in arm.sums] == [(2, 2)] and arm.sums[0].unit not in ("", "user-42")
    assert arm.confusion == {("positive", "positive"): 1, ("negative", "negative"): 1}
    assert arm.bins == [(2, 2, pytest.approx(1.8))]
    with pytest.raises(UnknownRequest, match="from 0"):
        said(store, "r1", 2, "positive")


def test_arms_are_counted_apart_and_explicit_requests_not_at_all(store: Store) -> None:
    store.expose([exposure(f"t{at}", unit=f"u{at % 5}") for at in range(40)])
    store.expose([exposure(f"c{at}", arm="control", unit=None if at else "u") for at in range(10)])
    store.expose([exposure("direct", experiment=None, arm=None, unit=None)])
    for at in range(20):
        said(store, f"t{at}", 0, "positive" if at % 4 else "negative")
    assert said(store, "direct", 0, "positive") is False
    control, treatment = arms_of(store)
    assert (control.name, control.texts, control.units, control.labelled) == ("control", 10, 1, 0)
    assert (treatment.texts, treatment.units, treatment.labelled) == (40, 5, 20)
    assert sum(unit.correct for unit in treatment.sums) == 15 and len(treatment.sums) == 5
    assert (treatment.p50_ms, treatment.p99_ms) == (12.5, 12.5)


def test_errors_and_times_of_an_arm(store: Store) -> None:
    store.expose([exposure(f"t{at}", took_ms=float(at), unit=f"u{at}") for at in range(1, 101)])
    store.expose([exposure(f"e{at}", label="", score=0.0, error="WorkerLost", took_ms=900.0) for at in range(3)])
    with pytest.raises(UnknownRequest):
        said(store, "e0", 0, "positive")  # there was no answer that could be right
    _, arm = arms_of(store)
    assert (arm.texts, arm.errors, arm.units, arm.p50_ms, arm.p99_ms) == (100, 3, 101, 50.0, 99.0)
    seen = results.evidence(store, FILMS, "treatment", 0.0, 90.0)
    assert seen == (101, 103, 3, 13)
    assert results.evidence(store, FILMS, "treatment", time.time() + 60, 90.0) == (0, 0, 0, 0)


def test_results_begin_with_the_salt_and_are_cut_where_weights_changed(store: Store) -> None:
    start_s = time.time() - 1000
    for at, second in enumerate((-10, 0, 5, 100, 105, 200)):
        store.expose([exposure(f"r{at}", at_s=start_s + second, unit=f"u{at % 3}")])
        said(store, f"r{at}", 0, "positive")
    _, arm = arms_of(store, (start_s, start_s + 100, start_s + 200))
    assert (arm.texts, arm.units, arm.split) == (5, 3, 1)
    assert sorted(sums.period for sums in arm.sums) == [0, 0, 1, 1, 2]


def test_pairs_of_answers_and_shadows(store: Store) -> None:
    place = (time.time(), "films")
    store.expose([exposure(f"p{at}", unit=f"u{at}") for at in range(4)])
    store.expose(
        [
            Pair(f"p{at}", 0, "movies@2", *place, f"u{at}", "movies@1", "positive", 0.9, label, 0.8)
            for at, label in enumerate(("positive", "negative", "negative", "positive"))
        ]
    )
    for at, truth in enumerate(("positive", "negative", "positive")):
        said(store, f"p{at}", 0, truth)
    found = results.shadow_pairs(store, FILMS, 0.0)
    assert (found.pairs, found.same, found.only_arm, found.only_shadow) == (4, 2, 1, 1)
    assert found.mean_shift == pytest.approx(-0.1)
    assert sorted((sums.labelled, sums.correct) for sums in found.sums) == [(1, -1), (1, 0), (1, 1)]


def test_decisions_are_numbered_and_the_first_to_write_one_wins(store: Store, url: str) -> None:
    assert read_standings(store, [FILMS]) == {("films", ""): Standing()}
    first = Standing().next("started", {"control": 0.5, "treatment": 0.5}, "it is in the file")
    assert record(store, FILMS, first) is True
    assert record(store, FILMS, first._replace(reason="another replica's")) is False
    standing = read_standings(store, [FILMS])["films", ""]
    assert standing.decisions == (first,) and not standing.ended
    assert record(store, FILMS, standing.next("stopped", first.weights, "enough")) is True
    stopped = read_standings(store, [FILMS])["films", ""]
    assert stopped.stopped and stopped.ended and stopped.changes_s == [first.at_s]
    anew = FILMS.model_copy(update={"salt": "another"})
    assert read_standings(store, [anew]) == {("films", "another"): Standing()}


def test_the_export_has_every_answer(store: Store) -> None:
    store.expose([exposure(f"r{at:04}", at_s=1000.0 + at) for at in range(1500)])
    said(store, "r0007", 0, "negative")
    parts = list(results.rows(store, FILMS, 1000.0))
    rows = [row for part in parts for row in part]
    assert len(parts) > 1 and [row["request_id"] for row in rows] == [f"r{at:04}" for at in range(1500)]
    assert rows[7]["feedback"] == "negative" and rows[8]["feedback"] is None and len(rows[7]["unit"]) == 32


def test_units_are_hashed_and_a_request_id_used_twice_counts_once(store: Store, url: str) -> None:
    store.expose([exposure("r", unit="mail@example.org")])
    store.expose([exposure("r", unit="mail@example.org", label="negative")])
    said(store, "r", 0, "positive")
    assert arms_of(store)[1].texts == 1
    with store._running.connect() as connection:
        rows = connection.execute(sa.text("SELECT unit, label FROM exposures")).all()
    assert len(rows) == 1 and len(rows[0][0]) == 32 and "mail" not in rows[0][0] and rows[0][1] == "positive"
    again = Store(url, 30)
    again.start()
    assert again._hashed("mail@example.org") == rows[0][0]  # the same unit after a restart
    again.stop(5)


def test_the_old_is_forgotten(url: str) -> None:
    store = Store(url, retention_days=1)
    store.migrate()
    store.migrate()  # every start does
    store.start()
    store.expose([exposure("old", at_s=time.time() - 3 * 86_400), exposure("new")])
    said(store, "new", 0, "positive")
    store._forget_old()
    with pytest.raises(UnknownRequest):
        said(store, "old", 0, "positive")
    assert arms_of(store)[1].texts == 1
    store.stop(5)


def test_stopping_writes_what_is_queued(url: str) -> None:
    store = Store(url, 30)
    store.migrate()
    store.start()
    store.expose([exposure(f"r{at}") for at in range(5000)])
    store.stop(20)
    reader = Store(url, 30)
    reader.start()
    assert arms_of(reader)[1].texts == 5000
    reader.stop(5)


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "sqlite://",
        "mysql://u:secret-word@h/d",
        "postgresql://u:secret-word@127.0.0.1:1/d",
        "sqlite:////proc/no/x.db",
    ],
)
def test_a_database_that_cannot_be_used_stops_the_start(bad: str) -> None:
    if bad.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises((SettingsError, OSError)) as caught:
        Store(bad, 30).migrate()
    assert "secret-word" not in str(caught.value)


_WRITER = """
import asyncio, sys, time
from service.store import Exposure, Store
store = Store(sys.argv[1], 30)
store.migrate()
store.start()
at = 0
while True:
    store.expose([Exposure(f"r{at}", 0, "movies@1", time.time(), "films", "treatment", "u", "positive", 0.9, 1.0)])
    exposed_s = time.time()
    asyncio.run(store.feedback(f"r{at}", 0, "positive"))
    print(at, flush=True)
    at += 1
"""


def test_a_kill_loses_no_acknowledged_feedback(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, url], stdout=subprocess.PIPE, env=environment)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(30)]
    writer.kill()
    acknowledged += [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    reader = Store(url, 30)
    reader.start()
    _, arm = arms_of(reader)
    assert arm.labelled >= len(acknowledged) and arm.texts >= len(acknowledged)
    reader.stop(5)


# Through the service


def test_feedback_over_http(service: Service) -> None:
    units = {f"unit-{at}" for at in range(12)}
    ids = [
        service.client.post("/classify", json={"text": "a fine film"}, headers={"X-Unit-Id": unit}).json()
        for unit in sorted(units)
    ]
    for answer in ids:
        said = service.client.post("/feedback", json={"request_id": answer["request_id"], "label": answer["label"]})
        assert said.status_code == 200 and said.json()["replaced"] is False
    listed = service.client.get("/experiments").json()["experiments"][0]["name"]
    result = service.client.get(f"/experiments/{listed}").json()
    arms = {arm["name"]: arm for arm in result["arms"]}
    for name in {answer["arm"] for answer in ids}:
        mine = sum(answer["arm"] == name for answer in ids)
        assert arms[name]["labelled"] >= mine and arms[name]["texts"] >= mine and arms[name]["accuracy"] == 1.0
        assert arms[name]["macro_f1"] == 1.0 and arms[name]["coverage"] > 0
    assert result["void"] is False and 0 < result["sample_ratio_p"] <= 1
    many = service.classify(["one", "two"], "movies").json()["results"]
    body = {"request_id": many[1]["request_id"], "label": "negative", "text": 1}
    assert service.client.post("/feedback", json=body).status_code == 200
    unknown = service.client.post("/feedback", json={"request_id": "never", "label": "negative"})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:tonearm:problem:unknown-request")
    assert service.client.post("/feedback", json={"request_id": "x"}).status_code == 422
    assert service.client.get("/experiments/nobody").status_code == 404


def test_before_it_runs_it_says_so() -> None:
    with pytest.raises(StoreUnavailable):
        arms_of(Store("sqlite:///never-made.db", 1))
