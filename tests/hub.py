"""A stand-in for the model hub's HTTP API: enough of it for `huggingface_hub` to list and fetch one model."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_model(repo_id: str, directory: Path, *, token: str | None = None) -> Iterator[str]:
    """Serve `directory` as `repo_id` at one commit (`main`); yields the endpoint. With `token`, only to its bearer."""
    files = {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, *, with_body: bool) -> None:
            path = unquote(urlparse(self.path).path)
            if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                self.reply(401, b"", with_body, {"X-Error-Message": "a token is needed"})
            elif path in (f"/api/models/{repo_id}", *(f"/api/models/{repo_id}/revision/{r}" for r in ("main", COMMIT))):
                siblings = [{"rfilename": name} for name in files]
                self.reply(200, json.dumps({"id": repo_id, "sha": COMMIT, "siblings": siblings}).encode(), with_body)
            elif path.startswith(f"/api/models/{repo_id}/tree/"):
                entries = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                self.reply(200, json.dumps(entries).encode(), with_body)
            else:
                prefixes = [f"/{repo_id}/resolve/{revision}/" for revision in ("main", COMMIT)]
                name = next((path.removeprefix(prefix) for prefix in prefixes if path.startswith(prefix)), "")
                if name in files:
                    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"'}
                    self.reply(200, files[name], with_body, headers)
                else:
                    code = "EntryNotFound" if path.startswith(f"/{repo_id}/") else "RepoNotFound"
                    self.reply(404, b"", with_body, {"X-Error-Code": code})

        def reply(self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

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
