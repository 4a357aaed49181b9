"""Look-ups in the supervisor's run store; the gateway never writes there."""

import os
import sqlite3
from typing import Final

import msgspec

from td_runtime.gateway.platform.access import Caller
from td_runtime.gateway.platform.storage import uri_path

_OPTIONAL: Final = ("parent_id", "root_id", "task", "attempt")
FINISHED: Final = frozenset({"COMPLETED", "FAILED", "CRASHED", "TIMED_OUT", "CANCELED", "EXPIRED"})


class Run(msgspec.Struct, frozen=True):
    """What the control plane needs to know of a run."""

    id: str
    status: str
    parent_id: str | None = None
    root_id: str | None = None
    task: str | None = None
    attempt: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing more may be written for it."""
        return self.status in FINISHED


def require_readable(caller: Caller, run_id: str, run: Run | None) -> None:
    """Refuse with 403 whoever may read neither the run nor its task's runs."""
    task = None if run is None else run.task
    if task is None or not caller.may("read", "tasks", [task]):
        caller.require("read", "runs", [run_id])


class Runs:
    """Read-only view of ``runs.db``; a file that is not there yet holds no runs."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._query = ""

    def find(self, run_id: str) -> Run | None:
        """The run as it is stored now, or None.

        Raises:
            sqlite3.Error: The file is there and cannot be read.
        """
        if self._connection is None and not self._connect():
            return None
        assert self._connection is not None  # noqa: S101  just connected
        row = self._connection.execute(self._query, (run_id,)).fetchone()

        return None if row is None else Run(*row)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> bool:
        if not os.path.exists(self._path):
            return False
        connection = sqlite3.connect(
            f"file:{uri_path(self._path)}?mode=ro", uri=True, isolation_level=None, timeout=1.0
        )
        columns = {row[1] for row in connection.execute("PRAGMA table_info(runs)")}
        if not columns:  # the supervisor has created the file but not yet its tables
            connection.close()
            return False
        self._connection, self._query = connection, _select(columns)

        return True


def _select(columns: set[str]) -> str:
    optional = [name if name in columns else "NULL" for name in _OPTIONAL]
    return f"SELECT id, status, {', '.join(optional)} FROM runs WHERE id = ?"  # noqa: S608  constants
