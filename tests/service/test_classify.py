"""`POST /classify` against a running service: the answers, and every way to ask wrongly."""

import json
from collections.abc import Iterator, Sequence

import pytest
import torch

from adapters.base_model import BaseModelFiles
from service.routing import Arm, Experiment, assign
from tests.factory import TEXTS, peft_logits, peft_model
from tests.service.running import SHAPES, Service

LONG = "word " * 40


def logits(items: Sequence[dict[str, dict[str, float]]]) -> torch.Tensor:
    return torch.tensor([list(item["logits"].values()) for item in items])


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_pefts_own(service: Service, base: BaseModelFiles, name: str) -> None:
    items = service.classify(list(TEXTS), name, logits=True).json()["results"]
    expected = peft_logits(peft_model(base, SHAPES[name]), base, TEXTS, SHAPES[name])
    torch.testing.assert_close(logits(items), expected, atol=1e-4, rtol=0)
    scores = torch.tensor([list(item["scores"].values()) for item in items])
    torch.testing.assert_close(scores, expected.softmax(1), atol=1e-4, rtol=0)


def test_the_answer_to_one_text(service: Service) -> None:
    response = service.classify(TEXTS[0], "movies")
    answer = response.json()
    assert response.status_code == 200
    assert list(answer) == [
        "label", "score", "scores", "adapter", "experiment", "arm", "tokens", "truncated", "windows", "kept",
        "request_id",
    ]  # fmt: skip
    assert list(answer["scores"]) == ["negative", "positive"]
    assert answer["score"] == max(answer["scores"].values()) == answer["scores"][answer["label"]]
    assert (answer["adapter"], answer["experiment"], answer["arm"]) == ("movies@1", None, None)
    assert (answer["tokens"], answer["truncated"]) == (10, False)
    assert response.headers["X-Adapter"] == "movies@1"
    assert "X-Experiment" not in response.headers and "X-Arm" not in response.headers
    assert [part.split(";")[0] for part in response.headers["Server-Timing"].split(", ")] == [
        "queue", "tokenise", "forward", "total",
    ]  # fmt: skip


def test_several_adapters(service: Service) -> None:
    one = service.classify(TEXTS[0], "movies,tone@1").json()["results"]
    assert [item["adapter"] for item in one] == ["movies@1", "tone@1"]
    many = service.classify(list(TEXTS), "tone, movies").json()["results"]
    assert [[item["adapter"] for item in items] for items in many] == [["tone@1", "movies@1"]] * len(TEXTS)
    alone = service.classify(TEXTS[0], "tone").json()
    assert many[0][0]["scores"] == pytest.approx(alone["scores"], abs=1e-4)


def test_a_mixed_batch_answers_like_one_by_one(service: Service) -> None:
    names = [*SHAPES, "plain"]
    texts = [*TEXTS, LONG]
    mixed = service.classify(texts, ",".join(names), logits=True).json()["results"]
    for text, items in zip(texts, mixed, strict=True):
        for name, item in zip(names, items, strict=True):
            alone = service.classify(text, name, logits=True).json()
            assert item["logits"] == pytest.approx(alone["logits"], abs=1e-4)
            assert (item["tokens"], item["truncated"]) == (alone["tokens"], alone["truncated"])


def test_plain_peft_directory_serves_unverified(service: Service, base: BaseModelFiles) -> None:
    assert set(service.classify("meh", "plain").json()["scores"]) == {"LABEL_0", "LABEL_1"}


def test_the_default_adapter_answers_when_nobody_chooses(service: Service) -> None:
    assert service.classify("meh").json()["adapter"] == "base@1"


def test_long_texts(service: Service) -> None:
    cut = service.classify(LONG, "short").json()
    assert (cut["tokens"], cut["truncated"]) == (12, True)
    refused = service.classify(LONG, "short", truncate=False)
    assert refused.status_code == 413
    assert refused.json()["detail"].startswith("the text has 42 tokens, adapter short@1 reads 12")


def test_one_bad_item_leaves_the_others(service: Service) -> None:
    response = service.classify(["meh", LONG, "fine"], "short", truncate=False)
    assert response.status_code == 200
    good, bad, fine = response.json()["results"]
    assert good["label"] and fine["label"]
    assert bad["error"]["status"] == 413 and bad["error"]["request_id"] == good["request_id"]
    by_adapter = service.classify("meh", "movies,alien").json()["results"]
    assert by_adapter[0]["adapter"] == "movies@1"
    assert by_adapter[1]["error"]["status"] == 409


