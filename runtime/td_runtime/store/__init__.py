"""The run store: where runs are queued and recorded.

`interface` says what a store is asked, `records` what it takes and gives; the rest is SQLite. One
process, the supervisor, opens it to write; everybody else reads.
"""

from pathlib import Path

from td_runtime.store.errors import ParentCanceledError, RunNotFoundError, StoreFullError
from td_runtime.store.interface import RunReader, RunStore
from td_runtime.store.records import (
    IDEMPOTENCY_TTL,
    READY,
    Accepted,
    Canceled,
    Cancellation,
    Completed,
    Crashed,
    Due,
    Failed,
    Finish,
    NewRun,
    Outcome,
    Place,
    Pruned,
    QueueLimits,
    Run,
    RunError,
    RunQuery,
    RunSummary,
    Status,
    TimedOut,
    default_queue,
)
from td_runtime.store.sqlite import SqliteRunReader, SqliteRunStore

__all__ = [
    "IDEMPOTENCY_TTL",
    "READY",
    "Accepted",
    "Canceled",
    "Cancellation",
    "Completed",
    "Crashed",
    "Due",
    "Failed",
    "Finish",
    "NewRun",
    "Outcome",
    "ParentCanceledError",
    "Place",
    "Pruned",
    "QueueLimits",
    "Run",
    "RunError",
    "RunNotFoundError",
    "RunQuery",
    "RunReader",
    "RunStore",
    "RunSummary",
    "Status",
    "StoreFullError",
    "TimedOut",
    "default_queue",
    "open_readonly",
    "open_store",
]


def open_store(path: Path) -> RunStore:
    """Open the run store as its one writer; made if it does not exist.

    The caller holds `supervisor.lock`. It may fork while the store is open.

    Raises:
        StoreError: The file cannot be opened, is something else, or has a newer schema.
    """
    return SqliteRunStore(path)


def open_readonly(path: Path) -> RunReader:
    """Open the run store to look, beside a supervisor or without one.

    Raises:
        StoreError: There is no run store at `path`, or this td-runtime cannot read it.
    """
    return SqliteRunReader(path)
