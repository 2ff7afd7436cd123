"""Load, unload, pin, verify: who may, what happens, and that nothing else is disturbed."""

import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.running import ADMIN_KEY, KEY, Service


def order(service: Service, verb: str, name: str, key: str = ADMIN_KEY) -> httpx.Response:
    return service.client.post(f"/adapters/{name}/{verb}", headers={"Authorization": f"Bearer {key}"})


def entry(service: Service, name: str, version: int = 1) -> dict[str, Any]:
    for adapter in service.client.get("/adapters").json()["adapters"]:
        for found in adapter["versions"]:
            if (adapter["name"], found["version"]) == (name, version):
                return dict(found)
    raise AssertionError(f"{name}@{version} is not listed")


def test_unload_load_and_pin(service: Service) -> None:
    assert order(service, "load", "movies").json() == {
        "adapter": "movies@1",
        "state": "resident",
        "reason": None,
        "pinned": False,
    }
    assert order(service, "unload", "movies").json()["state"] == "registered"
    assert entry(service, "movies")["state"] == "registered"
    assert service.classify("a fine film", "movies").status_code == 200  # the registry is what counts
    assert order(service, "pin", "movies@1").json()["pinned"] is True
    assert entry(service, "movies")["pinned"] is True
    assert order(service, "unload", "movies").json() == {
        "adapter": "movies@1",
        "state": "registered",
        "reason": None,
        "pinned": False,
    }


def test_callers_keys_do_not_administer(service: Service) -> None:
    refused = order(service, "load", "movies", KEY)
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:tonearm:problem:forbidden")
    assert order(service, "load", "movies", "wrong-key-altogether").status_code == 401
    assert service.client.get("/adapters").status_code == 200


def test_aliases(service: Service) -> None:
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    path = "/adapters/movies/aliases/champion"
    assert service.client.put(path, json={"version": 1}).status_code == 403
    moved = service.client.put(path, json={"version": 1}, headers=admin)
    assert (moved.status_code, moved.json()) == (200, {"name": "movies", "aliases": {"champion": 1}})
    assert service.registry.aliases("movies") == {"champion": 1}
    assert service.classify("a fine film", "movies@champion").json()["adapter"] == "movies@1"
    absent = service.client.put(path, json={"version": 7}, headers=admin)
    assert absent.status_code == 404 and "movies@1" in absent.json()["nearest"]
    for bad, body in (("movies/aliases/7", {"version": 1}), ("movies@1/aliases/champion", {"version": 1})):
        assert service.client.put(f"/adapters/{bad}", json=body, headers=admin).status_code == 400
    assert service.client.put(path, json={"version": "1"}, headers=admin).status_code == 422
    assert service.client.put("/adapters/movis/aliases/x", json={"version": 1}, headers=admin).status_code == 404
    assert service.client.delete(path).status_code == 403
    assert service.client.delete(path, headers=admin).json() == {"name": "movies", "aliases": {}}
    assert service.client.delete(path, headers=admin).status_code == 404
    assert service.classify("a fine film", "movies@champion").status_code == 404


def test_an_unknown_adapter_and_a_refused_one(service: Service) -> None:
    unknown = order(service, "load", "movis")
    assert unknown.status_code == 404 and "movies" in unknown.json()["nearest"]
    failed = order(service, "load", "alien").json()
    assert failed["state"] == "failed" and "base model" in failed["reason"]


@pytest.mark.harmful
def test_verify_reads_the_files_again(service: Service, made: dict[str, Path]) -> None:
    service.registry.publish(made["movies"], "rotten")
    assert order(service, "verify", "rotten").json()["state"] == "resident"
    weights = service.registry.directory(service.registry.resolve("rotten")) / "adapter_model.safetensors"
    # Same size, same time: no look at the directory notices it, and the host cache holds the good one.
    stamp = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    with weights.open("r+b") as file:
        file.write(content)
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    found = order(service, "verify", "rotten").json()
    assert found["state"] == "failed" and "digest" in found["reason"], found
    refused = service.classify("a fine film", "rotten")
    assert refused.status_code == 409


def test_work_of_a_client_that_hung_up_is_dropped(service: Service) -> None:
    texts = ["a rather long text about nothing in particular " * 40] * 500
    before = service.metric("tonearm_texts_total", outcome="CallerGone")
    with pytest.raises(httpx.ReadTimeout):
        service.client.post("/classify", json={"text": texts}, timeout=httpx.Timeout(5, read=0.3))
    deadline = time.monotonic() + 30
    while service.metric("tonearm_texts_total", outcome="CallerGone") == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert service.classify("a fine film", "movies").status_code == 200
    assert service.metric("tonearm_queued_rows") == 0 and service.metric("tonearm_queued_tokens") == 0
