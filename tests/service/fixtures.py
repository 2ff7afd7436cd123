"""The adapters of the service's tests, and one running service for all of them: it takes most of a minute to start.

A plugin (tests/conftest.py), so that the client's tests share that service. Every run loads it, most of them for other
rooms; therefore the fixtures import torch, by way of the factory, when they are asked for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adapters.base_model import BaseModelFiles
from adapters.manifest import read_manifest, write_manifest
from adapters.store import Registry

if TYPE_CHECKING:
    from tests.service.running import Service


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What harms the service comes last, in the order in which it stands."""
    items.sort(key=lambda item: item.get_closest_marker("harmful") is not None)


@pytest.fixture(scope="session")
def made(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter directories by name, not yet in any registry."""
    from tests.factory import AdapterShape, save_adapter
    from tests.service.running import SHAPES

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
def service(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Service]":
    """The service; tests marked `harmful` leave it unlike they found it."""
    from tests.service.running import ADMIN_KEY, EXPERIMENTS, KEY, run_service

    directory = tmp_path_factory.mktemp("service")
    registry = Registry(directory / "registry")
    for name, source in made.items():
        registry.publish(source, name)
    experiments = directory / "experiments.yaml"
    experiments.write_text(EXPERIMENTS)
    settings = {"api_keys": f"{KEY},another-key", "admin_keys": ADMIN_KEY, "max_queued_texts": 1024}
    settings |= {"max_resident_adapters": 16, "drain_delay_s": 0.7}
    with run_service(registry, directory, experiments_file=experiments, **settings) as running:
        yield running
