"""Experiments through a service of their own: who takes part, shadows, ends, the export, and a kill."""

import csv
import io
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from adapters.store import Registry
from client import Client, Conflict, NotFound, Unauthorized
from service.experiments_command import app
from service.routing import Experiment, assign, covers, shadows
from tests.service.running import ADMIN_KEY, KEY, Service, run_service

TEXT = "a stirring, funny and finally transporting film"
FILE = """
- name: german
  salt: ""
  match: {X-Country: [de, at]}
  arms: [{name: control, adapter: base}, {name: treatment, adapter: movies}]
- name: fifth
  salt: a
  coverage: 20
  arms: [{name: control, adapter: base}, {name: treatment, adapter: movies}]
- name: watched
  salt: b
  arms: [{name: only, adapter: base}]
  shadow: {adapter: movies, percent: 50}
"""


@pytest.fixture(scope="module")
def ab(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("ab")
    registry = Registry(directory / "registry")
    for name in ("base", "movies"):
        registry.publish(made[name], name)
    (directory / "experiments.yaml").write_text(FILE)
    keys = {"api_keys": KEY, "admin_keys": ADMIN_KEY}
    with run_service(registry, directory, experiments_file=directory / "experiments.yaml", **keys) as running:
        yield running


def named(name: str) -> Experiment:
    import yaml

    return next(Experiment.model_validate(each) for each in yaml.safe_load(FILE) if each["name"] == name)


def ask(ab: Service, unit: str, **headers: str) -> dict[str, object]:
    answer = ab.client.post("/classify", json={"text": TEXT}, headers={"X-Unit-Id": unit, **headers})
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


def shell(ab: Service, *arguments: str, key: str = KEY) -> Result:
    return CliRunner(env={"COLUMNS": "220"}).invoke(app, [*arguments, "--url", ab.url, "--key", key])


def test_who_takes_part(ab: Service) -> None:
    for at in range(30):
        unit = f"user-{at}"
        german = ask(ab, unit, **{"X-Country": "at"})
        assert (german["experiment"], german["arm"]) == ("german", assign(named("german"), unit).name)
        other = ask(ab, unit, **{"X-Country": "fr"})
        expected = "fifth" if covers(named("fifth"), unit) else "watched"
        assert (other["experiment"], other["arm"]) == (expected, assign(named(expected), unit).name)
    assert ab.classify(TEXT, "movies").json()["experiment"] is None
    listed = shell(ab, "list")
    assert "x-country: de|at" in listed.output and "20 % of the units" in listed.output and "shadow" in listed.output
    lines = csv.DictReader(io.StringIO(shell(ab, "list", "--format", "csv").output))
    assert next(lines)["experiment"] == "german"


def test_a_shadow_is_compared_and_not_seen(ab: Service) -> None:
    of_unit = {f"watched-{at}" for at in range(200) if not covers(named("fifth"), f"watched-{at}")}
    units = sorted(unit for unit in of_unit if shadows(named("watched"), unit))[:40]
    bystanders = sorted(of_unit - set(units))[:10]
    before = ab.client.get("/experiments/watched").json()["pairs"]["pairs"]
    answers = [ask(ab, unit) for unit in (*units, *bystanders)]
    assert {answer["adapter"] for answer in answers} == {"base@1"}
    for answer in answers:
        body = {"request_id": answer["request_id"], "label": "positive"}
        assert ab.client.post("/feedback", json=body).status_code == 200
    found = ab.client.get("/experiments/watched").json()
    pairs = found["pairs"]
    read = ab.metric("tonearm_shadow_texts_total", experiment="watched", outcome="read")
    shed = ab.metric("tonearm_shadow_texts_total", experiment="watched", outcome="shed")
    assert pairs["pairs"] == read and pairs["pairs"] + shed >= before + len(units)
    assert pairs["pairs"] - before > len(units) / 2  # one request at a time: little is shed
    own, other = (ab.classify(TEXT, adapter).json() for adapter in ("base", "movies"))
    assert pairs["agreement"] == float(own["label"] == other["label"])
    assert pairs["mean_shift"] == pytest.approx(other["score"] - own["score"], abs=1e-3)
    expected = (other["label"] == "positive") - (own["label"] == "positive")
    assert pairs["accuracy"] == expected and pairs["only_shadow"] - pairs["only_arm"] == expected * pairs["labelled"]
    said = ab.metric("tonearm_shadow_labels_total", answered=own["label"], said=other["label"])
    assert said == pairs["pairs"]
    assert found["arms"][0]["texts"] >= 50 and found["differences"] == []
    shown = shell(ab, "show", "watched")
    assert shown.exit_code == 0 and "McNemar" in shown.output and "started" in shown.output


def test_the_export(ab: Service) -> None:
    answer = ask(ab, "mail@example.org", **{"X-Country": "de"})
    body = {"request_id": answer["request_id"], "label": "negative"}
    assert ab.client.post("/feedback", json=body).status_code == 200
    rows = list(csv.DictReader(io.StringIO(ab.client.get("/experiments/german/export").text)))
    mine = next(row for row in rows if row["request_id"] == answer["request_id"])
    assert (mine["arm"], mine["adapter"], mine["feedback"]) == (answer["arm"], answer["adapter"], "negative")
    assert "example.org" not in json.dumps(rows) and len(mine["unit"]) == 32
    lines = shell(ab, "export", "german", "--format", "jsonl").output.splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [row["request_id"] for row in rows]
    assert ab.client.get("/experiments/german/export?format=xml").status_code == 422
    assert ab.client.get("/experiments/nobody/export").status_code == 404


def test_the_plan(ab: Service) -> None:
    asked = ab.client.get("/experiments/fifth/plan", params={"difference": 0.03, "accuracy": 0.85}).json()
    assert (asked["fixed"], asked["power"], set(asked["labelled_units"])) == (2036, 0.8, {"control", "treatment"})
    assert asked["anytime"] > asked["fixed"]
    nothing = ab.client.get("/experiments/fifth/plan", params={"difference": 0.03})
    assert nothing.status_code == 422 and "no feedback yet" in nothing.json()["detail"]
    too_far = ab.client.get("/experiments/fifth/plan", params={"difference": 0.3, "accuracy": 0.85})
    assert too_far.status_code == 422 and "between 0 and 1" in too_far.json()["detail"]
    printed = json.loads(shell(ab, "list", "--format", "json").output)
    assert [each["name"] for each in printed["experiments"]] == ["german", "fifth", "watched"]


def test_ends(ab: Service) -> None:
    assert "administrator" in shell(ab, "stop", "german", "--reason", "x").output
    assert shell(ab, "promote", "german", "--reason", "x", "--arm", "other", key=ADMIN_KEY).exit_code == 1
    done = shell(ab, "promote", "german", "--reason", "better", "--alias", "production", key=ADMIN_KEY)
    assert done.exit_code == 0 and "promoted" in done.output, done.output
    assert ab.registry.aliases("movies") == {"production": 1}
    assert {ask(ab, f"u{at}", **{"X-Country": "de"})["adapter"] for at in range(20)} == {"movies@1"}
    with Client(ab.url, api_key=ADMIN_KEY) as client:
        with pytest.raises(Conflict, match="was promoted already"):
            client.stop_experiment("german", "too late")
        with pytest.raises(NotFound, match="there: german, fifth, watched"):
            client.stop_experiment("nobody", "who?")
        stopped = client.stop_experiment("fifth", "enough seen")
        assert (stopped.state, stopped.decisions[-1].reason) == ("stopped", "enough seen")
        units = [f"u{at}" for at in range(100) if covers(named("fifth"), f"u{at}")]
        assert {ask(ab, unit)["experiment"] for unit in units} == {"watched"}
        assert client.experiment("fifth").state == "stopped"
    with Client(ab.url, api_key=KEY) as client, pytest.raises(Unauthorized):
        client.stop_experiment("watched", "no")


@pytest.mark.harmful
def test_a_kill_loses_no_feedback_and_a_tenth_of_a_second_of_exposures(ab: Service) -> None:
    """kill -9 of every process, under load."""
    answered: dict[str, float] = {}
    acknowledged: list[str] = []
    going = threading.Event()
    going.set()

    def load(worker: int) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=ab.url, headers=headers, timeout=10) as client:
            at = 0
            while going.is_set():
                at += 1
                try:
                    unit = {"X-Unit-Id": f"killed-{worker}-{at}"}
                    answer = client.post("/classify", json={"text": TEXT}, headers=unit).json()
                    answered[answer["request_id"]] = time.time()
                    if at % 5 == 0:
                        body = {"request_id": answer["request_id"], "label": "positive"}
                        if client.post("/feedback", json=body).status_code == 200:
                            acknowledged.append(answer["request_id"])
                except httpx.TransportError:
                    return

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(load, worker) for worker in range(6)]
        time.sleep(4)
        killed_s = time.time()
        os.killpg(ab.process.pid, signal.SIGKILL)
        for future in futures:
            future.result(30)
        going.clear()
    ab.process.wait(10)
    with sqlite3.connect(ab.log.parent / "tonearm.db") as database:
        exposed = {row[0] for row in database.execute("SELECT request_id FROM exposures")}
        labelled = {row[0] for row in database.execute("SELECT request_id FROM feedback")}
    lost = sorted(killed_s - at for request_id, at in answered.items() if request_id not in exposed)
    print(f"{len(answered)} answered, {len(lost)} exposures lost, the oldest {max(lost, default=0) * 1e3:.0f} ms old")
    print(f"{len(acknowledged)} pieces of feedback acknowledged, {len(set(acknowledged) - labelled)} lost")
    assert len(answered) > 100 and len(acknowledged) > 5
    assert set(acknowledged) <= labelled
    assert max(lost, default=0) <= 0.1
