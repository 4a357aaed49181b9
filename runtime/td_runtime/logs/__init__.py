"""Structured logging of every process: one event, one line, one message to the log sink.

`configure` is called once a process, right after it was forked or exec'd, and again whenever
something changes. Loggers made before keep working: what a cached logger holds on to (its class,
the list of processors, the output) stays the same object, and only its inside is exchanged.

After a fork
    Nothing here starts a thread, and no lock is held while a line is written (the handler of
    stdlib `logging` has none either), so a child cannot inherit a locked one. The cached process
    id is renewed by an at-fork hook, even in a child that never calls `configure`.

Task code
    `structlog`, stdlib `logging`, `warnings`, `print` and whatever C code or subprocesses write to
    descriptors 1 and 2 come out as lines of the same shape: see `capture_prints`, `CapturedOutput`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import structlog
from structlog.contextvars import get_contextvars
from structlog.typing import EventDict, WrappedLogger

from td_runtime.logs.masking import redact, register_secret
from td_runtime.logs.printed import CapturedOutput, LineStream, StreamName
from td_runtime.logs.render import Format, Renderer
from td_runtime.logs.ring import LineRing
from td_runtime.logs.sender import KeepingSender, Sender, make_sender
from td_runtime.logs.values import describe_exception, read_exc_info

__all__ = [
    "CapturedOutput",
    "Format",
    "Level",
    "LineRing",
    "LineStream",
    "Renderer",
    "capture_prints",
    "close",
    "configure",
    "emit_printed",
    "redact",
    "register_secret",
    "resolve_format",
    "together",
]

Level = Literal["debug", "info", "warning", "error"]

_LEVELS: Final[dict[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
#: Libraries whose debug lines are wire dumps: httpcore and hpack write response headers, and one
#: of those carries the access token, before anybody could have registered it as a secret.
_WIRE_LOGGERS: Final = ("aiohttp", "asyncio", "granian", "h2", "hpack", "httpcore", "httpx")


@dataclass(slots=True)
class _Process:
    """How this process logs now."""

    renderer: Renderer
    sender: Sender
    max_traceback: int


class _Logger(structlog.make_filtering_bound_logger(logging.INFO)):  # type: ignore[misc]
    """The class of all loggers; `configure` exchanges its methods for those of the level."""


class _Output:
    """What bound loggers hand their rendered line to, whatever the level."""

    def msg(self, line: bytes) -> None:
        _process.sender.send(line)

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


def configure(
    fd: int | None,
    *,
    format: Format,  # noqa: A002  the config key's name
    level: str,
    host: str,
    worker: int | None,
    max_line: int = 65_536,
    max_traceback: int = 65_536,
    ring: LineRing | None = None,
) -> None:
    """Log from now on to *fd*, also what stdlib `logging` and `warnings` say.

    Args:
        fd: The log sink's socket, or any descriptor; None is stderr. Stays the caller's.
        format: `json` or `pretty`; see `resolve_format`.
        level: Least important level that is written.
        host: Name of this machine, in every line.
        worker: Number of this worker; None in processes that are none.
        max_line: Bytes; longer lines are cut and marked.
        max_traceback: Bytes; longer tracebacks are cut in the middle.
        ring: Where the last lines are kept, too.
    """
    global _process
    renderer = Renderer(format=format, host=host, worker=worker, max_line=max_line)
    sender = make_sender(fd, lambda count: _render_dropped(renderer, count))
    if ring is not None:
        sender = KeepingSender(sender, ring)
    _process = _Process(renderer, sender, max_traceback)
    _set_level(_LEVELS[level])
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=_Logger,
        context_class=dict,
        logger_factory=lambda *_: _OUTPUT,
        cache_logger_on_first_use=True,
    )
    _configure_stdlib(_LEVELS[level])


def together() -> contextlib.AbstractContextManager[None]:
    """Send what this thread logs in the block with as few system calls as there may be.

    For a block that does nothing but log: what it has not sent is lost if the process is killed.
    """
    return _process.sender.together()


def close(timeout: float = 1.0) -> None:
    """Say what is still unsaid: unfinished printed lines, and how many lines were dropped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LineStream):
            stream.end_lines()
    _process.sender.close(timeout)


def resolve_format(format: str, fd: int) -> Format:  # noqa: A002
    """What the config's format means for a descriptor: `auto` is pretty on a terminal only."""
    if format == "auto":
        return "pretty" if os.isatty(fd) else "json"

    return "json" if format == "json" else "pretty"


