"""The registry: a directory of adapters by name and version, the one source of truth for every process.

    <root>/<name>/<version>/…       one immutable version
    <root>/<name>/aliases.json      {"champion": 3}

Looking is cheap: a name's versions are read again only when its directory's time stamp moved.
"""

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rapidfuzz import fuzz, process

from adapters.errors import InvalidReference, PublishError, UnknownAdapter, VerificationError
from adapters.manifest import (
    MANIFEST,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    digest_files,
    read_manifest,
    read_plain_file,
    write_manifest,
)
from adapters.reference import NAME, AdapterId, Reference, parse_reference

ALIASES = "aliases.json"
LAST_REMOVED = ".last-removed"
SHIPPED = Path(__file__).parent / "registry"
"""The adapters that come with Tonearm."""

_MAX_ALIASES_BYTES = 2**20

_SETTLED_NS = 100_000_000
"""A directory stamp younger than this may hide a second change in the same clock tick, so it is not trusted."""


@dataclass(frozen=True, slots=True)
class _Versions:
    """What one name's directory held when its stamp was `mtime_ns`."""

    mtime_ns: int
    versions: tuple[int, ...]
    aliases: dict[str, int]


class Registry:
    """Reads and writes one registry directory. Safe to use from several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._seen: dict[str, _Versions] = {}

    # Reading

    def names(self) -> list[str]:
        """All names with at least one version, sorted."""
        return [name for name, stamp in self._name_stamps() if self._look(name, stamp).versions]

    def versions(self, name: str) -> tuple[int, ...]:
        """Committed versions of `name`, ascending; empty if there are none."""
        return self._look(name).versions

    def aliases(self, name: str) -> dict[str, int]:
        return dict(self._look(name).aliases)

    def ids(self) -> Iterator[AdapterId]:
        """Every committed version of every name."""
        for name, stamp in self._name_stamps():
            for version in self._look(name, stamp).versions:
                yield AdapterId(name, version)

    def newest(self) -> Iterator[AdapterId]:
        """The newest version of every name: what plain names mean."""
        for name, stamp in self._name_stamps():
            versions = self._look(name, stamp).versions
            if versions:
                yield AdapterId(name, versions[-1])

    def resolve(self, reference: Reference | str) -> AdapterId:
        """The exact version that a reference means now.

        Raises:
            InvalidReference: `reference` is text of another form.
            UnknownAdapter: no such name, version or alias; carries the nearest names.
        """
        if isinstance(reference, str):
            reference = parse_reference(reference)
        look = self._look(reference.name)
        if not look.versions:
            raise UnknownAdapter(str(reference), self._nearest(reference.name))
        if reference.alias is not None:
            version = look.aliases.get(reference.alias)
            if version is None:
                raise UnknownAdapter(str(reference), [f"{reference.name}@{alias}" for alias in sorted(look.aliases)])
        else:
            version = reference.version if reference.version is not None else look.versions[-1]
        if version not in look.versions:
            raise UnknownAdapter(str(reference), [f"{reference.name}@{known}" for known in look.versions[-3:]])
        return AdapterId(reference.name, version)

    def directory(self, adapter: AdapterId) -> Path:
        """Where `adapter` lies.

        Raises:
            VerificationError: the path leads out of the registry through a link.
        """
        path = self.root / adapter.name / str(adapter.version)
        if not path.resolve().is_relative_to(self.root):
            raise VerificationError(str(adapter), "containment", f"a directory inside {self.root}", str(path.resolve()))
        return path

    def stamp(self, adapter: AdapterId) -> tuple[int, ...]:
        """Changes whenever the files that decide what `adapter` is change; () when they are all gone."""
        directory = self.root / adapter.name / str(adapter.version)
        stamp: list[int] = []
        for at, file in enumerate((PEFT_CONFIG, PEFT_WEIGHTS, MANIFEST)):
            with suppress(OSError):
                stat = os.stat(directory / file)
                stamp += (at, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        return tuple(stamp)

    # Writing

    def publish(self, source: Path, name: str) -> AdapterId:
        """Copy `source` in as the next version of `name`, atomically: it is there whole or not at all.

        A manifest in `source` is rewritten with the name, the version and the digests of the files; a directory made
        by plain PEFT is taken as it is.

        Raises:
            InvalidReference: `name` has a bad form.
            PublishError: `source` holds no adapter, or a link.
        """
        if not NAME.fullmatch(name):
            raise InvalidReference(name)
        for file in (PEFT_CONFIG, PEFT_WEIGHTS):
            if not (source / file).is_file():
                raise PublishError(f"{source} holds no {file}; expected a directory written by save_pretrained")
        for path in source.rglob("*"):
            if path.is_symlink():
                raise PublishError(f"{path} is a link; a published adapter holds plain files only")
            if not (path.is_file() or path.is_dir()):
                raise PublishError(f"{path} is a pipe or a device; a published adapter holds plain files only")
        parent = self.root / name
        parent.mkdir(parents=True, exist_ok=True)
        staging = parent / f".publishing-{uuid.uuid4().hex}"
        try:
            shutil.copytree(source, staging)
            manifest = read_manifest(source) if (source / MANIFEST).is_file() else None
            while True:
                version = max(self._last_removed(name), *self._read(name).versions, 0) + 1
                if manifest is not None:
                    (staging / MANIFEST).unlink(missing_ok=True)
                    update = {"name": name, "version": version, "files": digest_files(staging)}
                    write_manifest(staging, manifest.model_copy(update=update))
                _sync_tree(staging)
                try:
                    os.rename(staging, parent / str(version))
                    break
                except OSError:
                    # Another publisher took this version between our look and the rename: take the next one.
                    if not (parent / str(version)).exists():
                        raise
            _sync(parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return AdapterId(name, version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point `name@alias` at a version, atomically.

        Raises:
            InvalidReference: the alias has a bad form.
            UnknownAdapter: there is no such version.
        """
        reference = parse_reference(f"{name}@{alias}")
        if reference.alias is None:
            raise InvalidReference(f"{name}@{alias}")
        self.resolve(Reference(name, version=version))
        with self._locked(name):
            self._write_aliases(name, self._read(name).aliases | {alias: version})

    def remove_alias(self, name: str, alias: str) -> None:
        """Forget `name@alias`.

        Raises:
            UnknownAdapter: there is no such alias.
        """
        with self._locked(name):
            aliases = dict(self._read(name).aliases)
            if alias not in aliases:
                raise UnknownAdapter(f"{name}@{alias}", [f"{name}@{known}" for known in sorted(aliases)])
            del aliases[alias]
            self._write_aliases(name, aliases)

    def remove(self, adapter: AdapterId) -> None:
        """Take one version out, atomically for readers. Its number is not given again: logs and answers name it.

        Raises:
            UnknownAdapter: it is not there.
            PublishError: an alias still points at it.
        """
        self.resolve(Reference(adapter.name, version=adapter.version))
        pointing = [alias for alias, version in self._read(adapter.name).aliases.items() if version == adapter.version]
        if pointing:
            raise PublishError(f"{adapter} is what the alias {adapter.name}@{pointing[0]} means; move the alias first")
        parent = self.root / adapter.name
        with self._locked(adapter.name):
            self._write(parent / LAST_REMOVED, str(max(adapter.version, self._last_removed(adapter.name))))
        grave = parent / f".removed-{uuid.uuid4().hex}"
        os.rename(parent / str(adapter.version), grave)
        _sync(parent)
        shutil.rmtree(grave)

    # Inside

    def _name_stamps(self) -> list[tuple[str, int]]:
        """Every directory that could be a name's, with the time it last changed; sorted."""
        found = []
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    if NAME.fullmatch(entry.name) and entry.is_dir():
                        with suppress(FileNotFoundError):
                            found.append((entry.name, entry.stat().st_mtime_ns))
        except FileNotFoundError:
            return []
        found.sort()
        return found

    def _look(self, name: str, stamp: int | None = None) -> _Versions:
        """What `name` holds; `stamp` is its directory's, where the caller has just seen it."""
        try:
            stamp = os.stat(self.root / name).st_mtime_ns if stamp is None else stamp
        except OSError:
            self._seen.pop(name, None)
            return _Versions(0, (), {})
        seen = self._seen.get(name)
        if seen is not None and seen.mtime_ns == stamp:
            return seen
        look = self._read(name)
        if time.time_ns() - stamp > _SETTLED_NS and look.mtime_ns == stamp:
            self._seen[name] = look
        return look

    def _read(self, name: str) -> _Versions:
        parent = self.root / name
        versions: list[int] = []
        whole = True
        try:
            stamp = os.stat(parent).st_mtime_ns
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.name.isascii() and entry.name.isdigit() and entry.name[0] != "0" and entry.is_dir():
                        if _committed(parent / entry.name):
                            versions.append(int(entry.name))
                        else:
                            whole = False
        except OSError:
            return _Versions(0, (), {})
        # A directory still being copied in by hand does not move its parent's stamp when it is complete: look again.
        return _Versions(stamp if whole else -1, tuple(sorted(versions)), _read_aliases(parent / ALIASES))

    def _write_aliases(self, name: str, aliases: dict[str, int]) -> None:
        self._write(self.root / name / ALIASES, json.dumps(aliases, indent=2, sort_keys=True) + "\n")

    def _last_removed(self, name: str) -> int:
        """The highest version of `name` that was removed; 0 if none was."""
        with suppress(OSError, ValueError):
            return int(read_plain_file(self.root / name / LAST_REMOVED, _MAX_ALIASES_BYTES))
        return 0

    def _write(self, path: Path, content: str) -> None:
        """Atomically, and to disk."""
        beside = path.with_name(f".{path.name.lstrip('.')}-{uuid.uuid4().hex}")
        beside.write_text(content)
        _sync(beside)
        os.replace(beside, path)
        _sync(path.parent)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Writers of one name's aliases wait for each other, over processes."""
        with (self.root / name / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _nearest(self, name: str) -> list[str]:
        # Not difflib's: with ten thousand names that takes a second, on whoever's event loop it is.
        names = [known for known, _ in self._name_stamps()]
        return [found for found, _, _ in process.extract(name, names, scorer=fuzz.ratio, limit=3, score_cutoff=60)]


def _committed(directory: Path) -> bool:
    """A manifest commits a directory; one made by plain PEFT is there when both of its files are."""
    return (directory / MANIFEST).exists() or (
        (directory / PEFT_CONFIG).exists() and (directory / PEFT_WEIGHTS).exists()
    )


def _read_aliases(path: Path) -> dict[str, int]:
    try:
        content = json.loads(read_plain_file(path, _MAX_ALIASES_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {alias: version for alias, version in content.items() if type(version) is int and version > 0}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    """Bring every file, then every directory, to disk, so that the rename never commits names without content."""
    for directory, _, files in os.walk(root, topdown=False):
        for file in files:
            _sync(Path(directory) / file)
        _sync(Path(directory))
