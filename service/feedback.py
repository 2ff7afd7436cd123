"""`POST /feedback`: the truth about a text that was answered, now or long after."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from adapters.errors import TonearmError
from service import metrics
from service.asking import XRequestId
from service.problems import kind_of
from service.schemas import FEEDBACK_EXAMPLES, Text, answers, problem_answers
from service.service import Service

router = APIRouter(tags=["feedback"])


class FeedbackBody(BaseModel):
    """The true label of one text of one request."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"request_id": "0c4f2b6a9d5e4f0f8a4f5c2f7f0e9b11", "label": "negative"}]},
    )

    request_id: str = Field(min_length=1, max_length=128, description="Of the answer.")
    label: Text = Field(min_length=1, max_length=256, description="What it should have been.")
    text: int = Field(0, ge=0, lt=2**31, description="Which text of the request, from 0; where it held a list.")


class FeedbackAnswer(BaseModel):
    request_id: str
    text: int
    label: str
    replaced: bool = Field(description="Another label had been given before.")


@router.post(
    "/feedback",
    responses=answers(FEEDBACK_EXAMPLES) | problem_answers(400, 401, 404, 413, 422, 500, 503),
    summary="Say what was right",
)
async def feedback(request: Request, body: FeedbackBody, x_request_id: XRequestId = None) -> FeedbackAnswer:
    """It is on disk when this answers. Saying the same again changes nothing; another label takes the place."""
    service: Service = request.app.state.service
    try:
        replaced = await service.store.feedback(body.request_id, body.text, body.label)
    except TonearmError as error:
        metrics.feedback.labels(kind_of(error).slug).inc()
        raise
    metrics.feedback.labels("replaced" if replaced else "new").inc()
    return FeedbackAnswer(request_id=body.request_id, text=body.text, label=body.label, replaced=replaced)
