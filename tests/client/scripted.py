"""A real HTTP server on a free port that answers, stalls and hangs up as it was told, and remembers what came."""

import json
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = {
    "label": "positive", "score": 0.9, "scores": {"negative": 0.1, "positive": 0.9}, "adapter": "movies@1",
    "experiment": None, "arm": None, "tokens": 3, "truncated": False, "request_id": "r-1",
}  # fmt: skip


@dataclass(frozen=True)
class Say:
    """One answer; `pause_s` passes before each byte of the body."""

    status: int = 200
    body: Any = field(default_factory=lambda: ANSWER)
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0


class HangUp:
    """Read the request, and close the connection without a word."""


@dataclass(frozen=True)
class Came:
    """One request, as it came in."""

    at_s: float
    method: str
    path: str
    headers: dict[str, str]
    body: Any


def problem(status: int, slug: str = "some", title: str = "Not now", **more: Any) -> dict[str, Any]:
    document = {"type": f"urn:tonearm:problem:{slug}", "title": title, "status": status}
    return {**document, "detail": "for a reason", "request_id": "r-2", **more}


class ScriptedServer:
    """Takes the steps of `script` one a request; after the last it answers with success."""

    def __init__(self, port: int = 0, *, start: bool = True) -> None:
        self.script: deque[Say | HangUp] = deque()
        self.came: list[Came] = []
        self._server = _Quiet(("127.0.0.1", port), self._handler(), bind_and_activate=False)
        self._server.server_bind()
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        if start:
            self.start()

    def start(self) -> None:
        self._server.server_activate()
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def say(self, *steps: Say | HangUp) -> None:
        self.script.extend(steps)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.came.append(Came(time.monotonic(), self.command, self.path, headers, body))
                step = server.script.popleft() if server.script else Say()
                if isinstance(step, HangUp):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                content = step.body if isinstance(step.body, bytes) else json.dumps(step.body).encode()
                self.send_response(step.status)
                for name, value in {"Content-Length": str(len(content)), **step.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if not step.pause_s:
                    self.wfile.write(content)
                    return
                for at in range(len(content)):
                    time.sleep(step.pause_s)
                    self.wfile.write(content[at : at + 1])

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that goes away in the middle of an answer is what some tests are about."""
