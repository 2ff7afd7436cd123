"""Structured logs: one JSON object a line on standard error, the libraries' included."""

import logging
import sys
from typing import Any, TextIO

import structlog

_SHARED: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
)


_RENDER: tuple[structlog.typing.Processor, ...] = (
    structlog.processors.EventRenamer("event"),
    structlog.processors.JSONRenderer(),
)


class _Logger(structlog.WriteLogger):
    """Writes lines itself: by way of `logging`, a line costs several times as much, and there is one a request."""

    def __init__(self, file: TextIO, name: str) -> None:
        super().__init__(file)
        self.name = name


class _LoggerFactory:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, name: str = "root", *more: Any) -> _Logger:
        return _Logger(self._file, name)


def configure_logs(level: str) -> None:
    """Send this process's logs, structlog's and the standard library's, to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_RENDER],
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(level.upper())
    structlog.configure(
        processors=[*_SHARED, *_RENDER],
        logger_factory=_LoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )
    # Theirs say nothing that our own line a request does not say.
    for chatty in ("httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def adopt_library(name: str) -> None:
    """Let a library that brought a handler of its own log through ours."""
    library = logging.getLogger(name)
    library.handlers.clear()
    library.propagate = True
