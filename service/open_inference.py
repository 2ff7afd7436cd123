"""The Open Inference Protocol, version 2, as KServe, Triton and MLServer speak it: a translation, no more.

https://github.com/kserve/open-inference-protocol. A model is an adapter, its version the adapter's. One BYTES tensor
of texts goes in; labels, scores and logits come out.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from adapters.errors import TonearmError
from adapters.manifest import MANIFEST, read_manifest
from engine.rows import Answer, LongText
from service.asking import XRequestId, XRequestTimeoutMs, ask, headers_of
from service.record import request_id_of
from service.schemas import answers, problem_answers
from service.service import Service

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

_OUTPUTS = ("label", "score", "scores", "logits")
_MOST_DIMENSIONS = 2

Model = Annotated[str, PathParameter(description="An adapter: name, name@3 or name@alias.", examples=["movies"])]
Version = Annotated[str, PathParameter(description="A version of it.", examples=["1"])]


class Tensor(BaseModel):
    """An input tensor."""

    name: str = Field(description="Any; there is one input.")
    shape: list[int]
    datatype: Literal["BYTES"]
    data: list[Any] = Field(description="Texts, flat or nested.")
    parameters: dict[str, Any] = {}


class Requested(BaseModel):
    name: Literal["label", "score", "scores", "logits"]
    parameters: dict[str, Any] = {}


class Parameters(BaseModel):
    """Of a request; others are ignored, as the protocol wants."""

    model_config = ConfigDict(extra="ignore")

    long_text: LongText = "truncate"


class InferBody(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a stirring, funny film"]}]}
            ]
        }
    )

    id: str | None = Field(None, description="Echoed.")
    inputs: list[Tensor] = Field(min_length=1, max_length=1)
    outputs: list[Requested] = Field([], description="Which outputs to give; none means all.")
    parameters: Parameters = Parameters()


class OutputTensor(BaseModel):
    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32"]
    data: list[Any]
    parameters: dict[str, Any] | None = None


class InferAnswer(BaseModel):
    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Any]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


_SERVER = {"server": {"name": "tonearm", "version": "0.1.0", "extensions": []}}
_MODEL_STATUSES = (400, 401, 404, 409, 422, 500)
_LIVE, _DEAD = {"alive": {"live": True}}, {"dead": {"live": False}}
_READY, _NOT_READY = {"ready": {"ready": True}}, {"not-yet": {"ready": False}}
_MODEL_READY = {"ready": {"name": "movies", "ready": True}}
_MODEL = {
    "movies": {
        "name": "movies",
        "versions": ["1"],
        "platform": "tonearm",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, 2]},
        ],
        "parameters": {"labels": ["negative", "positive"], "max_tokens": 128},
    }
}
_INFERRED = {
    "one-text": {
        "model_name": "movies",
        "model_version": "1",
        "id": "seven",
        "outputs": [{"name": "label", "shape": [1], "datatype": "BYTES", "data": ["positive"], "parameters": None}],
    }
}

_MODEL_ANSWERS = answers(_MODEL) | problem_answers(*_MODEL_STATUSES)
_MODEL_READY_ANSWERS = answers(_MODEL_READY) | problem_answers(*_MODEL_STATUSES, 503)


def _content(examples: dict[str, Any]) -> dict[str, Any]:
    return {"content": answers(examples)[200]["content"]}


@router.get("", responses=answers(_SERVER) | problem_answers(401, 500), summary="Server metadata")
async def server(request: Request) -> ServerMetadata:
    return ServerMetadata(name="tonearm", version=request.app.version, extensions=[])


@router.get(
    "/health/live",
    response_model=Live,
    responses=answers(_LIVE) | {503: {"model": Live, "description": "Dead.", **_content(_DEAD)}},
    summary="Is it alive?",
)
async def live(request: Request) -> Response:
    service: Service = request.app.state.service
    alive = service.watch.death() is None
    return JSONResponse({"live": alive}, 200 if alive else 503)


@router.get(
    "/health/ready",
    response_model=Ready,
    responses=answers(_READY) | {503: {"model": Ready, "description": "Not ready.", **_content(_NOT_READY)}},
    summary="Does it take work?",
)
async def ready(request: Request) -> Response:
    service: Service = request.app.state.service
    return JSONResponse({"ready": service.watch.ready}, 200 if service.watch.ready else 503)


@router.get("/models/{model}/ready", responses=_MODEL_READY_ANSWERS, summary="Can it answer?")
@router.get("/models/{model}/versions/{version}/ready", responses=_MODEL_READY_ANSWERS, summary="Can it?")
async def model_ready(request: Request, model: Model, version: Version | None = None) -> ModelReady:
    """An adapter that is not resident is loaded by its first request: it is ready unless it was refused."""
    service: Service = request.app.state.service
    service.watch.check_ready()
    adapter = service.registry.resolve(_reference(model, version))
    reason = service.watch.failed().get(str(adapter))
    if reason is not None:
        raise HTTPException(409, f"adapter {adapter} is refused by the check {reason}")
    return ModelReady(name=adapter.name, ready=True)


# Not async: it reads a file.
@router.get("/models/{model}", responses=_MODEL_ANSWERS, summary="Model metadata")
@router.get("/models/{model}/versions/{version}", responses=_MODEL_ANSWERS, summary="Model metadata")
def metadata(request: Request, model: Model, version: Version | None = None) -> ModelMetadata:
    catalogue = request.app.state.catalogue
    adapter, versions, directory = catalogue.resolve(_reference(model, version))
    labels: list[str] | None = None
    parameters: dict[str, Any] = {}
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory)
        labels = list(manifest.labels)
        parameters = {"labels": labels, "max_tokens": manifest.max_tokens, "description": manifest.description}
    classes = -1 if labels is None else len(labels)
    return ModelMetadata(
        name=adapter.name,
        versions=[str(number) for number in versions],
        platform="tonearm",
        inputs=[TensorMetadata(name="text", datatype="BYTES", shape=[-1])],
        outputs=[
            TensorMetadata(name="label", datatype="BYTES", shape=[-1]),
            TensorMetadata(name="score", datatype="FP32", shape=[-1]),
            TensorMetadata(name="scores", datatype="FP32", shape=[-1, classes]),
            TensorMetadata(name="logits", datatype="FP32", shape=[-1, classes]),
        ],
        parameters=parameters,
    )


_INFER: dict[str, Any] = {
    "response_model": InferAnswer,
    "responses": answers(_INFERRED) | problem_answers(400, 401, 404, 409, 413, 422, 429, 500, 503, 504),
    "summary": "Classify a tensor of texts",
}


@router.post("/models/{model}/infer", **_INFER)
@router.post("/models/{model}/versions/{version}/infer", **_INFER)
async def infer(
    request: Request,
    body: InferBody,
    model: Model,
    version: Version | None = None,
    x_request_timeout_ms: XRequestTimeoutMs = None,
    x_request_id: XRequestId = None,
) -> Response:
    """An error is the whole answer's: the protocol knows no other."""
    route, reply = await ask(
        request,
        _texts(body.inputs[0]),
        body.parameters.long_text,
        adapter=_reference(model, version),
        unit=None,
        timeout_ms=x_request_timeout_ms,
    )
    answers: list[Answer] = []
    for outcome in reply.outcomes:
        if isinstance(outcome, TonearmError):
            raise outcome
        answers.append(outcome)
    wanted = [output.name for output in body.outputs] or _OUTPUTS
    content = {
        "model_name": route.adapters[0].name,
        "model_version": str(route.adapters[0].version),
        "id": body.id or request_id_of(request),
        "outputs": [_output(name, answers) for name in wanted],
    }
    return JSONResponse(content, headers=headers_of(route, reply.timings))


