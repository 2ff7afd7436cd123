"""The loader's order of work and its host cache, and the catalogue's memory of manifests."""

from pathlib import Path

import torch

from adapters.base_model import BaseModelFiles
from adapters.manifest import MANIFEST
from adapters.reference import AdapterId
from adapters.store import Registry
from adapters.verify import Adapter
from engine.engine import Engine
from service.listings import Catalogue
from service.loader import HostCache, Loader
from service.run_directory import ResidentAdapter


def adapter(number: int, floats: int = 256) -> Adapter:
    saved = {"classifier.weight": torch.zeros(floats)}
    return Adapter(AdapterId(f"a{number}", 1), ("a", "b"), 8, "right", 1.0, False, (), True, {}, saved)


def test_the_host_cache_keeps_what_was_used_last_within_its_bytes() -> None:
    cache = HostCache(max_bytes=3 * 1024)
    first, second, third, fourth = map(adapter, range(4))
    for one in (first, second, third):
        cache.put((1,), one)
    assert cache.get(first.id, (1,)) is first
    cache.put((1,), fourth)
    assert cache.get(second.id, (1,)) is None
    assert cache.get(first.id, (1,)) is first and cache.bytes == 3 * 1024
    # Files that have changed are another adapter, whatever its name.
    assert cache.get(first.id, (2,)) is None
    replaced = adapter(0, floats=128)
    cache.put((2,), replaced)
    assert cache.get(first.id, (2,)) is replaced and cache.bytes == 2 * 1024 + 512
    cache.put((1,), adapter(5, floats=4096))
    assert cache.bytes == 0


def test_what_somebody_waits_for_comes_first_and_once(base: BaseModelFiles, registry: Registry) -> None:
    loader = Loader(registry, Engine(base, capacity=1), cache_bytes=0)
    one, two, three = (AdapterId(name, 1) for name in ("one", "two", "three"))
    loader.request(one, ahead=True)
    loader.request(two, ahead=True)
    loader.request(three)
    loader.request(two)
    loader.request(three)
    order = [loader._next(0) for _ in range(4)]
    assert order == [(three, True), (two, True), (one, False), (None, False)]
    assert loader.loading == {one, two, three}


def test_the_catalogue_follows_the_registry(made: dict[str, Path], registry: Registry) -> None:
    catalogue = Catalogue(Registry(registry.root))
    assert catalogue.entries({}, {}, set()) == []
    movies = registry.publish(made["movies"], "movies")
    registry.publish(made["plain"], "plain")
    entries = {entry["name"]: entry for entry in catalogue.entries({}, {}, set())}
    assert entries["movies"]["versions"][0]["labels"] == ["negative", "positive"]
    assert entries["plain"]["versions"][0]["labels"] is None
    assert {entry["versions"][0]["state"] for entry in entries.values()} == {"registered"}
    # By its stamp alone: a manifest that was damaged in place is read again.
    (registry.directory(movies) / MANIFEST).write_text("{}")
    registry.publish(made["movies"], "movies")
    resident = {"movies@2": ResidentAdapter(("no", "yes"), True)}
    newest, damaged = catalogue.entries(resident, {}, set())[0]["versions"]
    assert (newest["version"], newest["state"], newest["labels"]) == (2, "resident", ["no", "yes"])
    assert (damaged["version"], damaged["state"]) == (1, "failed")
    registry.remove(movies)
    assert [version["version"] for version in catalogue.entries({}, {}, set())[0]["versions"]] == [2]
