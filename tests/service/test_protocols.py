"""Other protocols' ways in give the same answers as our own."""

import socket
from typing import Any

import httpx
import pytest

from tests.service.running import Service

TEXTS = ["a stirring, funny and finally transporting film", "the battery died after two days"]
LONG = "word " * 200


def infer(service: Service, model: str, data: list[Any], shape: list[int] | None = None, **more: Any) -> httpx.Response:
    tensor = {"name": "text", "shape": shape or [len(data)], "datatype": "BYTES", "data": data}
    return service.client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor], **more})


def test_open_inference_gives_what_classify_gives(service: Service) -> None:
    own = service.classify(TEXTS, "tone", logits=True).json()["results"]
    answer = infer(service, "tone", TEXTS, id="seven").json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tone", "1", "seven")
    outputs = {output["name"]: output for output in answer["outputs"]}
    labels = outputs["scores"]["parameters"]["labels"]
    assert outputs["label"]["data"] == [item["label"] for item in own]
    assert outputs["scores"]["shape"] == [2, 3]
    expected = [item["scores"][label] for item in own for label in labels]
    assert outputs["scores"]["data"] == pytest.approx(expected, abs=1e-4)
    assert outputs["logits"]["data"] == pytest.approx(
        [item["logits"][label] for item in own for label in labels], abs=1e-4
    )
    some = infer(service, "tone/versions/1", [[text] for text in TEXTS], [2, 1], outputs=[{"name": "label"}]).json()
    assert [output["name"] for output in some["outputs"]] == ["label"]


def test_open_inference_says_what_there_is(service: Service) -> None:
    assert service.client.get("/v2").json()["name"] == "tonearm"
    assert service.client.get("/v2/health/live", headers={"Authorization": ""}).json() == {"live": True}
    assert service.client.get("/v2/health/ready", headers={"Authorization": ""}).json() == {"ready": True}
    model = service.client.get("/v2/models/tone").json()
    assert model["versions"] == ["1"] and model["parameters"]["labels"] == ["negative", "neutral", "positive"]
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert service.client.get("/v2/models/tone/versions/1/ready").json() == {"name": "tone", "ready": True}
    assert service.client.get("/v2/models/tone/versions/9/ready").status_code == 404


@pytest.mark.parametrize(
    ("model", "data", "shape", "status", "detail"),
    [
        ("nobody", TEXTS, None, 404, "nobody"),
        ("tone,movies", TEXTS, None, 400, "several"),
        ("tone", TEXTS, [3], 422, "inputs.0.shape"),
        ("tone", TEXTS, [1, 1, 2], 422, "inputs.0.shape"),
        ("tone", [7], None, 422, "inputs.0.data.0"),
        ("tone", ["\ud800"], None, 422, "Unicode"),
    ],
)
def test_open_inference_refuses_in_its_own_words(
    service: Service, model: str, data: list[Any], shape: list[int] | None, status: int, detail: str
) -> None:
    import json

    tensor = {"name": "text", "shape": shape or [len(data)], "datatype": "BYTES", "data": data}
    body = json.dumps({"inputs": [tensor]})  # ASCII escapes, so that half a surrogate pair gets through
    headers = {"content-type": "application/json"}
    response = service.client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert detail in response.json()["error"] and response.json()["status"] == status


def predict(service: Service, inputs: Any, adapter: str = "tone", **more: Any) -> httpx.Response:
    return service.client.post("/predict", json={"inputs": inputs, **more}, headers={"X-Adapter": adapter})


def test_predict_gives_what_classify_gives(service: Service) -> None:
    own = service.classify(TEXTS[0], "tone", logits=True).json()
    ranked = sorted(own["scores"].items(), key=lambda pair: -pair[1])
    one = predict(service, TEXTS[0]).json()
    assert [item["label"] for item in one] == [label for label, _ in ranked]
    assert [item["score"] for item in one] == pytest.approx([score for _, score in ranked], abs=1e-4)
    assert [item["label"] for item in predict(service, [TEXTS[0]]).json()] == [item["label"] for item in one]
    batch = predict(service, [[text] for text in TEXTS]).json()
    assert len(batch) == 2 and batch[0][0]["label"] == own["label"]
    raw = {item["label"]: item["score"] for item in predict(service, TEXTS[0], raw_scores=True).json()}
    assert raw == pytest.approx(own["logits"], abs=1e-4)


def test_predict_refuses_pairs_long_texts_and_several_adapters(service: Service) -> None:
    pair = predict(service, [["a premise", "a hypothesis"]])
    assert pair.status_code == 422 and "pairs" in pair.json()["error"]
    assert pair.json()["error_type"] == "validation"
    assert predict(service, ["one", ["two"]]).status_code == 422
    assert predict(service, LONG, "short").status_code == 413
    assert predict(service, LONG, "short", truncate=True).status_code == 200
    assert predict(service, "a text", "tone,movies").status_code == 400
    assert predict(service, "a text", "nobody").status_code == 404


def test_long_texts_in_windows(service: Service) -> None:
    text = "the film begins slowly and then it never lets go of you until the very last frame of it"
    whole = service.classify(text, "short", long_text="windows", logits=True).json()
    assert whole["windows"] > 1 and whole["truncated"] is False
    cut = service.classify(text, "short").json()
    assert cut["windows"] == 1 and cut["truncated"] is True and cut["tokens"] < whole["tokens"]
    too_long = service.classify("word " * 5000, "short", long_text="windows")
    assert too_long.status_code == 413 and "windows" in too_long.json()["detail"]


def test_a_head_without_end_is_refused(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\n")
        sent, answer = 0, b""
        try:
            while sent < 4 * 2**20 and not answer:
                connection.sendall(b"x-filler-%d: " % sent + b"a" * 8000 + b"\r\n")
                sent += 8000
                connection.settimeout(0.01)
                try:
                    answer = connection.recv(4096)
                except TimeoutError:
                    connection.settimeout(10)
            assert answer.startswith(b"HTTP/1.1 431"), answer
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed on us while we were still talking
        assert sent < 2**20
    assert service.classify("a fine film", "movies").status_code == 200
