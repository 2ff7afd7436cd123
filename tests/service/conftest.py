"""The adapters of the service's tests, and one running service for all that do it no harm."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.base_model import BaseModelFiles
from adapters.manifest import read_manifest, write_manifest
from adapters.store import Registry
from tests.factory import AdapterShape, save_adapter
from tests.service.running import EXPERIMENTS, SHAPES, Service, run_service


@pytest.fixture(scope="session")
def made(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter directories by name, not yet in any registry."""
    root = tmp_path_factory.mktemp("made")
    directories = {name: save_adapter(root / name, base, shape, name=name) for name, shape in SHAPES.items()}
    directories["plain"] = save_adapter(root / "plain", base, AdapterShape(seed=11), manifest=False)
    alien = save_adapter(root / "alien", base, AdapterShape(seed=12), name="alien")
    manifest = read_manifest(alien)
    other = manifest.base.model_copy(update={"id": "someone/else", "sha256": "ab" * 32})
    write_manifest(alien, manifest.model_copy(update={"base": other}))
    directories["alien"] = alien
    return directories


@pytest.fixture(scope="session")
def service(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that do it no harm."""
    directory = tmp_path_factory.mktemp("service")
    registry = Registry(directory / "registry")
    for name, source in made.items():
        registry.publish(source, name)
    experiments = directory / "experiments.yaml"
    experiments.write_text(EXPERIMENTS)
    with run_service(registry, directory, experiments_file=experiments, max_resident_adapters=16) as running:
        yield running
