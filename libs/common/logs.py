"""Logs: one JSON object a line on standard output, for our loggers and for the libraries'; never a body or a secret."""

import asyncio
import atexit
import logging
import sys
import traceback
from collections import deque
from collections.abc import Mapping, MutableMapping, Sequence
from typing import IO, Any, Final, cast

import orjson
import structlog
from opentelemetry import trace

from libs.common.clock import system_clock
from libs.common.errors import VentureError
from libs.common.redaction import redact, redact_text


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    shown: MutableMapping[str, Any] = redact(event)
    return shown


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format(context.trace_id, "032x")
    return event


def describe_error(error: BaseException) -> str:
    """Where it happened and what kind it is, causes first; its text only where it was written to be shown.

    Other errors' texts repeat data: `Key (email)=(...) already exists`, `invalid literal for int(): '...'`.
    """
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        name = f"{type(current).__module__}.{type(current).__qualname__}"
        said = f": {current.detail}" if isinstance(current, VentureError) else ""
        inner = "".join(f"\n| {describe_error(part)}" for part in _parts_of(current))
        parts.append("".join(traceback.format_tb(current.__traceback__)) + name + said + inner)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\n".join(reversed(parts))


def _parts_of(error: BaseException) -> Sequence[BaseException]:
    return cast("BaseExceptionGroup[BaseException]", error).exceptions if isinstance(error, BaseExceptionGroup) else ()


def _tell_error(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    info = event.pop("exc_info", None)
    if isinstance(info, tuple):
        info = cast("tuple[Any, ...]", info)[1]
    error = info if isinstance(info, BaseException) else sys.exc_info()[1] if info else None
    if error is not None:
        event["exception"] = describe_error(error)
    return event


def _as_text(event: Any, **_kwargs: Any) -> str:
    return orjson.dumps(event, default=str).decode()


GATHER_S: Final = 0.05
GATHER_MOST: Final = 64
"""Of some 300 bytes each: far below the 64 KiB a pipe takes before its writer has to wait for the reader."""


class Lines:
    """What happens all the time, written past structlog and logging, the lines of 50 ms at once.

    Those two cost 0.03 ms of a read's 0.2, and a line written alone is a system call, which wakes up whoever reads it.
    A process that is killed takes its last lines with it; one that ends does not.
    """

    def __init__(self, handler: "logging.StreamHandler[Any]", *, service: str) -> None:
        self._handler = handler
        self._service = service
        self._pending: deque[bytes] = deque()
        self._is_due = False

    def add(self, event: str, fields: Mapping[str, Any], *, trace_id: str | None) -> None:
        said = {
            "event": event,
            **fields,
            "level": "info",
            "service": self._service,
            "trace_id": trace_id,
            "timestamp": system_clock(),
        }
        self._pending.append(orjson.dumps(said, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))
        if len(self._pending) >= GATHER_MOST:
            self.flush()
        elif not self._is_due:
            try:
                asyncio.get_running_loop().call_later(GATHER_S, self._flush_when_due)
                self._is_due = True
            except RuntimeError:  # outside of a loop nothing comes later
                self.flush()

    def _flush_when_due(self) -> None:
        self._is_due = False
        self.flush()

    def flush(self) -> None:
        taken: list[bytes] = []
        while self._pending:  # one by one: a line of another thread's logger may flush meanwhile
            taken.append(self._pending.popleft())
        if taken:
            self._handler.stream.write(b"".join(taken).decode())
            self._handler.stream.flush()


class OrderedHandler(logging.StreamHandler[Any]):
    """What our loggers and the libraries' say comes after the lines that were there before it."""

    def __init__(self, stream: IO[str], *, service: str) -> None:
        super().__init__(stream)
        self.lines = Lines(self, service=service)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.flush()
        super().emit(record)


_lines: Lines | None = None


def log_request(
    *, method: str, route: str, status: int, duration_ms: float, request_id: str, trace_id: str | None
) -> None:
    """The one line of log a request has. An id that comes from outside is to be redacted before."""
    if _lines is not None:
        said = {
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": duration_ms,
            "request_id": request_id,
        }
        _lines.add("request", said, trace_id=trace_id)


def log_handled(*, queue: str, outcome: str, message_id: str, trace_id: str | None) -> None:
    """The one line of log a message has; as for a request."""
    if _lines is not None:
        shown = redact_text(message_id)
        said = {"queue": queue, "outcome": outcome, "message_id": shown}
        _lines.add("message_handled", said, trace_id=trace_id)


def log_line(event: str, *, trace_id: str | None, **fields: Any) -> None:
    """A line of something else that happens all the time. Its fields are ours: nobody looks at them for secrets."""
    if _lines is not None:
        _lines.add(event, fields, trace_id=trace_id)


def configure_logging(*, service: str, level: str) -> None:
    """One JSON object a line on stdout, for our loggers and for the libraries'."""

    def add_service(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        add_service,
        _add_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _tell_error,
        _redact_event,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = OrderedHandler(sys.stdout, service=service)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_as_text),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())

    atexit.register(handler.lines.flush)
    global _lines  # noqa: PLW0603 - as the root logger, there is one in a process
    _lines = handler.lines if root.isEnabledFor(logging.INFO) else None
    for chatty in ("aio_pika", "aiormq", "httpx", "httpcore", "uvicorn.access", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