def _reference(model: str, version: str | None) -> str:
    if "," in model:
        raise HTTPException(400, f"{model!r} names several adapters; this protocol asks for one")
    return model if version is None else f"{model}@{version}"


def _texts(tensor: Tensor) -> list[str]:
    """
    Raises:
        HTTPException: 422.
    """
    texts = [text for item in tensor.data for text in (item if isinstance(item, list) else [item])]
    size = 1
    for length in tensor.shape:
        size *= length
    if len(tensor.shape) not in range(1, _MOST_DIMENSIONS + 1) or size != len(texts) or not texts:
        detail = f"inputs.0.shape: expected [n] or [n, 1] for {len(texts)} texts, n >= 1, found {tensor.shape}"
        raise HTTPException(422, detail)
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise HTTPException(422, f"inputs.0.data.{at}: expected a text, found {ascii(text)[:80]}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise HTTPException(422, f"inputs.0.data.{at}: expected a text that is Unicode throughout") from None
    return texts


def _output(name: str, answers: list[Answer]) -> dict[str, Any]:
    labels = list(answers[0].labels)
    if name == "label":
        return {"name": name, "shape": [len(answers)], "datatype": "BYTES", "data": [each.label for each in answers]}
    if name == "score":
        scores = [max(each.scores) for each in answers]
        return {"name": name, "shape": [len(answers)], "datatype": "FP32", "data": scores}
    values = [value for each in answers for value in (each.scores if name == "scores" else each.logits)]
    shape = [len(answers), len(labels)]
    return {"name": name, "shape": shape, "datatype": "FP32", "data": values, "parameters": {"labels": labels}}
