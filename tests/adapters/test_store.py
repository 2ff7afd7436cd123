"""The registry directory: cheap looks, atomic changes, nothing outside it."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.base_model import BaseModelFiles
from adapters.errors import InvalidReference, PublishError, UnknownAdapter, VerificationError
from adapters.manifest import PEFT_CONFIG, PEFT_WEIGHTS, digest_files, read_manifest
from adapters.reference import AdapterId
from adapters.store import Registry
from tests.factory import AdapterShape, save_adapter


@pytest.fixture(scope="module")
def source(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("source") / "adapter", base, AdapterShape())


def test_versions_count_up_and_carry_their_name(registry: Registry, source: Path) -> None:
    assert [registry.publish(source, "movies") for _ in range(3)] == [AdapterId("movies", v) for v in (1, 2, 3)]
    assert registry.resolve("movies") == AdapterId("movies", 3)
    assert registry.resolve("movies@1") == AdapterId("movies", 1)
    manifest = read_manifest(registry.directory(AdapterId("movies", 2)))
    assert (manifest.name, manifest.version) == ("movies", 2)
    assert manifest.files == digest_files(registry.directory(AdapterId("movies", 2)))
    assert list(registry.newest()) == [AdapterId("movies", 3)]
    assert len(list(registry.ids())) == 3


def test_an_empty_or_missing_registry_has_no_adapters(tmp_path: Path) -> None:
    assert Registry(tmp_path / "nowhere").names() == []


def test_unknown_names_the_nearest(registry: Registry, source: Path) -> None:
    registry.publish(source, "movies")
    with pytest.raises(UnknownAdapter, match="did you mean movies"):
        registry.resolve("movie")
    with pytest.raises(UnknownAdapter, match="movies@1"):
        registry.resolve("movies@9")
    with pytest.raises(UnknownAdapter):
        registry.resolve("movies@champion")


def test_aliases(registry: Registry, source: Path) -> None:
    first, second = (registry.publish(source, "movies") for _ in range(2))
    registry.set_alias("movies", "champion", 1)
    assert registry.resolve("movies@champion") == first
    registry.set_alias("movies", "champion", 2)
    assert registry.resolve("movies@champion") == second
    with pytest.raises(PublishError, match="alias"):
        registry.remove(second)
    with pytest.raises(UnknownAdapter):
        registry.set_alias("movies", "champion", 7)
    with pytest.raises(InvalidReference):
        registry.set_alias("movies", "7", 1)
    registry.remove_alias("movies", "champion")
    with pytest.raises(UnknownAdapter):
        registry.resolve("movies@champion")
    registry.remove(second)
    assert registry.resolve("movies") == first


def test_another_reader_sees_every_change_at_once(registry: Registry, source: Path) -> None:
    reader = Registry(registry.root)
    for version in range(1, 6):
        registry.publish(source, "movies")
        assert reader.resolve("movies").version == version
        registry.set_alias("movies", "latest", version)
        assert reader.resolve("movies@latest").version == version


def test_publishers_at_once_get_versions_of_their_own(registry: Registry, source: Path) -> None:
    got: list[AdapterId] = []
    threads = [threading.Thread(target=lambda: got.append(registry.publish(source, "busy"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(adapter.version for adapter in got) == list(range(1, 9))
    for adapter in got:
        assert read_manifest(registry.directory(adapter)).version == adapter.version
    assert not list(registry.root.glob("*/.publishing-*"))


def test_half_a_copy_is_no_adapter(registry: Registry, source: Path) -> None:
    directory = registry.root / "plain" / "1"
    directory.mkdir(parents=True)
    (directory / PEFT_CONFIG).write_bytes((source / PEFT_CONFIG).read_bytes())
    assert registry.versions("plain") == ()
    (directory / PEFT_WEIGHTS).write_bytes((source / PEFT_WEIGHTS).read_bytes())
    assert registry.versions("plain") == (1,)


def test_what_cannot_be_published(registry: Registry, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidReference):
        registry.publish(source, "../evil")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(PublishError, match=PEFT_CONFIG):
        registry.publish(empty, "empty")
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in (PEFT_CONFIG, PEFT_WEIGHTS):
        (linked / file).write_bytes((source / file).read_bytes())
    (linked / "notes").symlink_to("/etc/hostname")
    with pytest.raises(PublishError, match="link"):
        registry.publish(linked, "linked")
    assert registry.names() == []


def test_a_version_that_links_out_is_refused(registry: Registry, source: Path) -> None:
    (registry.root / "out").mkdir()
    (registry.root / "out" / "1").symlink_to(source)
    with pytest.raises(VerificationError, match="containment"):
        registry.directory(AdapterId("out", 1))


def test_the_number_of_a_removed_version_is_not_given_again(registry: Registry, source: Path) -> None:
    first, second = registry.publish(source, "movies"), registry.publish(source, "movies")
    registry.remove(second)
    registry.remove(first)
    assert str(Registry(registry.root).publish(source, "movies")) == "movies@3"


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"champion": true}', b"[1]", b'{"champion": "1"}', b"\xff"])
def test_aliases_that_are_none(registry: Registry, source: Path, content: bytes) -> None:
    registry.publish(source, "movies")
    (registry.root / "movies" / "aliases.json").write_bytes(content)
    assert registry.aliases("movies") == {}
    with pytest.raises(UnknownAdapter):
        registry.resolve("movies@champion")
    assert str(registry.resolve("movies")) == "movies@1"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_aliases_that_are_no_file(registry: Registry, source: Path, make: Callable[[Path], object]) -> None:
    registry.publish(source, "movies")
    make(registry.root / "movies" / "aliases.json")
    assert registry.aliases("movies") == {}
    assert str(registry.resolve("movies")) == "movies@1"


def test_a_pipe_is_not_published(registry: Registry, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    os.mkfifo(copy / "pipe")
    with pytest.raises(PublishError, match="pipe"):
        registry.publish(copy, "movies")
