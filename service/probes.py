"""`/livez`, `/readyz`, `/metrics`: for the machinery around the service."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, Response

from service import metrics
from service.schemas import DEAD_EXAMPLES, METRICS_EXAMPLES, PROBE_EXAMPLES, Probe, answers, problem_answers
from service.service import Service

router = APIRouter(tags=["probes"])

_DEAD: dict[str, Any] = {"model": Probe, **answers(DEAD_EXAMPLES)[200]}


@router.get(
    "/livez",
    response_model=Probe,
    responses=answers(PROBE_EXAMPLES) | {503: {"description": "Only a restart can help.", **_DEAD}},
    summary="Should it be left running?",
)
async def livez(request: Request) -> Response:
    """503 if only a restart can help: a worker that stays dead or is stuck, or replies that no longer arrive."""
    service: Service = request.app.state.service
    reason = service.watch.death()
    if reason is None:
        return JSONResponse({"status": "ok", "detail": None})
    return JSONResponse({"status": "dead", "detail": reason}, 503)


@router.get(
    "/readyz",
    response_model=Probe,
    responses=answers(PROBE_EXAMPLES) | problem_answers(503),
    summary="Should it get traffic?",
)
async def readyz(request: Request) -> Response:
    """503 while starting, while the worker is replaced, and from the first moment of draining."""
    service: Service = request.app.state.service
    service.watch.check_ready()
    return JSONResponse({"status": "ok", "detail": None})


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=answers(METRICS_EXAMPLES, "text/plain") | problem_answers(401, 500),
    summary="Metrics in Prometheus' text format",
)
async def read_metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    gauges = service.watch.gauges() | service.experiments.gauges() | service.conductor.gauges() | _limits(service)
    return Response(await run_in_threadpool(metrics.scrape, lambda: gauges), media_type=metrics.CONTENT_TYPE)


def _limits(service: Service) -> metrics.Gauges:
    """What the settings allow, beside what there is."""
    settings, refused = service.settings, "Beyond so many a request is refused."
    return {
        "tonearm_queued_rows_limit": (refused, [({}, float(settings.max_queued_texts))]),
        "tonearm_queued_tokens_limit": (refused, [({}, float(settings.max_queued_tokens))]),
        "tonearm_build_info": ("Always 1.", [({"version": version("tonearm"), "base": settings.base_model}, 1.0)]),
    }
