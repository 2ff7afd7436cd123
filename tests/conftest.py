"""Fixtures that every room's tests share: the real base and a registry of their own."""

import os
from pathlib import Path

# Threads that spin while they wait make two busy processes on two cores a hundred times slower; before torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import pytest

from adapters.base_model import BaseModelFiles, find_base_model
from adapters.store import Registry

pytest_plugins = ["tests.service.fixtures"]


@pytest.fixture(scope="session")
def base() -> BaseModelFiles:
    return find_base_model()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    root = tmp_path / "registry"
    root.mkdir()
    return Registry(root)
