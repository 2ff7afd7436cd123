"""`/experiments`: what is in force, how it stands, what it allows to be said; and the ends that administrators set."""

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from service import results
from service.analysis import compare_pairs, course, required_units, required_units_anytime
from service.asking import XRequestId
from service.conductor import arm_named
from service.routing import Arm, Experiment
from service.schemas import (
    COURSE_EXAMPLES,
    DECIDED_EXAMPLES,
    EXPERIMENT_EXAMPLES,
    EXPERIMENTS_EXAMPLES,
    EXPORT_EXAMPLES,
    PLAN_EXAMPLES,
    Course,
    EndBody,
    ExperimentEntry,
    ExperimentList,
    ExperimentResult,
    PlanAnswer,
    PromoteBody,
    Standings,
    answers,
    problem_answers,
)
from service.service import Service

router = APIRouter(prefix="/experiments", tags=["experiments"])

_EXPORTED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            media_type: {"schema": {"type": "string"}, "examples": {"a-line": {"value": example}}}
            for media_type, example in EXPORT_EXAMPLES.items()
        }
    }
}

Name = Annotated[str, PathParameter(description="The experiment.", examples=["movies-2026-12"])]


@router.get("", responses=answers(EXPERIMENTS_EXAMPLES) | problem_answers(401, 500), summary="Experiments of the file")
async def experiments(request: Request) -> ExperimentList:
    service: Service = request.app.state.service
    found = [service.experiments.named(experiment.name) for experiment in service.experiments.current]
    return ExperimentList(
        experiments=[ExperimentEntry.of(each, service.experiments.standing(each)) for each in found],
        error=service.experiments.error,
    )


# Not async, as those below that ask the database: FastAPI runs them in a thread.
@router.get(
    "/{name}",
    responses=answers(EXPERIMENT_EXAMPLES) | problem_answers(401, 404, 422, 500, 503),
    summary="One experiment and its verdict",
)
def experiment(request: Request, name: Name) -> ExperimentResult:
    """Per arm texts, units, feedback, accuracy; each against the first, with an interval that holds at every look."""
    service: Service = request.app.state.service
    found = service.experiments.named(name)
    standing = service.experiments.standing(found)
    pairs = None
    if found.shadow is not None:
        pairs = compare_pairs(results.shadow_pairs(service.store, found, standing.changes_s[0]))
    waiting = service.conductor.waiting.get(name)
    return ExperimentResult.result(found, service.conductor.analysis(found), standing, pairs, waiting)


@router.get(
    "/{name}/history",
    responses=answers(COURSE_EXAMPLES) | problem_answers(401, 404, 422, 500, 503),
    summary="How its differences came to be",
)
def history(request: Request, name: Name) -> Course:
    """At most 40 looks back, made of the feedback as it is now."""
    service: Service = request.app.state.service
    found = service.experiments.named(name)
    given = results.labels(service.store, found, service.experiments.standing(found).changes_s)
    return Course.of(found, course([arm.name for arm in found.arms], given))


@router.get(
    "/{name}/export",
    response_class=StreamingResponse,
    responses=_EXPORTED | problem_answers(401, 404, 422, 500, 503),
    summary="Every answer with its feedback",
)
def export(
    request: Request,
    name: Name,
    form: Annotated[
        Literal["csv", "jsonl"], Query(alias="format", description="One JSON object a line, or CSV.")
    ] = "csv",
) -> Response:
    """Oldest first. Units are hashed, with a key that never leaves the database."""
    service: Service = request.app.state.service
    found = service.experiments.named(name)
    parts = results.rows(service.store, found, service.experiments.standing(found).changes_s[0])
    first = next(parts, [])  # before the answer begins, so that a database that is away is a 503
    content, media_type = (_csv, "text/csv; charset=utf-8") if form == "csv" else (_lines, "application/jsonl")
    return StreamingResponse(
        content(first, parts),
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}.{form}"'},
    )


@router.get(
    "/{name}/plan",
    responses=answers(PLAN_EXAMPLES) | problem_answers(401, 404, 422, 500, 503),
    summary="Feedback that a difference takes",
)
def plan(
    request: Request,
    name: Name,
    difference: Annotated[float, Query(gt=-1, lt=1, description="Smallest one that is to be seen, e.g. 0.02.")],
    power: Annotated[float, Query(ge=0.5, le=0.999, description="Chance of seeing it.")] = 0.8,
    accuracy: Annotated[float | None, Query(gt=0, lt=1, description="Of the first arm; as seen if left out.")] = None,
) -> PlanAnswer:
    """Labelled units an arm, of two equal ones, and how many the arms have."""
    service: Service = request.app.state.service
    found = service.experiments.named(name)
    seen = service.conductor.analysis(found).arms
    expected = accuracy if accuracy is not None else seen[0].accuracy
    if expected is None:
        raise HTTPException(422, f"query.accuracy: expected, as arm {seen[0].name} has no feedback yet to take it from")
    try:
        fixed = required_units(expected, difference, power=power)
        anytime = required_units_anytime(expected, difference, power=power)
    except ValueError as error:
        raise HTTPException(422, f"query.difference: {error}") from None
    return PlanAnswer(
        accuracy=expected,
        difference=difference,
        power=power,
        fixed=fixed,
        anytime=anytime,
        labelled_units={arm.name: arm.labelled_units for arm in seen},
    )


_ENDS = answers(DECIDED_EXAMPLES) | problem_answers(401, 403, 404, 409, 422, 500, 503)


@router.post("/{name}/stop", responses=_ENDS, summary="Take no more requests")
def stop(request: Request, name: Name, body: EndBody, x_request_id: XRequestId = None) -> Standings:
    """Its units get the default adapter, or the next experiment. For good: another salt begins it anew."""
    service: Service = request.app.state.service
    return _end(service, service.experiments.named(name), None, None, body.reason)


@router.post("/{name}/promote", responses=_ENDS, summary="Give all units one arm, and move an alias to its adapter")
def promote(request: Request, name: Name, body: PromoteBody, x_request_id: XRequestId = None) -> Standings:
    """For good: another salt begins it anew."""
    service: Service = request.app.state.service
    found = service.experiments.named(name)
    alias = body.alias or (found.promotion.alias if found.promotion is not None else None)
    return _end(service, found, arm_named(found, body.arm), alias, body.reason)


def _end(service: Service, experiment: Experiment, arm: Arm | None, alias: str | None, reason: str) -> Standings:
    kind: Literal["stopped", "promoted"] = "stopped" if arm is None else "promoted"
    before = service.experiments.standing(experiment)
    try:
        after = service.conductor.end(experiment, kind, arm, alias, reason)
    except OSError as error:
        detail = f"the alias {alias} cannot be moved: {error.strerror}; nothing was decided"
        raise HTTPException(409, detail) from None
    if len(after.decisions) == len(before.decisions) and after.last is not None:
        detail = f"experiment {experiment.name} was {after.last.kind} already; another salt begins it anew"
        raise HTTPException(409, detail)
    return Standings.of(experiment, after)


def _csv(first: list[dict[str, Any]], parts: Iterator[list[dict[str, Any]]]) -> Iterator[str]:
    held = io.StringIO()
    writer = csv.DictWriter(held, results.COLUMNS)
    writer.writeheader()
    for rows in chain([first], parts):
        writer.writerows(rows)
        yield held.getvalue()
        held.seek(0)
        held.truncate()


def _lines(first: list[dict[str, Any]], parts: Iterator[list[dict[str, Any]]]) -> Iterator[str]:
    for rows in chain([first], parts):
        yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
