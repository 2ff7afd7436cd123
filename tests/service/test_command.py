"""`tonearm classify` against a running service."""

import json
import subprocess
import sys

from tests.service.running import ROOT, Service, free_port


def tonearm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    code = "import typer, sys; from service.command import classify; typer.run(classify)"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_table_json_and_stdin(service: Service) -> None:
    table = tonearm("meh", "a [bold] claim", "--adapter", "movies,tone", "--url", service.url)
    assert table.returncode == 0, table.stderr
    assert table.stdout.count("movies@1") == table.stdout.count("tone@1") == 2
    assert "a [bold] claim" in table.stdout
    answer = tonearm("--adapter", "movies", "--url", service.url, "--json", stdin="one\n\ntwo\n")
    assert [item["adapter"] for item in json.loads(answer.stdout)["results"]] == ["movies@1"] * 2
    unit = tonearm("meh", "--unit", "東京", "--url", service.url)
    assert "movies-2026-12/control" in unit.stdout


def test_errors_are_one_line(service: Service) -> None:
    unknown = tonearm("meh", "--adapter", "movis", "--url", service.url)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "did you mean movies?" in unknown.stderr
    silent = tonearm("meh", "--url", f"http://127.0.0.1:{free_port()}")
    assert silent.returncode == 1 and "nothing listens at" in silent.stderr
    assert tonearm("--url", service.url).returncode == 1