def emit_printed(stream: StreamName, text: str) -> None:
    """Log a line that task code printed; empty lines say nothing and are left out."""
    if text.strip():
        _printed_log.info("task.printed", stream=stream, text=text)


@contextlib.contextmanager
def capture_prints() -> Iterator[None]:
    """Make `print`, `sys.stdout` and `sys.stderr` emit `task.printed`, and put them back."""
    before = sys.stdout, sys.stderr
    out, err = LineStream("stdout", emit_printed), LineStream("stderr", emit_printed)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.end_lines()
        err.end_lines()
        sys.stdout, sys.stderr = before


def _render(_logger: WrappedLogger, method: str, fields: EventDict) -> bytes:
    """The only processor: bound context below the event's own fields, then one line."""
    context = get_contextvars()
    if context:
        fields = {**context, **fields}
    if "exc_info" in fields:
        _describe_exc_info(fields)
    if fields.pop("stack_info", None):
        _add_stack(fields)

    return _process.renderer.render(_level_name(method), fields)


def _describe_exc_info(fields: EventDict) -> None:
    given = fields.pop("exc_info")
    info = read_exc_info(sys.exc_info() if given is True else given)
    if info is not None:
        fields["exception"] = describe_exception(info, max_traceback=_process.max_traceback)


def _add_stack(fields: EventDict) -> None:
    """Render the stack of whoever asked for it with `stack_info=True`."""
    fields.update(structlog.processors.StackInfoRenderer()(None, "", {"stack_info": True}))


def _level_name(method: str) -> str:
    if method in _LEVELS:
        return method

    return {"warn": "warning", "msg": "info"}.get(method, "error")


def _render_dropped(renderer: Renderer, count: int) -> bytes:
    return renderer.render("warning", {"event": "log.dropped", "count": count})


def _set_level(level: int) -> None:
    """Give `_Logger` the methods of structlog's own class for a level.

    Loggers are cached on first use, in modules that know nothing of configuration: exchanging
    their class's methods reaches them, making another class would not.
    """
    chosen = structlog.make_filtering_bound_logger(level)
    for name, method in vars(chosen).items():
        if not name.startswith("__"):
            setattr(_Logger, name, method)


def _configure_stdlib(level: int) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _StdlibHandler):
            root.removeHandler(handler)
    root.addHandler(_StdlibHandler())
    root.setLevel(level)
    for name in _WIRE_LOGGERS:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)


class _StdlibHandler(logging.Handler):
    """Renders stdlib records as events: the message is the event, `logger` says whose."""

    def createLock(self) -> None:  # noqa: N802  logging's name
        """No lock: sending one message is atomic, and a held lock would outlive a fork."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Send one record, unless a filter takes it out; Python 3.13's own insists on a lock."""
        passed = self.filter(record)
        if passed:
            self.emit(record if passed is True else passed)

        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        line = _process.renderer.render(_stdlib_level(record.levelno), self._read(record))
        _process.sender.send(line)

    def _read(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {
            **get_contextvars(),
            **_extra(record),
            **_message(record),
            "logger": record.name,
        }
        info = read_exc_info(record.exc_info)
        if info is not None:
            fields["exception"] = describe_exception(info, max_traceback=_process.max_traceback)

        return fields


_RECORD_FIELDS: Final = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
)


def _message(record: logging.LogRecord) -> dict[str, Any]:
    """The formatted message; if its format string is wrong, what there is of it."""
    try:
        return {"event": record.getMessage()}
    except Exception as error:  # noqa: BLE001  a bad log call must not end the task that made it
        return {"event": str(record.msg), "args": record.args, "format_error": str(error)}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller passed as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _RECORD_FIELDS}


def _stdlib_level(number: int) -> str:
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"

    return "info" if number >= logging.INFO else "debug"


def _renew_pid() -> None:
    _process.renderer.pid = os.getpid()


_OUTPUT: Final = _Output()
#: One list for ever: cached loggers hold it, and so does `structlog.testing.capture_logs`.
_PROCESSORS: Final[list[Any]] = [_render]
_printed_log = structlog.get_logger("task")
_unconfigured = Renderer(format="json", host=os.uname().nodename, worker=None, max_line=65_536)
_process = _Process(
    _unconfigured, make_sender(None, lambda count: _render_dropped(_unconfigured, count)), 65_536
)
os.register_at_fork(after_in_child=_renew_pid)