def test_refused_adapter_is_a_conflict_with_its_reason(service: Service) -> None:
    for text in ("meh", ["meh", "fine"]):
        response = service.classify(text, "alien")
        assert response.status_code == 409
        assert "base model: expected sentence-transformers/all-MiniLM-L6-v2" in response.json()["detail"]
        assert "someone/else" in response.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "status", "detail"),
    [
        ({"X-Adapter": "movis"}, 404, "did you mean movies?"),
        ({"X-Adapter": "movies@7"}, 404, "movies@1"),
        ({"X-Adapter": "movies,nope"}, 404, "no adapter 'nope'"),
        ({"X-Adapter": "No Name"}, 400, "expected name, name@3 or name@alias"),
        ({"X-Adapter": ""}, 400, "no adapter reference"),
        ({"X-Adapter": "../../etc"}, 400, "no adapter reference"),
        ({"X-Unit-Id": ""}, 400, "expected 1 to 256"),
        ({"X-Unit-Id": "u" * 257}, 400, "expected 1 to 256"),
        ({"X-Unit-Id": b"\xff"}, 400, "not UTF-8"),
        ({"X-Request-Timeout-Ms": "0"}, 400, "X-Request-Timeout-Ms is '0', expected a whole number from 1 to 30000"),
        ({"X-Request-Timeout-Ms": "soon"}, 400, "is 'soon'"),
        ({"X-Request-Timeout-Ms": "30001"}, 400, "is '30001'"),
    ],
)
def test_bad_headers(service: Service, headers: dict[str, str], status: int, detail: str) -> None:
    response = service.client.post("/classify", json={"text": "meh"}, headers=headers)
    assert response.status_code == status
    assert detail in response.json()["detail"]


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b'{"text": 3}', "body.text: expected a text or a list of texts, found 3"),
        (b'{"text": ["a", 1]}', "body.text.1: expected a valid string, found 1"),
        (b'{"text": []}', "body.text: expected list should have at least 1 item after validation, not 0, found []"),
        (b'{"text": "\\ud800"}', "body.text: expected a text that is Unicode throughout"),
        (b'{"text": "a", "truncate": "no"}', "body.truncate: expected a valid boolean, found 'no'"),
        (b'{"text": "a", "adapter": "movies"}', "body.adapter: expected extra inputs are not permitted"),
        (b"{}", "body.text: expected, but not there"),
        (b'{"text": ', "the body is no JSON: Expecting value at character 9"),
        (b"[1]", "the body is no JSON object"),
    ],
)
def test_bad_bodies(service: Service, content: bytes, detail: str) -> None:
    response = service.client.post("/classify", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"].startswith(detail)


@pytest.mark.parametrize("text", ["", " ", "\x00\x07", "字" * 2000, "🙂‍↔️", "a" * 100_000])
def test_odd_texts_are_answered(service: Service, text: str) -> None:
    assert service.classify(text, "movies").status_code == 200


def test_too_much(service: Service) -> None:
    many = service.classify(["meh"] * 600, "movies,tone")
    assert many.status_code == 413 and many.json()["detail"].startswith("the request asks for 1200")
    large = service.classify("a" * (4 * 2**20), "movies")
    assert large.status_code == 413 and "larger than 4194304 bytes" in large.json()["detail"]

    def chunks() -> "list[bytes]":
        return [b'{"text": "', *[b"a" * 2**20] * 5, b'"}']

    unsaid = service.client.post("/classify", content=iter(chunks()), headers={"Content-Type": "application/json"})
    assert unsaid.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/health", 404), ("DELETE", "/classify", 405)]
)
def test_every_error_is_a_problem_with_the_request_id(service: Service, method: str, path: str, status: int) -> None:
    response = service.client.request(method, path, headers={"X-Request-Id": "mine-1"})
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json().keys() == {"type", "title", "status", "detail", "request_id"}
    assert response.json()["request_id"] == response.headers["X-Request-Id"] == "mine-1"


def test_request_ids(service: Service) -> None:
    def answered(request_id: str) -> str:
        response = service.client.post("/classify", json={"text": "meh"}, headers={"X-Request-Id": request_id})
        assert response.json()["request_id"] == response.headers["X-Request-Id"]
        return str(response.headers["X-Request-Id"])

    assert answered("01J-ab.c:9") == "01J-ab.c:9"
    for bad in ("", "a b", "x" * 129):
        assert len(answered(bad)) == 32


