"""`POST /predict`, as text-embeddings-inference has it, so that its clients can call us: a translation, no more.

https://huggingface.github.io/text-embeddings-inference
"""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from adapters.errors import TonearmError
from engine.rows import Answer
from service.asking import XAdapter, XRequestId, XRequestTimeoutMs, XUnitId, ask, headers_of
from service.schemas import Text, answers, problem_answers

router = APIRouter(tags=["text-embeddings-inference"])


class PredictBody(BaseModel):
    """`inputs` as TEI reads them: "a text", ["a text"], or a batch [["a text"], ["another"]]."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"examples": [{"inputs": "a stirring, funny and finally transporting film"}]}
    )

    inputs: Text | Annotated[list[Text | list[Text]], Field(min_length=1)]
    raw_scores: bool = Field(False, description="Answer with logits instead of scores.")
    truncate: bool = Field(False, description="Cut a text that is too long; otherwise it is a 413.")
    truncation_direction: str = Field("right", description="Taken and ignored: the adapter's own side holds.")

    @field_validator("inputs")
    @classmethod
    def _one_text_each(cls, value: Any) -> Any:
        nested = [isinstance(item, list) for item in value] if isinstance(value, list) else []
        if any(nested) and not all(nested):
            raise ValueError("a text, a list with one text, or a list of such lists, not a mixture")
        for item in value if any(nested) else [value] if nested else []:
            if len(item) != 1:
                raise ValueError(f"one text an input, found {len(item)}: pairs of texts are not classified here")
        return value

    @property
    def texts(self) -> list[str]:
        if isinstance(self.inputs, str):
            return [self.inputs]
        return [item if isinstance(item, str) else item[0] for item in self.inputs]

    @property
    def batch(self) -> bool:
        return not isinstance(self.inputs, str) and isinstance(self.inputs[0], list)


class Prediction(BaseModel):
    score: float
    label: str


_EXAMPLES = {
    "one-text": [{"score": 0.98, "label": "positive"}, {"score": 0.02, "label": "negative"}],
    "a-batch": [[{"score": 0.98, "label": "positive"}, {"score": 0.02, "label": "negative"}]],
}


@router.post(
    "/predict",
    response_model=list[Prediction] | list[list[Prediction]],
    responses=answers(_EXAMPLES) | problem_answers(400, 401, 404, 409, 413, 422, 429, 500, 503, 504),
    summary="Classify as text-embeddings-inference does",
)
async def predict(
    request: Request,
    body: PredictBody,
    x_adapter: XAdapter = None,
    x_unit_id: XUnitId = None,
    x_request_timeout_ms: XRequestTimeoutMs = None,
    x_request_id: XRequestId = None,
) -> Response:
    """Every label with its score, the highest first; a list of them for a batch. An error is the whole answer's."""
    route, reply = await ask(
        request,
        body.texts,
        "truncate" if body.truncate else "refuse",
        adapter=x_adapter,
        unit=x_unit_id,
        timeout_ms=x_request_timeout_ms,
    )
    if route.several:
        raise HTTPException(400, "X-Adapter names several adapters; /predict answers with one, /classify with many")
    predictions = []
    for outcome in reply.outcomes:
        if isinstance(outcome, TonearmError):
            raise outcome
        predictions.append(_ranked(outcome, raw=body.raw_scores))
    return JSONResponse(predictions if body.batch else predictions[0], headers=headers_of(route, reply.timings))


def _ranked(answer: Answer, *, raw: bool) -> list[dict[str, Any]]:
    found = zip(answer.logits if raw else answer.scores, answer.labels, strict=True)
    return [{"score": score, "label": label} for score, label in sorted(found, key=lambda pair: -pair[0])]
