"""Listings, probes, metrics, documents; and adapters that come and go while the service runs."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from adapters.base_model import BaseModelFiles
from adapters.reference import AdapterId
from tests.factory import TEXTS, AdapterShape, peft_logits, peft_model, save_adapter
from tests.service.running import Service


def versions(service: Service, name: str) -> dict[int, dict[str, Any]]:
    entries = service.client.get("/adapters").json()["adapters"]
    return {version["version"]: version for entry in entries if entry["name"] == name for version in entry["versions"]}


def eventually(check: Any, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


def test_adapters(service: Service) -> None:
    movies = versions(service, "movies")[1]
    assert (movies["state"], movies["reason"], movies["verified"]) == ("resident", None, True)
    assert movies["labels"] == ["negative", "positive"]
    plain = versions(service, "plain")[1]
    assert (plain["state"], plain["verified"], plain["labels"]) == ("resident", False, ["LABEL_0", "LABEL_1"])
    alien = versions(service, "alien")[1]
    assert (alien["state"], alien["verified"]) == ("failed", False)
    assert "trained on someone/else" in alien["reason"]


def test_some_of_many(service: Service) -> None:
    """A search, a state, a page: each says how many there are besides."""

    def names(**query: Any) -> tuple[int, list[str]]:
        listed = service.client.get("/adapters", params=query).json()
        return listed["total"], [entry["name"] for entry in listed["adapters"]]

    total, every = names()
    assert total == len(every) >= 6 and every == sorted(every)
    assert names(limit=2, offset=1) == (total, every[1:3])
    assert names(offset=total + 5) == (total, [])
    assert names(search="MOV") == (1, ["movies"])
    assert names(state="failed", search="alien") == (1, ["alien"])
    assert names(state="failed", search="movies") == (0, [])
    refused = service.client.get("/adapters", params={"state": "gone"})
    assert refused.status_code == 422 and "query.state" in refused.json()["detail"]


def test_one_adapter_and_its_report(service: Service, base: BaseModelFiles, tmp_path: Path) -> None:
    source = save_adapter(tmp_path / "told", base, AdapterShape(seed=31), name="told")
    (source / "report").mkdir()
    (source / "report/metrics.json").write_text('{"labels": []}')
    (source / "report/index.html").write_text("<script>alert(1)</script>")
    (source / "report/run.sh").write_text("echo")
    adapter = service.registry.publish(source, "told")
    try:
        found = service.client.get("/adapters/told").json()
        assert (found["adapter"], found["versions"], found["aliases"]) == ("told@1", [1], {})
        assert found["report"] == ["index.html", "metrics.json", "run.sh"]
        assert found["examples"] == list(TEXTS[:2]) and found["training"]["max_tokens"] == 128
        page = service.client.get("/adapters/told/report/index.html")
        assert page.status_code == 200 and page.text == "<script>alert(1)</script>"
        # Whoever trained it may write what they like: it runs nothing, and has no origin.
        assert page.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
        assert service.client.get("/adapters/told@1/report/metrics.json").json() == {"labels": []}
        known = {"If-None-Match": page.headers["ETag"]}
        assert service.client.get("/adapters/told/report/index.html", headers=known).status_code == 304
        for absent in ("run.sh", "curves.png", "..%2ftonearm.json", "%2e%2e%2ftonearm.json"):
            assert service.client.get(f"/adapters/told/report/{absent}").status_code == 404
        directory = service.registry.directory(adapter) / "report"
        (directory / "metrics.json").write_text('{"labels": ["forged"]}')
        forged = service.client.get("/adapters/told/report/metrics.json")
        assert forged.status_code == 409 and "digest" in forged.json()["detail"]
        (directory / "index.html").unlink()
        (directory / "index.html").symlink_to("/etc/passwd")
        assert service.client.get("/adapters/told/report/index.html").status_code == 409
    finally:
        service.registry.remove(adapter)
    assert service.client.get("/adapters/told").status_code == 404
    plain = service.client.get("/adapters/plain").json()
    assert (plain["training"], plain["examples"], plain["report"]) == (None, [], [])
    assert "someone/else" in service.client.get("/adapters/alien").json()["reason"]
    assert service.client.get("/adapters/plain/report/metrics.json").status_code == 404


def test_experiments(service: Service) -> None:
    listed = service.client.get("/experiments").json()
    assert listed["error"] is None
    assert [experiment["name"] for experiment in listed["experiments"]] == ["movies-2026-12"]
    assert [arm["share"] for arm in listed["experiments"][0]["arms"]] == [0.5, 0.5]


def test_probes_metrics_and_documents(service: Service) -> None:
    assert service.client.get("/livez").json() == {"status": "ok", "detail": None}
    assert service.client.get("/readyz").json() == {"status": "ok", "detail": None}
    service.classify(list(TEXTS), "movies")
    assert service.metric("tonearm_ready") == 1
    assert service.metric("tonearm_adapters", state="resident") >= 5
    assert service.metric("tonearm_adapters", state="failed") == 1
    assert service.metric("tonearm_texts_total", adapter="movies@1", outcome="answered") >= 4  # the worker counted it
    assert service.metric("tonearm_requests_total", route="/classify", adapter="movies@1") >= 1  # the API process did
    assert service.metric("tonearm_padded_tokens_total") >= service.metric("tonearm_batch_tokens_total") > 0
    assert "swagger" in service.client.get("/docs").text
    document = service.client.get("/openapi.json").json()
    ours = {
        "/classify",
        "/feedback",
        "/adapters",
        "/adapters/{name}",
        "/adapters/{name}/aliases/{alias}",
        "/adapters/{name}/report/{file}",
        "/experiments",
        "/experiments/{name}",
        "/experiments/{name}/export",
        "/experiments/{name}/history",
        "/experiments/{name}/plan",
        "/experiments/{name}/stop",
        "/experiments/{name}/promote",
        "/livez",
        "/readyz",
        "/metrics",
    }
    ours |= {f"/adapters/{{name}}/{verb}" for verb in ("load", "unload", "pin", "verify")} | {"/predict"}
    assert {path for path in document["paths"] if not path.startswith("/v2")} == ours
    assert {"409", "413", "429", "503"} <= document["paths"]["/classify"]["post"]["responses"].keys()


def test_hot_publish_disturbs_nobody(service: Service, base: BaseModelFiles, tmp_path: Path) -> None:
    shape = AdapterShape(labels=("no", "perhaps", "yes"), rank=8, targets="all-linear", seed=21)
    source = save_adapter(tmp_path / "fresh", base, shape, name="fresh")
    steady = service.classify(TEXTS[0], "movies").json()["scores"]
    stop, disturbed = threading.Event(), []

    def keep_asking() -> None:
        while not stop.is_set():
            response = service.classify(TEXTS[0], "movies")
            if response.status_code != 200 or response.json()["scores"] != pytest.approx(steady, abs=1e-4):
                disturbed.append(response.text)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        assert service.classify("meh", "fresh").status_code == 404
        published_s = time.monotonic()
        assert service.registry.publish(source, "fresh") == AdapterId("fresh", 1)
        answers = []
        eventually(lambda: answers.append(service.classify(TEXTS[0], "fresh", logits=True)) or answers[-1].is_success)
        assert time.monotonic() - published_s < 5
        expected = peft_logits(peft_model(base, shape), base, TEXTS[:1], shape)[0].tolist()
        assert list(answers[-1].json()["logits"].values()) == pytest.approx(expected, abs=1e-4)
        # The next version is what the plain name means at once, and the first is still there by its number.
        service.registry.publish(source, "fresh")
        eventually(lambda: service.classify("meh", "fresh").json()["adapter"] == "fresh@2")
        service.registry.set_alias("fresh", "champion", 1)
        assert service.classify("meh", "fresh@champion").json()["adapter"] == "fresh@1"
        # Without being asked for, too.
        service.registry.publish(source, "fresh")
        eventually(lambda: versions(service, "fresh")[3]["state"] == "resident")
        service.registry.remove(AdapterId("fresh", 3))
        eventually(lambda: 3 not in versions(service, "fresh"))
        assert service.classify("meh", "fresh").json()["adapter"] == "fresh@2"
        assert service.classify("meh", "fresh@3").status_code == 404
    finally:
        stop.set()
        asking.join()
    assert not disturbed
    with pytest.raises(AssertionError):
        eventually(lambda: service.metric("tonearm_workers_lost_total") > 0, timeout_s=0.1)


def test_a_repaired_adapter_is_tried_again(service: Service, base: BaseModelFiles, tmp_path: Path) -> None:
    source = save_adapter(tmp_path / "copied", base, AdapterShape(seed=31), manifest=False)
    weights = (source / "adapter_model.safetensors").read_bytes()
    directory = service.registry.root / "copied" / "1"
    directory.mkdir(parents=True)
    # Somebody copies by hand, and slowly.
    (directory / "adapter_model.safetensors").write_bytes(weights[:1000])
    (directory / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    eventually(lambda: service.classify("meh", "copied").status_code == 409)
    (directory / "adapter_model.safetensors").write_bytes(weights)
    eventually(lambda: service.classify("meh", "copied").status_code == 200)
