"""The gateway's log lines.

structlog is imported with the first line, after the gateway is READY: it costs as much time as
all the rest of the start.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Any

from td_runtime.gateway.settings import LogSettings


class Journal:
    """Writes events; safe from any thread."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._logger: Any = None

    def prepare(self) -> None:
        """Import and configure what the first line needs. Later calls do nothing."""
        with self._lock:
            if self._logger is None:
                self._logger = self._configure()

    def write(self, level: str, event: str, **fields: object) -> None:
        """Write one event."""
        self.prepare()
        self._logger.log(_LEVELS[level], event, **fields)

    def _configure(self) -> Any:
        import structlog

        if self._settings.fd is None:
            _configure_stderr(self._settings)
        else:
            from td_runtime import logs

            logs.configure(
                self._settings.fd,
                format=self._settings.format,
                level=self._settings.level,
                host=socket.gethostname(),
                worker=None,
            )

        return structlog.get_logger("td_runtime.gateway")


_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def _configure_stderr(settings: LogSettings) -> None:
    import structlog

    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if settings.format == "pretty"
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_process,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS.get(settings.level, 20)),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def _add_process(_logger: Any, _method: str, event: Any) -> Any:
    event["host"], event["pid"] = socket.gethostname(), os.getpid()
    return event
