"""From a remote source to an adapter directory here: `hf://`, `s3://` and whatever else `fsspec` reads.

    source -> list -> what an adapter directory may hold, within its limits -> download beside the registry

Only the names of the adapter contract are ever fetched, so what else a repository holds (pickles above all) never
arrives. What did arrive is no adapter yet: the engine verifies it, then the registry publishes it.
"""

import hashlib
import posixpath
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import PullError, VerificationError
from adapters.manifest import MANIFEST, PEFT_CONFIG, PEFT_WEIGHTS
from adapters.reference import NAME

DEFAULT_MAX_WEIGHTS_MB = 1024

_REPORT = "report"
_TOP_LEVEL = (PEFT_CONFIG, PEFT_WEIGHTS, MANIFEST, "README.md")
_REPORT_FILE = re.compile(rf"{_REPORT}/[A-Za-z0-9][A-Za-z0-9._-]*\.(html|json|png)")
_HUB_SOURCE = re.compile(r"hf://(?!(datasets|spaces|buckets)/)[^/@]+/[^/@]+")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}

_MB = 2**20
_MAX_DESCRIPTION_BYTES = _MB
"""Of the config and of the manifest, each."""
_MAX_PAGE_BYTES = 8 * _MB
"""Of the card and of each file of the report."""
_MAX_REPORT_FILES = 64
_CHUNK_BYTES = 4 * _MB

_STREAMED = {"hf", "http", "https"}
"""One request a file; the other file systems answer one ranged request a chunk."""

