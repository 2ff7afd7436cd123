"""Every damaged adapter of `tests/damage.py` in the registry of a running service: each is refused, nobody else."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.base_model import BaseModelFiles
from adapters.store import Registry
from tests.damage import DAMAGE, LIES, NESTED, damaged
from tests.factory import AdapterShape, save_adapter
from tests.service.running import SHAPES, Service

pytestmark = pytest.mark.harmful

ALL = DAMAGE | LIES
NAMES = {f"hostile-{at}": damage for at, damage in enumerate(ALL)}


@pytest.fixture(scope="module")
def source(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("hostile") / "good", base, AdapterShape(seed=5))


@pytest.fixture
def clean(service: Service) -> Iterator[None]:
    """Takes out what a test put into the registry."""
    before = set(service.registry.root.iterdir())
    yield
    for path in set(service.registry.root.iterdir()) - before:
        path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def good_answers(service: Service) -> dict[str, dict[str, float]]:
    answers = {}
    for name in SHAPES:
        response = service.classify("a fine film", name, logits=True)
        assert response.status_code == 200
        answers[name] = response.json()["logits"]
    return answers


Entries = dict[str, dict[str, object]]
"""Each name's newest version, as it is listed."""


def listed(service: Service, until: Callable[[Entries], bool] = lambda entries: True) -> Entries:
    """What `/adapters` says, once it says so: workers tell how things stand ten times a second at most."""
    deadline_s = time.monotonic() + 10
    while True:
        response = service.client.get("/adapters")
        assert response.status_code == 200
        entries = {entry["name"]: entry["versions"][0] for entry in response.json()["adapters"]}
        if until(entries):
            return entries
        assert time.monotonic() < deadline_s, entries
        time.sleep(0.1)


def test_every_damaged_adapter_is_refused_by_name_and_the_others_are_served(
    service: Service, source: Path, tmp_path: Path, clean: None
) -> None:
    before = good_answers(service)
    staging = Registry(tmp_path / "staging")
    for name, damage in NAMES.items():
        damaged(staging, source, damage, name)
        # There as a whole: the service looks at any moment.
        shutil.move(staging.root / name, service.registry.root / name)
    assert service.classify("a fine film", "movies").status_code == 200
    with ThreadPoolExecutor(8) as pool:
        responses = dict(zip(NAMES, pool.map(lambda name: service.classify("a fine film", name), NAMES), strict=True))
    for name, damage in NAMES.items():
        response = responses[name]
        assert response.status_code == 409, f"{damage}: {response.text}"
        assert response.json()["type"].endswith(":adapter-refused")
        reason = ALL[damage][1]
        assert re.search(f"(?s){name}@1.*({reason})", response.json()["detail"]), f"{damage}: {response.text}"
        # Refused once, it is refused from memory.
        assert service.classify(["a fine film"], f"{name}@1,movies").json()["results"][0][1]["adapter"] == "movies@1"
    entries = listed(service, until=lambda entries: all(entries[name]["state"] == "failed" for name in NAMES))
    for name, damage in NAMES.items():
        assert re.search(f"(?s)({ALL[damage][1]})", str(entries[name]["reason"])), (damage, entries[name])
    assert all(entries[name]["state"] == "resident" for name in SHAPES)
    assert service.client.get("/readyz").status_code == 200
    for name, logits in good_answers(service).items():
        assert logits == pytest.approx(before[name], abs=1e-4)


@pytest.mark.parametrize(
    "name", ["Bad Name", "UPPER", ".hidden", "a" * 64, "ünï", "-dash", "a@b@c", "..", "x/y", "%2e%2e", "a\\b"]
)
def test_names_that_are_none(service: Service, source: Path, name: str, clean: None) -> None:
    if "/" not in name and name != "..":
        shutil.copytree(source, service.registry.root / name / "1")
    response = service.client.post("/classify", json={"text": "x"}, headers={"X-Adapter": name.encode()})
    assert response.status_code == 400
    assert name not in listed(service)


@pytest.mark.parametrize("version", ["0", "01", "-1", "1.5", "1e3", "\u0661", "v1", "latest", "1 "])
def test_versions_that_are_none(service: Service, source: Path, version: str, clean: None) -> None:
    shutil.copytree(source, service.registry.root / "unversioned" / version)
    assert service.classify("x", "unversioned").status_code == 404
    assert "unversioned" not in listed(service)


@pytest.mark.parametrize("linked", ["name", "version"])
def test_links_out_of_the_registry(service: Service, source: Path, tmp_path: Path, linked: str, clean: None) -> None:
    shutil.copytree(source, tmp_path / "outside" / "1")
    place = service.registry.root / "linked"
    if linked == "name":
        place.symlink_to(tmp_path / "outside")
    else:
        place.mkdir()
        (place / "1").symlink_to(tmp_path / "outside" / "1")
    response = service.classify("x", "linked")
    assert response.status_code == 409
    assert "containment" in response.json()["detail"]


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        Path.mkdir,
        lambda path: path.write_text(NESTED),
        lambda path: path.write_text('{"champion": true}'),
        lambda path: path.write_bytes(b"\xff"),
    ],
    ids=["pipe", "device", "directory", "nested", "truth", "no text"],
)
def test_hostile_aliases(service: Service, source: Path, make: Callable[[Path], object], clean: None) -> None:
    place = service.registry.root / "aliased"
    service.registry.publish(source, "aliased")
    make(place / "aliases.json")
    assert service.classify("x", "aliased").status_code == 200
    assert service.classify("x", "aliased@champion").status_code == 404
    listed(service, until=lambda entries: entries["aliased"]["state"] == "resident")
