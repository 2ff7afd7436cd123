"""A stand-in for the model hub's HTTP API: enough of it for `huggingface_hub` to list, fetch and push one model."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Faults:
    """What the stand-in gets wrong, by path in the repository.

    Attributes:
        listed_bytes: sizes that the listing gives, of files that are not there too.
        cut_bytes: the connection closes after so many bytes of a body, every time.
        damaged: served with one bit of the last byte flipped.
        forbidden: listed, but their content is answered with 403.
    """

    listed_bytes: Mapping[str, int] = field(default_factory=dict)
    cut_bytes: Mapping[str, int] = field(default_factory=dict)
    damaged: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()


NO_FAULTS = Faults()


def commit_of(revision: str) -> str:
    """The commit that a branch or tag of the stand-in means."""
    return COMMIT if revision == "main" else hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def serve_model(
    repo_id: str,
    directory: Path,
    *,
    token: str | None = None,
    revisions: Mapping[str, Path] | None = None,
    faults: Faults = NO_FAULTS,
    fetched: list[str] | None = None,
) -> Iterator[str]:
    """Serve `directory` as `repo_id` at one commit (`main`); yields the endpoint.

    Args:
        token: only its bearer is answered.
        revisions: further branches or tags, by name, each at a commit of its own (`commit_of`).
        fetched: gets the path of every file whose content is asked for.

    What is committed to it is on `main` from then on, and written into `directory`.
    """
    trees = {
        revision: {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for revision, root in {"main": directory, **(revisions or {})}.items()
    }
    trees |= {commit_of(revision): files for revision, files in trees.items()}
    asked = [] if fetched is None else fetched

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_POST(self) -> None:
            body = self.read_body()
            url = urlparse(self.path).path
            if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                self.reply(401, b"", True, {"X-Error-Message": "a token is needed"})
            elif url == "/api/repos/create":
                made = "/".join(filter(None, (json.loads(body).get("organization"), json.loads(body)["name"])))
                self.reply(200 if made == repo_id else 403, json.dumps({"url": f"/{repo_id}"}).encode(), True)
            elif url == "/api/validate-yaml":
                self.reply(200, json.dumps({"errors": [], "warnings": []}).encode(), True)
            elif url == f"/api/models/{repo_id}/preupload/main":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]
                self.reply(200, json.dumps({"files": files}).encode(), True)
            elif url == f"/api/models/{repo_id}/commit/main":
                self.commit_to_main([json.loads(line) for line in body.splitlines()])
            else:
                self.reply(404, b"", True, {"X-Error-Code": "RepoNotFound"})

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size_bytes := int(self.rfile.readline(), 16):
                body += self.rfile.read(size_bytes)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def commit_to_main(self, lines: list[dict[str, Any]]) -> None:
            files = trees["main"]
            for line in lines:
                path = line["value"].get("path")
                if line["key"] == "deletedFile":
                    del files[path]
                    (directory / path).unlink()
                elif line["key"] == "file":
                    files[path] = base64.b64decode(line["value"]["content"])
                    (directory / path).parent.mkdir(parents=True, exist_ok=True)
                    (directory / path).write_bytes(files[path])
            document = {"success": True, "commitOid": COMMIT, "commitUrl": f"/{repo_id}/commit/{COMMIT}"}
            self.reply(200, json.dumps(document).encode(), True)

        def answer(self, *, with_body: bool) -> None:
            url = urlparse(self.path)
            api = re.fullmatch(rf"/api/models/{repo_id}(?:/(revision|tree)/([^/]+)(?:/(.+))?)?", url.path)
            content = re.fullmatch(rf"/{repo_id}/resolve/([^/]+)/(.+)", url.path)
            revision = unquote((api[2] or "main") if api else content[1] if content else "")
            if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                self.reply(401, b"", with_body, {"X-Error-Message": "a token is needed"})
            elif not api and not content:
                self.reply(404, b"", with_body, {"X-Error-Code": "RepoNotFound"})
            elif revision not in trees:
                self.reply(404, b"", with_body, {"X-Error-Code": "RevisionNotFound"})
            elif content:
                self.answer_content(unquote(content[2]), revision, with_body)
            elif api and api[1] == "tree":
                recursive = parse_qs(url.query).get("recursive", ["False"])[0].lower() in ("true", "1")
                self.answer_tree(unquote(api[3] or ""), trees[revision], recursive, with_body)
            else:
                siblings = [{"rfilename": name} for name in trees[revision]]
                document = {"id": repo_id, "sha": self.commit(revision), "siblings": siblings}
                self.reply(200, json.dumps(document).encode(), with_body)

        def answer_tree(self, folder: str, files: Mapping[str, bytes], recursive: bool, with_body: bool) -> None:
            entries: dict[str, dict[str, Any]] = {}
            prefix = f"{folder}/" if folder else ""
            sizes = {name: len(body) for name, body in files.items()} | dict(faults.listed_bytes)
            for name, size in sizes.items():
                if not name.startswith(prefix):
                    continue
                below, slash, _ = name.removeprefix(prefix).partition("/")
                if slash:
                    entries[prefix + below] = {"type": "directory", "path": prefix + below, "oid": "0" * 40, "size": 0}
                if not slash or recursive or ".." in name:
                    body = files.get(name, b"")
                    entry = {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(body).hexdigest()}
                    if name.endswith(".safetensors"):
                        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": size, "pointerSize": 130}
                    entries[name] = entry
            if entries:
                self.reply(200, json.dumps(list(entries.values())).encode(), with_body)
            else:
                self.reply(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})

        def answer_content(self, name: str, revision: str, with_body: bool) -> None:
            if with_body:
                asked.append(name)
            files = trees[revision]
            if name in faults.forbidden:
                self.reply(403, b"", with_body, {"X-Error-Message": "not yours"})
            elif name in files:
                body = files[name]
                headers = {"X-Repo-Commit": self.commit(revision), "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
                if name in faults.damaged:
                    body = body[:-1] + bytes([body[-1] ^ 1])
                self.reply(200, body, with_body, headers, faults.cut_bytes.get(name))
            else:
                self.reply(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})

        def commit(self, revision: str) -> str:
            return revision if re.fullmatch("[0-9a-f]{40}", revision) else commit_of(revision)

        def reply(
            self,
            status: int,
            body: bytes,
            with_body: bool,
            headers: dict[str, str] | None = None,
            cut_bytes: int | None = None,
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body[:cut_bytes])
            if cut_bytes is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the base class's)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