_EXTRAS = {"s3": "tonearm[s3]", "s3a": "tonearm[s3]", "http": "aiohttp", "https": "aiohttp"}
_EXTRAS |= {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_CREDENTIALS = {
    "hf": "set HF_TOKEN to a token that may read it",
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket FSSPEC_S3_ANON=true",
}
_ENDPOINTS = {"hf": "HF_ENDPOINT", "s3": "AWS_ENDPOINT_URL"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"}
"""Of botocore, known by name: it is there only with the extra, and none of them is a PermissionError."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that will be fetched.

    Attributes:
        path: where it goes, relative to the adapter directory, POSIX.
        location: the file system's own name of it.
        size_bytes: as listed; None where the source does not say.
        sha256: as listed, hexadecimal; None where the source does not say.
    """

    path: str
    location: str
    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class RemoteAdapter:
    """A source that was listed and lies within the limits; nothing of it has been fetched yet.

    Attributes:
        shown: the source as the user wrote it; for the hub with the commit that it meant at the time.
        left_out: names in the directory that no adapter directory holds and that are not fetched.
        max_weights_bytes: bound of the weights while they arrive, whatever the listing said.
    """

    shown: str
    protocol: str
    files: tuple[RemoteFile, ...]
    left_out: tuple[str, ...]
    max_weights_bytes: int
    filesystem: Any = field(repr=False)

    @property
    def size_bytes(self) -> int | None:
        """Of everything that will be fetched; None where the source does not say."""
        total = 0
        for file in self.files:
            if file.size_bytes is None:
                return None
            total += file.size_bytes
        return total


def default_name(source: str) -> str:
    """The adapter name that a source suggests: its last part.

    Raises:
        PullError: the last part is no adapter name, or is a number, as versions in a registry are.
    """
    last = source.partition("::")[0].partition("://")[2].rstrip("/").rpartition("/")[2]
    if source.startswith("hf://"):
        last = last.partition("@")[0]
    if NAME.fullmatch(last) and not last.isdigit():
        return last
    raise PullError(source, f"its last part {last!r} makes no adapter name ({NAME.pattern})", "say --name NAME")


def find_remote_adapter(source: str, *, max_weights_mb: int = DEFAULT_MAX_WEIGHTS_MB) -> RemoteAdapter:
    """List a source and refuse what can be refused before a byte of it is fetched.

    Args:
        source: `hf://org/name[@revision][/folder]`, `s3://bucket/prefix`, or another URL of a directory.
        max_weights_mb: largest weights file taken, in MiB.

    Raises:
        PullError: no such source, no permission, no connection, no adapter in it, or one that is over the limits.
    """
    protocol, separator, _ = source.partition("://")
    if not separator:
        remedy = "write hf://org/name, s3://bucket/prefix or another URL; publish takes a directory of this machine"
        raise PullError(source, "is no URL", remedy)
    protocol = protocol.rpartition("::")[2]
    with reading(source, protocol):
        shown, filesystem, root = _open_hub(source) if protocol == "hf" else open_filesystem(source)
        entries = _list_directory(filesystem, root, source)
        if any(path == _REPORT and entry["type"] == "directory" for path, entry in entries.items()):
            below = _list_directory(filesystem, f"{root}/{_REPORT}", source)
            entries |= {f"{_REPORT}/{path}": entry for path, entry in below.items()}
        files = tuple(
            _remote_file(filesystem, path, entry, source)
            for path, entry in sorted(entries.items())
            if is_wanted(path) and (entry["type"] in ("file", "link") or entry.get("islink"))
        )
    wanted = {file.path for file in files}
    left_out = tuple(sorted(entries.keys() - wanted - {_REPORT}))
    remote = RemoteAdapter(shown, protocol, files, left_out, max_weights_mb * _MB, filesystem)
    _check_complete(remote)
    _check_limits(remote)
    return remote


@contextmanager
def fetched(
    remote: RemoteAdapter, registry: Path, *, advance: Callable[[int], object] = lambda size_bytes: None
) -> Iterator[Path]:
    """Download into a directory that readers of the registry do not see; it is gone when the block ends.

    Args:
        registry: the registry's root, made if it is not there; on its file system the download lies.
        advance: called with the number of bytes that have arrived since the last call.

    Raises:
        PullError: the connection broke, a file is not what was listed, or it cannot be written.
    """
    made = not registry.exists()
    staging = registry / f".pulling-{uuid.uuid4().hex}"
    try:
        with _writing(remote, registry):
            # Not `tempfile`: its directories are for their owner alone, and a copy of one would be so too.
            staging.mkdir(parents=True)
        for file in remote.files:
            _fetch(remote, file, staging / file.path, advance)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if made:
            with suppress(OSError):  # what was published meanwhile keeps it
                registry.rmdir()


def refused(remote: RemoteAdapter, error: VerificationError) -> PullError:
    """What to say of a source whose adapter was fetched but must not be served."""
    remedy = "nothing was published; it has to be repaired where it comes from"
    if error.check == "base model":
        remedy = "nothing was published; name the base it was trained on with --base-model and serve it on that one"
    return PullError(remote.shown, f"is refused by the check {error.reason}", remedy)


# Sources


def _open_hub(source: str) -> tuple[str, Any, str]:
    """(what to show, file system, root of the adapter) at the commit that the revision means now."""
    from huggingface_hub import HfApi, HfFileSystem

    if _HUB_SOURCE.match(source) is None:
        raise PullError(source, "names no model repository", "write hf://org/name[@revision][/folder]")
    filesystem = HfFileSystem(skip_instance_cache=True)
    resolved: Any = filesystem.resolve_path(source.rstrip("/"))
    commit = HfApi().model_info(resolved.repo_id, revision=resolved.revision).sha
    # All that follows asks for the commit, so that a push in between changes nothing.
    root = posixpath.join(f"{resolved.repo_id}@{commit}", resolved.path).rstrip("/")
    return f"hf://{root}", filesystem, root


def open_filesystem(source: str) -> tuple[str, Any, str]:
    from fsspec.core import url_to_fs

    try:
        filesystem, root = url_to_fs(source, skip_instance_cache=True)
    except ImportError as error:
        protocol = source.partition("://")[0].rpartition("::")[2]
        package = _EXTRAS.get(protocol)
        remedy = f"pip install '{package}'" if package else "install what it names"
        raise PullError(source, f"cannot be read: {_first_line(error)}", remedy) from error
    except ValueError as error:
        remedy = "hf, s3, gs, az, https, file and fsspec's other protocols are known"
        raise PullError(source, f"is no source: {_first_line(error)}", remedy) from error
    return source, filesystem, root.rstrip("/")


def _list_directory(filesystem: Any, root: str, source: str) -> dict[str, dict[str, Any]]:
    """What lies directly in `root`, by its name there."""
    entries = {}
    for entry in filesystem.ls(root, detail=True):
        # Some listings begin with the directory itself, and an index page links to places outside it.
        if not root or entry["name"].startswith(f"{root}/"):
            name = entry["name"][len(root) :].strip("/")
            if ".." in name.split("/"):
                raise PullError(
                    source, f"lists the path {entry['name']!r}, which leads out of it", "pull from one you trust"
                )
            if name:
                entries[name] = entry
    return entries


def is_wanted(path: str) -> bool:
    return path in _TOP_LEVEL or _REPORT_FILE.fullmatch(path) is not None


def _remote_file(filesystem: Any, path: str, entry: dict[str, Any], source: str) -> RemoteFile:
    if entry.get("islink") or entry["type"] == "link":
        raise PullError(source, f"holds {path} as a link", "pull a directory of plain files")
    size = entry.get("size")
    if size is None:
        size = filesystem.info(entry["name"]).get("size")
    lfs = entry.get("lfs")  # the hub's own record of its large files
    return RemoteFile(path, entry["name"], size, lfs.get("sha256") if lfs else None)


def _check_complete(remote: RemoteAdapter) -> None:
    paths = {file.path for file in remote.files}
    pickles = [path for path in remote.left_out if posixpath.splitext(path)[1] in _PICKLES]
    if PEFT_WEIGHTS not in paths and pickles:
        raise PullError(
            remote.shown,
            f"holds {pickles[0]} and no {PEFT_WEIGHTS}; a pickle can run code, so it is never read",
            "save it again where it is trusted, with PEFT's save_pretrained(…, safe_serialization=True)",
        )
    for needed in (PEFT_CONFIG, PEFT_WEIGHTS):
        if needed not in paths:
            found = ", ".join(sorted(paths | set(remote.left_out))[:8]) or "nothing"
            raise PullError(
                remote.shown, f"holds no {needed} (found: {found})", "name the folder that save_pretrained wrote"
            )


def _check_limits(remote: RemoteAdapter) -> None:
    for file in remote.files:
        if file.size_bytes is not None and file.size_bytes > _limit_bytes(remote, file):
            raise _too_large(remote, file, f"{file.size_bytes:,} bytes")
    report = sum(file.path.startswith(_REPORT) for file in remote.files)
    if report > _MAX_REPORT_FILES:
        remedy = "leave out of the report what nobody reads"
        raise PullError(
            remote.shown, f"has {report} files in its report, at most {_MAX_REPORT_FILES} are taken", remedy
        )


def _limit_bytes(remote: RemoteAdapter, file: RemoteFile) -> int:
    if file.path == PEFT_WEIGHTS:
        return remote.max_weights_bytes
    return _MAX_DESCRIPTION_BYTES if file.path in (PEFT_CONFIG, MANIFEST) else _MAX_PAGE_BYTES


def _too_large(remote: RemoteAdapter, file: RemoteFile, found: str) -> PullError:
    remedy = (
        "raise --max-mb if it is right" if file.path == PEFT_WEIGHTS else "it has to be smaller where it comes from"
    )
    limit = _limit_bytes(remote, file)
    return PullError(remote.shown, f"{file.path} has {found}, at most {limit:,} are taken", remedy)


# Downloads


def _fetch(remote: RemoteAdapter, file: RemoteFile, target: Path, advance: Callable[[int], object]) -> None:
    """Download one file; what arrives is bounded by its limit and by what was listed, not by what the server sends."""
    limit = _limit_bytes(remote, file)
    received = 0
    digest = hashlib.sha256()
    with _writing(remote, target):
        target.parent.mkdir(exist_ok=True)
    with _writing(remote, target), target.open("xb") as out:
        for chunk in _chunks(remote, file):
            received += len(chunk)
            if received > limit:
                raise _too_large(remote, file, f"more than {limit:,} bytes")
            if file.size_bytes is not None and received > file.size_bytes:
                break
            digest.update(chunk)
            out.write(chunk)
            advance(len(chunk))
    if file.size_bytes is not None and received != file.size_bytes:
        kind = "was cut off" if received < file.size_bytes else "runs on"
        problem = f"{file.path} {kind}: {file.size_bytes:,} bytes are listed, {received:,} arrived"
        raise PullError(remote.shown, problem, "try again")
    if file.sha256 is not None and digest.hexdigest() != file.sha256:
        problem = f"{file.path} arrived damaged: SHA-256 {file.sha256} is listed, {digest.hexdigest()} arrived"
        raise PullError(remote.shown, problem, "try again")


def _chunks(remote: RemoteAdapter, file: RemoteFile) -> Iterator[bytes]:
    options = {"block_size": 0} if remote.protocol in _STREAMED else {"cache_type": "none"}
    with (
        reading(remote.shown, remote.protocol, file.path),
        remote.filesystem.open(file.location, **options) as content,
    ):
        while chunk := content.read(_CHUNK_BYTES):
            yield chunk


@contextmanager
def _writing(remote: RemoteAdapter, target: Path) -> Iterator[None]:
    """Errors of this machine's own disk."""
    try:
        yield
    except OSError as error:
        raise PullError(
            remote.shown, f"{target} cannot be written: {error.strerror}", "make room, or choose another --registry"
        ) from error


@contextmanager
def reading(shown: str, protocol: str, path: str | None = None) -> Iterator[None]:
    """Errors of a source in the user's words.

    Each file system brings the exceptions of a library of its own, most of which may not be installed, so all are
    caught, and told apart by their class, by the HTTP status they carry and, last, by their name.
    """
    try:
        yield
    except PullError:
        raise
    except Exception as error:
        raise _explained(shown, protocol, path, error) from error


def _explained(shown: str, protocol: str, path: str | None, error: Exception) -> PullError:
    what = f"{path} " if path else ""
    chain = list(_causes(error))
    statuses = {_status(link) for link in chain}
    names = {type(link).__name__ for link in chain}
    credentials = _CREDENTIALS.get(protocol, "check the credentials that its library reads")
    if isinstance(error, PermissionError) or statuses & {401, 403} or names & _NO_CREDENTIALS:
        # The hub says 401 of what does not exist, so that nobody learns what exists.
        hidden = " (or it does not exist: check the name)" if protocol == "hf" and 401 in statuses else ""
        return PullError(shown, f"{what}may not be read: {_first_line(error)}", credentials + hidden)
    if isinstance(error, FileNotFoundError | NotADirectoryError) or 404 in statuses:
        remedy = "check the name, the revision and the folder"
        if protocol == "hf":
            remedy += "; for a private or gated repository " + credentials
        return PullError(shown, f"{what}is not there: {_first_line(error)}", remedy)
    endpoint = f" and {_ENDPOINTS[protocol]}" if protocol in _ENDPOINTS else ""
    problem = f"{what}cannot be had: {type(error).__name__}: {_first_line(error)}"
    return PullError(shown, problem, f"check the network{endpoint}, then try again")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of httpx, requests or aiohttp carries."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).strip().splitlines() if line), type(error).__name__)[:300].rstrip(".")
