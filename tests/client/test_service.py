"""Both clients against the running service."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from client import (
    AdapterRefused,
    AsyncClient,
    Classification,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ItemError,
    NotFound,
    Overloaded,
    TooLarge,
    Unauthorized,
    UnknownAdapter,
)
from tests.client.conftest import Ask
from tests.factory import TEXTS
from tests.service.running import ADMIN_KEY, KEY, Service

SETTINGS = {"api_key": KEY}


def test_one_text(ask: Ask, service: Service) -> None:
    answer = ask(service.url, "classify", TEXTS[0], settings=SETTINGS, adapter="movies", logits=True, request_id="it-1")
    raw = service.classify(TEXTS[0], "movies", logits=True).json()
    assert isinstance(answer, Classification)
    assert answer.scores == pytest.approx(raw["scores"], abs=1e-4)
    assert answer.logits == pytest.approx(raw["logits"], abs=1e-4)
    assert (answer.label, answer.tokens, answer.truncated) == (raw["label"], raw["tokens"], raw["truncated"])
    assert (answer.adapter, answer.experiment, answer.request_id) == ("movies@1", None, "it-1")


def test_lists(ask: Ask, service: Service) -> None:
    texts = list(TEXTS)
    many = ask(service.url, "classify", texts, settings=SETTINGS, adapter="movies")
    assert [item.adapter for item in many] == ["movies@1"] * len(texts)
    several = ask(service.url, "classify", texts[0], settings=SETTINGS, adapter=["movies", "tone"])
    assert [item.adapter for item in several] == ["movies@1", "tone@1"]
    rows = ask(service.url, "classify", texts, settings=SETTINGS, adapter=("tone", "movies"))
    assert [[item.adapter for item in row] for row in rows] == [["tone@1", "movies@1"]] * len(texts)
    assert [row[1].label for row in rows] == [item.label for item in many]
    alone = ask(service.url, "classify", texts[:1], settings=SETTINGS, adapter=["movies"])
    assert [[item.label for item in row] for row in alone] == [[many[0].label]]


def test_an_item_that_fails(ask: Ask, service: Service) -> None:
    good, bad = ask(service.url, "classify", ["meh", "word " * 40], settings=SETTINGS, adapter="short", truncate=False)
    assert good.adapter == "short@1"
    assert isinstance(bad, ItemError) and bad.error.status == 413 and bad.error.request_id == good.request_id


def test_a_unit_takes_its_arm(ask: Ask, service: Service) -> None:
    answer = ask(service.url, "classify", "meh", settings=SETTINGS, unit_id="東京")
    assert (answer.experiment, answer.arm, answer.adapter) == ("movies-2026-12", "control", "base@1")


def test_errors(ask: Ask, service: Service) -> None:
    with pytest.raises(UnknownAdapter, match="did you mean movies") as caught:
        ask(service.url, "classify", "meh", settings=SETTINGS, adapter="movis", request_id="it-2")
    assert caught.value.nearest[0] == "movies" and caught.value.request_id == "it-2"
    with pytest.raises(AdapterRefused, match="someone/else"):
        ask(service.url, "classify", "meh", settings=SETTINGS, adapter="alien")
    with pytest.raises(TooLarge, match="reads 12"):
        ask(service.url, "classify", "word " * 40, settings=SETTINGS, adapter="short", truncate=False)
    with pytest.raises(InvalidRequest, match="half a surrogate pair"):
        ask(service.url, "classify", "\ud800", settings=SETTINGS)
    with pytest.raises(InvalidRequest, match="expected name, name@3 or name@alias"):
        ask(service.url, "classify", "meh", settings=SETTINGS, adapter="No Name")
    with pytest.raises(Unauthorized):
        ask(service.url, "classify", "meh", settings={"api_key": "not-the-key"})


def test_listings_and_readiness(ask: Ask, service: Service) -> None:
    listed = ask(service.url, "adapters", settings=SETTINGS)
    versions = {entry.name: entry.versions[0] for entry in listed.adapters}
    assert listed.default_adapter == "base"
    assert (versions["movies"].state, versions["movies"].labels) == ("resident", ("negative", "positive"))
    assert versions["alien"].state == "failed" and "someone/else" in versions["alien"].reason
    experiments = ask(service.url, "experiments", settings=SETTINGS)
    assert [arm.share for arm in experiments.experiments[0].arms] == [0.5, 0.5]
    assert ask(service.url, "ready", settings={}) is True


def test_a_part_of_the_list_and_one_adapter(ask: Ask, service: Service) -> None:
    everything = ask(service.url, "adapters", settings=SETTINGS)
    part = ask(service.url, "adapters", settings=SETTINGS, state="resident", search="o", offset=1, limit=1)
    assert part.total is not None and 2 <= part.total < everything.total and len(part.adapters) == 1
    one = ask(service.url, "adapter", "movies@1", settings=SETTINGS)
    assert (one.adapter, one.versions, one.labels) == ("movies@1", (1,), ("negative", "positive"))
    with pytest.raises(InvalidRequest, match=r"query\.limit"):
        ask(service.url, "adapters", settings=SETTINGS, limit=0)


def test_aliases(ask: Ask, service: Service) -> None:
    settings = {"api_key": ADMIN_KEY}
    with pytest.raises(InvalidRequest, match="blue green"):
        ask(service.url, "set_alias", "movies", "blue green", 1, settings=settings)
    assert ask(service.url, "set_alias", "movies", "newest", 1, settings=settings).aliases["newest"] == 1
    assert ask(service.url, "classify", "meh", settings=SETTINGS, adapter="movies@newest").adapter == "movies@1"
    assert "newest" not in ask(service.url, "remove_alias", "movies", "newest", settings=settings).aliases


def test_feedback_is_counted_once(ask: Ask, service: Service) -> None:
    name = "movies-2026-12"
    answer = ask(service.url, "classify", TEXTS[0], settings=SETTINGS, unit_id=f"client-{ask.__name__}")
    before = {arm.name: arm.labelled for arm in ask(service.url, "experiment", name, settings=SETTINGS).arms}
    wrong = "negative" if answer.label == "positive" else "positive"
    for label in (wrong, wrong, answer.label):
        assert ask(service.url, "feedback", answer.request_id, label, settings=SETTINGS) is None
    found = ask(service.url, "experiment", name, settings=SETTINGS)
    after = {arm.name: arm.labelled for arm in found.arms}
    assert after == before | {answer.arm: before[answer.arm] + 1}
    assert found.state == "running" and found.decisions[0].kind == "started"
    exported = ask(service.url, "export_experiment", name, "jsonl", settings=SETTINGS)
    mine = next(line for line in exported.splitlines() if answer.request_id in line)
    assert json.loads(mine)["feedback"] == answer.label
    looks = ask(service.url, "experiment_history", name, settings=SETTINGS).looks
    assert looks[-1].labelled == after
    plan = ask(service.url, "plan_experiment", name, 0.05, settings=SETTINGS, accuracy=0.8)
    assert plan.anytime > plan.fixed > 100 and plan.labelled_units.keys() == after.keys()
    with pytest.raises(NotFound, match="no text 7 was answered"):
        ask(service.url, "feedback", answer.request_id, "positive", settings=SETTINGS, text=7)


def test_administrators_verbs(ask: Ask, service: Service) -> None:
    settings = {"api_key": ADMIN_KEY}
    assert ask(service.url, "unload", "tone", settings=settings).state == "registered"
    assert ask(service.url, "load", "tone", settings=settings).state == "resident"
    assert ask(service.url, "pin", "tone@1", settings=settings).pinned is True
    assert ask(service.url, "verify", "tone", settings=settings).state == "resident"
    assert ask(service.url, "unload", "tone", settings=settings).pinned is False
    refused = ask(service.url, "verify", "alien", settings=settings)
    assert refused.state == "failed" and "someone/else" in refused.reason
    with pytest.raises(Unauthorized, match="administrator"):
        ask(service.url, "load", "tone", settings=SETTINGS)


def test_long_texts_in_windows(ask: Ask, service: Service) -> None:
    text = "word " * 40
    whole = ask(service.url, "classify", text, settings=SETTINGS, adapter="short", long_text="windows")
    cut = ask(service.url, "classify", text, settings=SETTINGS, adapter="short")
    assert whole.windows > 1 and not whole.truncated and cut.windows == 1 and cut.truncated
    assert whole.tokens > cut.tokens


def test_a_deadline_of_the_services_own(ask: Ask, service: Service) -> None:
    worker = service.worker()
    worker.suspend()
    try:
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.3 s"):
            ask(service.url, "classify", "late", settings=SETTINGS, timeout_ms=300)
    finally:
        worker.resume()


def test_a_full_queue_is_waited_for(ask: Ask, service: Service) -> None:
    worker = service.worker()
    worker.suspend()
    resuming = threading.Timer(1.5, worker.resume)
    try:
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(service.classify, ["meh"] * 128) for _ in range(6)]
            deadline_s = time.monotonic() + 10
            while service.metric("tonearm_queued_rows") < 768:
                assert time.monotonic() < deadline_s
            with pytest.raises(Overloaded) as caught:
                ask(service.url, "classify", "meh", settings={**SETTINGS, "retries": 0})
            assert caught.value.retry_after_s is not None and caught.value.retry_after_s >= 1
            resuming.start()
            # However long the service says that it takes.
            answer = ask(service.url, "classify", "meh", settings={**SETTINGS, "timeout_s": 120, "retries": 10})
            assert answer.adapter == "base@1"
            assert [future.result().status_code for future in waiting] == [200] * 6
    finally:
        resuming.cancel()
        worker.resume()


def test_one_client_for_many_at_once(service: Service) -> None:
    with Client(service.url, **SETTINGS) as client, ThreadPoolExecutor(8) as pool:
        labels = {answer.label for answer in pool.map(lambda _: client.classify(TEXTS[0], adapter="movies"), range(40))}
    assert len(labels) == 1

    async def ask_all() -> set[str]:
        async with AsyncClient(service.url, **SETTINGS) as client:
            asked = (client.classify(TEXTS[0], adapter="movies") for _ in range(40))
            return {answer.label for answer in await asyncio.gather(*asked)}

    assert asyncio.run(ask_all()) == labels
