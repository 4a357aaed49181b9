"""The gateway's log lines.

The logging package is imported with the first line, after the gateway is READY: it costs as much
time as all the rest of the start.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from td_runtime.gateway.settings import LogSettings
from td_runtime.start_imports import imports_without_extras

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Journal:
    """Writes events; safe from any thread.

    Args:
        settings: How and where to.
        secrets: Texts that no line may hold.
    """

    def __init__(self, settings: LogSettings, *, secrets: Iterable[str] = ()) -> None:
        self._settings = settings
        self._secrets = tuple(secrets)
        self._lock = threading.Lock()
        self._logger: Any = None

    def prepare(self) -> None:
        """Import and configure what the first line needs. Later calls do nothing."""
        with self._lock:
            if self._logger is None:
                self._logger = _configure(self._settings, self._secrets)

    def set_level(self, level: str) -> None:
        """Leave out what is less important than that from now on."""
        with self._lock:
            self._settings = msgspec.structs.replace(self._settings, level=level)
            if self._logger is not None:
                self._logger = _configure(self._settings, self._secrets)

    def write(self, level: str, event: str, **fields: object) -> None:
        """Write one event."""
        self.prepare()
        self._logger.log(_LEVELS[level], event, **fields)

    def close(self) -> None:
        """Say what is still unsaid."""
        if self._logger is not None:
            from td_runtime import logs

            logs.close()


def _configure(settings: LogSettings, secrets: Iterable[str]) -> Any:
    # In a thread, mostly: nothing is forked here, and nothing else imports what is hidden.
    with imports_without_extras():
        import structlog

        from td_runtime import logs

    logs.configure(
        settings.fd,
        format=settings.format,
        level=settings.level,
        host=socket.gethostname(),
        worker=None,
    )
    for secret in secrets:
        logs.register_secret(secret)

    return structlog.get_logger("td_runtime.gateway")
