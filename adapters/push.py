"""From a registry to a remote place: the hub, or whatever else `fsspec` writes to.

The manifest goes last: its presence is the commit there, too. On the hub all files are one commit.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters.errors import PullError, PushError
from adapters.manifest import MANIFEST
from adapters.pull import is_wanted, open_filesystem, reading
from adapters.reference import AdapterId

_HUB_TARGET = re.compile(r"hf://(?P<repo>(?!(datasets|spaces|buckets)/)[^/@]+/[^/@]+)(?:/(?P<folder>[^@]+?))?/?")


def push(
    directory: Path,
    adapter: AdapterId,
    target: str,
    *,
    private: bool = False,
    advance: Callable[[int], object] = lambda size_bytes: None,
) -> str:
    """Send an adapter directory.

    Args:
        target: `hf://org/name[/folder]`, made where it is not there, or the URL of a directory. What lies there under
            the same names is replaced, and on the hub a report that was there before is removed.
        private: of a hub repository that is made.
        advance: called with the number of bytes that were sent since the last call.

    Returns:
        Where it is now; on the hub with the commit.

    Raises:
        PushError: no such place, no permission, no connection, or a file that could not be pulled again.
    """
    protocol, separator, _ = target.partition("://")
    if not separator:
        raise PushError(target, "is no URL", "write hf://org/name, s3://bucket/prefix or another URL")
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    strange = sorted(path for path in files if not is_wanted(path))
    if strange and MANIFEST in files:
        remedy = "publish it without that file: a pull would leave it behind, and the manifest would miss it"
        raise PushError(target, f"{adapter} holds {strange[0]}, which no adapter directory holds", remedy)
    try:
        with reading(target, protocol.rpartition("::")[2]):
            if protocol == "hf":
                return _to_hub(directory, adapter, target, private, advance)
            return _to_filesystem(directory, target, advance)
    except PushError:
        raise
    except PullError as error:
        raise PushError(
            error.source, error.problem.replace("may not be read", "may not be written"), error.remedy
        ) from error


def _to_hub(directory: Path, adapter: AdapterId, target: str, private: bool, advance: Callable[[int], object]) -> str:
    from huggingface_hub import HfApi

    match = _HUB_TARGET.fullmatch(target)
    if match is None:
        raise PushError(
            target, "names no model repository", "write hf://org/name[/folder]; a push makes a new revision"
        )
    api: Any = HfApi()
    api.create_repo(match["repo"], private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=match["repo"],
        folder_path=str(directory),
        path_in_repo=match["folder"],
        commit_message=f"{adapter}",
        # A report of an earlier version must not stay beside this one's.
        delete_patterns="report/*",
    )
    advance(sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()))
    return "/".join(part for part in (f"hf://{match['repo']}@{commit.oid}", match["folder"]) if part)


def _to_filesystem(directory: Path, target: str, advance: Callable[[int], object]) -> str:
    _, filesystem, root = open_filesystem(target)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == MANIFEST):
        place = posixpath.join(root, path.relative_to(directory).as_posix())
        filesystem.makedirs(posixpath.dirname(place), exist_ok=True)
        filesystem.put_file(str(path), place)
        advance(path.stat().st_size)
    return target