def test_a_unit_sticks_to_its_arm(service: Service) -> None:
    arms = (Arm(name="control", adapter="base", weight=50), Arm(name="treatment", adapter="movies", weight=50))
    experiment = Experiment(name="movies-2026-12", salt="v1", arms=arms)
    before = service.metric("tonearm_assignments_total", experiment=experiment.name)
    seen = set()
    for unit in ("user-42", "user-43", "東京", *map(str, range(6))):
        arm = assign(experiment, unit)
        seen.add(arm.name)
        for _ in range(2):
            response = service.client.post(
                "/classify",
                json={"text": "meh"},
                headers={"X-Unit-Id": unit.encode()},  # type: ignore[dict-item]
            )
            assert (response.headers["X-Experiment"], response.headers["X-Arm"]) == (experiment.name, arm.name)
            assert response.headers["X-Adapter"] == f"{arm.adapter}@1"
            answer = response.json()
            assert (answer["experiment"], answer["arm"]) == (experiment.name, arm.name)
            assert answer["adapter"] == f"{arm.adapter}@1"
    assert seen == {"control", "treatment"}
    assert service.metric("tonearm_assignments_total", experiment=experiment.name) == before + 18
    for arm in arms:
        labels = {"experiment": experiment.name, "arm": arm.name, "adapter": f"{arm.adapter}@1", "status": "200"}
        assert service.metric("tonearm_requests_total", **labels) > 0


def test_an_explicit_adapter_stays_out_of_the_experiment(service: Service) -> None:
    headers = {"X-Unit-Id": "user-42", "X-Adapter": "movies"}
    response = service.client.post("/classify", json={"text": "meh"}, headers=headers)
    assert "X-Experiment" not in response.headers
    assert response.json()["experiment"] is None


def test_texts_are_not_logged(service: Service) -> None:
    response = service.classify("a very private matter", "movies")
    lines = [line for line in service.log_lines() if line.get("request_id") == response.json()["request_id"]]
    assert [line["event"] for line in lines] == ["request"]
    assert (lines[0]["adapter"], lines[0]["status"], lines[0]["rows"]) == ("movies@1", 200, 1)
    assert "private" not in service.log.read_text()


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"text": TEXTS[0]}, {"X-Adapter": "movies"}),
        ({"text": TEXTS[0], "logits": True, "truncate": True}, {"X-Adapter": "movies,tone"}),
        ({"text": TEXTS[0]}, {"X-Unit-Id": "user-42"}),
        ({"text": LONG, "truncate": False}, {"X-Adapter": "short"}),
        ({"text": LONG, "long_text": "windows"}, {"X-Adapter": "short"}),
        ({"text": TEXTS[0]}, {"X-Adapter": "movis"}),
        ({"text": TEXTS[0]}, {"X-Adapter": "alien"}),
        ({"text": TEXTS[0]}, {"X-Adapter": "No Name"}),
        ({"text": TEXTS[0]}, {"X-Adapter": "movies", "X-Request-Timeout-Ms": "soon"}),
        ({"text": "\ud800"}, {"X-Adapter": "movies"}),
        ({"text": 3}, {"X-Adapter": "movies"}),
        ({"text": TEXTS[0], "colour": "red"}, {"X-Adapter": "movies"}),
        ({"text": TEXTS[0]}, {"X-Adapter": "movies", "Content-Type": "text/plain"}),
        ({"text": TEXTS[0]}, {"X-Adapter": "movies", "Authorization": "Bearer not-a-key"}),
    ],
)
def test_both_ways_to_a_text_are_one(service: Service, body: dict[str, object], headers: dict[str, str]) -> None:
    """A body in one piece goes straight, one in two pieces goes FastAPI's way; nobody can tell."""
    content = json.dumps(body).encode()
    sent = {"Content-Type": "application/json", "X-Request-Id": "both", **headers}

    def pieces() -> Iterator[bytes]:
        yield content[:7]
        yield content[7:]

    straight = service.client.post("/classify", content=content, headers=sent)
    around = service.client.post("/classify", content=pieces(), headers=sent)
    assert straight.status_code == around.status_code
    one, other = straight.json(), around.json()
    for found in (one, other):
        for item in (found, *found.get("results", ())):
            for scores in ("score", "scores", "logits"):
                item.pop(scores, None)  # alike, but not to the last bit: other rows may have been in the batch
    assert one == other
    differ = {"date", "server-timing", "content-length"}
    assert {name: value for name, value in straight.headers.items() if name not in differ} == {
        name: value for name, value in around.headers.items() if name not in differ
    }
