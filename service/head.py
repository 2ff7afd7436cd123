"""How much of a request's head is read before it is refused: uvicorn's fast protocol has no limit of its own."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together; h11, uvicorn's other protocol, takes as much."""

_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: application/problem+json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
)


class BoundedHead(HttpToolsProtocol):
    """Closes a connection whose request head goes on beyond the limit, before anything is made of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        # Counted before parsing: what one read brings is parsed at once, and no read is larger than the limit.
        self._head_bytes += len(data) if self._in_head else 0
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            body = (
                b'{"type":"urn:tonearm:problem:request-header-fields-too-large","status":431,'
                b'"title":"Request Header Fields Too Large",'
                b'"detail":"the request line and headers are larger than %d bytes"}' % MAX_HEAD_BYTES
            )
            self.transport.write(_REFUSAL % (len(body), body))
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()
