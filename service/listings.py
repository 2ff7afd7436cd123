"""`GET /adapters` and `GET /experiments`: what there is, and how it stands."""

from fastapi import APIRouter, Request

from adapters.errors import VerificationError
from adapters.manifest import MANIFEST, Manifest, read_manifest
from adapters.reference import AdapterId
from adapters.store import Registry
from service.run_directory import ResidentAdapter
from service.schemas import (
    AdapterEntry,
    AdapterList,
    AdapterVersion,
    ArmEntry,
    ExperimentEntry,
    ExperimentList,
    problem_answers,
)
from service.service import Service

router = APIRouter(tags=["listings"])


# Not async: it reads files, so FastAPI runs it in a thread.
@router.get("/adapters", responses=problem_answers(401), summary="All adapters, their versions and states")
def adapters(request: Request) -> AdapterList:
    service: Service = request.app.state.service
    registry = Registry(service.settings.adapters_dir)  # not the event loop's: it remembers what it saw
    resident, failed = service.watch.resident(), service.watch.failed()
    entries = [
        AdapterEntry(
            name=name,
            aliases=registry.aliases(name),
            versions=[
                _version(AdapterId(name, version), registry, resident, failed)
                for version in reversed(registry.versions(name))
            ],
        )
        for name in registry.names()
    ]
    return AdapterList(
        base_model=service.settings.base_model, default_adapter=service.settings.default_adapter, adapters=entries
    )


def _version(
    adapter: AdapterId, registry: Registry, resident: dict[str, ResidentAdapter], failed: dict[str, str]
) -> AdapterVersion:
    facts, reason = resident.get(str(adapter)), failed.get(str(adapter))
    try:
        manifest = _manifest(adapter, registry)
    except VerificationError as error:
        manifest, reason = None, reason or error.reason
    labels = facts.labels if facts is not None else manifest.labels if manifest is not None else None
    return AdapterVersion(
        version=adapter.version,
        state="resident" if facts is not None else "failed" if reason is not None else "registered",
        reason=reason if facts is None else None,
        verified=facts is not None and facts.verified,
        labels=None if labels is None else list(labels),
        description=None if manifest is None else manifest.description,
        metrics={} if manifest is None else {name: metric.model_dump() for name, metric in manifest.metrics.items()},
    )


def _manifest(adapter: AdapterId, registry: Registry) -> Manifest | None:
    """
    Raises:
        VerificationError: there is one, and it cannot be read.
    """
    directory = registry.directory(adapter)
    return read_manifest(directory) if (directory / MANIFEST).is_file() else None


@router.get("/experiments", responses=problem_answers(401), summary="Experiments in force")
async def experiments(request: Request) -> ExperimentList:
    service: Service = request.app.state.service
    return ExperimentList(
        experiments=[
            ExperimentEntry(
                name=experiment.name,
                salt=experiment.salt,
                arms=[
                    ArmEntry(name=arm.name, adapter=arm.adapter, share=arm.weight / experiment.total_weight)
                    for arm in experiment.arms
                ],
            )
            for experiment in service.experiments.current
        ],
        error=service.experiments.error,
    )
