"""`tonearm classify` against a running service."""

import json
import subprocess
import sys

import typer
from click.testing import Result
from typer.testing import CliRunner

from service.command import classify
from service.experiments_command import app as experiments_app
from tests.service.running import KEY, ROOT, Service, free_port


def tonearm(*arguments: str, stdin: str = "") -> Result:
    app = typer.Typer()
    app.command()(classify)
    return CliRunner().invoke(app, list(arguments), input=stdin, env={"TONEARM_API_KEY": KEY, "COLUMNS": "220"})


def test_table_json_and_stdin(service: Service) -> None:
    table = tonearm("meh", "a [bold] claim", "--adapter", "movies,tone", "--url", service.url)
    assert table.exit_code == 0, table.output
    assert table.stdout.count("movies@1") == table.stdout.count("tone@1") == 2
    assert "a [bold] claim" in table.stdout
    answer = tonearm("--adapter", "movies", "--url", service.url, "--json", stdin="one\n\ntwo\n")
    assert [item["adapter"] for item in json.loads(answer.stdout)["results"]] == ["movies@1"] * 2
    raw = service.classify(["one", "two"], "movies").json()
    assert [list(item) for item in json.loads(answer.stdout)["results"]] == [list(item) for item in raw["results"]]
    unit = tonearm("meh", "--unit", "東京", "--url", service.url)
    assert "movies-2026-12/control" in unit.stdout


def test_errors_are_one_line(service: Service) -> None:
    unknown = tonearm("meh", "--adapter", "movis", "--url", service.url)
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (1, 1)
    assert "did you mean movies?" in unknown.stderr
    items = tonearm("meh", "--adapter", "movies,alien", "--url", service.url)
    assert items.exit_code == 0 and items.stdout.count("must not be served") == 1
    no_url = tonearm("meh", "--url", "localhost:8000")
    assert (no_url.exit_code, no_url.stderr.count("\n")) == (1, 1) and "http://127.0.0.1:8000" in no_url.stderr
    silent = tonearm("meh", "--url", f"http://127.0.0.1:{free_port()}")
    assert silent.exit_code == 1 and "nothing listens at" in silent.stderr
    assert tonearm("--url", service.url).exit_code == 1


def test_the_front_door_has_it(service: Service) -> None:
    """In a process of its own, as people run it."""
    command = [sys.executable, "tonearm.py", "classify", "meh", "-a", "movies", "--url", service.url, "--key", KEY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "movies@1" in done.stdout


def test_experiments_from_the_shell(service: Service) -> None:
    run = CliRunner(env={"COLUMNS": "220"}).invoke
    settings = ["--url", service.url, "--key", KEY]
    listed = run(experiments_app, ["list", *settings])
    assert listed.exit_code == 0 and "movies-2026-12" in listed.output and "50.0%" in listed.output
    shown = run(experiments_app, ["show", "movies-2026-12", *settings])
    assert shown.exit_code == 0 and "treatment" in shown.output
    as_json = json.loads(run(experiments_app, ["show", "movies-2026-12", "--format", "json", *settings]).output)
    assert [arm["name"] for arm in as_json["arms"]] == ["control", "treatment"]
    assert run(experiments_app, ["show", "nobody", *settings]).exit_code == 1
    assert "2,036" in run(experiments_app, ["plan", "--accuracy", "0.85", "--difference", "0.03"]).output
    assert run(experiments_app, ["plan", "--accuracy", "1.5", "--difference", "0.03"]).exit_code == 2
