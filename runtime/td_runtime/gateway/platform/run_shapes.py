"""Runs as official clients see them: upstream's names for what the run store says."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any, Final

import msgspec

from td_runtime.store.records import Run, RunSummary, Status

STATUS: Final = {
    Status.QUEUED: "QUEUED",
    Status.DELAYED: "DELAYED",
    Status.EXECUTING: "EXECUTING",
    Status.WAITING: "WAITING",
    # Upstream has no name of its own for the time between two attempts.
    Status.RETRYING: "EXECUTING",
    Status.COMPLETED: "COMPLETED",
    Status.FAILED: "FAILED",
    Status.CRASHED: "CRASHED",
    Status.TIMED_OUT: "TIMED_OUT",
    Status.CANCELED: "CANCELED",
    Status.EXPIRED: "EXPIRED",
}
UNUSED: Final = frozenset({"PENDING_VERSION", "DEQUEUED", "SYSTEM_FAILURE"})
"""Upstream's statuses that no run here is ever in."""

_FAILED: Final = frozenset({"FAILED", "CRASHED", "TIMED_OUT", "EXPIRED"})
_ENVIRONMENT: Final = {"id": "env_embedded", "name": "embedded"}
_INTERNAL: Final = {
    Status.CRASHED: "TASK_RUN_CRASHED",
    Status.TIMED_OUT: "MAX_DURATION_EXCEEDED",
    Status.CANCELED: "TASK_RUN_CANCELLED",
    Status.EXPIRED: "TASK_EXECUTION_ABORTED",
}


def statuses_of(name: str) -> frozenset[Status]:
    """Return the statuses that upstream calls so."""
    return frozenset(status for status, shown in STATUS.items() if shown == name)


def show_listed(run: RunSummary) -> dict[str, Any]:
    """Return a run as lists have it; metadata are not in a list."""
    return _without_absent({**_common(run), "env": _ENVIRONMENT})


def show_related(run: RunSummary, *, depth: int) -> dict[str, Any]:
    """Return a run as one that is related to another."""
    return _without_absent({**_common(run), "depth": depth, "triggerFunction": "trigger"})


def show_retrieved(
    run: Run, *, depth: int, related: dict[str, Any], batch_id: str | None
) -> dict[str, Any]:
    """Return a run with everything that is known of it."""
    return _without_absent(
        {
            **_common(run),
            "depth": depth,
            "triggerFunction": "trigger" if batch_id is None else "batchTrigger",
            "batchId": batch_id,
            "attemptCount": run.attempt,
            "payload": msgspec.Raw(run.payload),
            "output": None if run.output is None else msgspec.Raw(run.output),
            "metadata": _metadata(run),
            "error": _error(run),
            "relatedRuns": related,
        }
    )


def show_result(run: Run) -> dict[str, Any]:
    """Return the outcome of a finished run as its parent would get it."""
    about = {
        "id": run.id,
        "taskIdentifier": run.task,
        "usage": {"durationMs": _duration_ms(run)},
    }
    if run.status is Status.COMPLETED:
        output = (run.output or b"null").decode()
        return {"ok": True, **about, "output": output, "outputType": "application/json"}

    return {"ok": False, **about, "error": _task_error(run)}


def show_time(at: float | None) -> str | None:
    """Return a time as JavaScript writes it."""
    if at is None:
        return None
    moment = dt.datetime.fromtimestamp(at, dt.UTC)

    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _common(run: RunSummary) -> dict[str, Any]:
    status = STATUS[run.status]
    is_delayed = run.status is Status.DELAYED

    return {
        "id": run.id,
        "status": status,
        "taskIdentifier": run.task,
        "idempotencyKey": run.idempotency_key,
        "isQueued": status in {"QUEUED", "DELAYED"},
        "isExecuting": status == "EXECUTING",
        "isWaiting": status == "WAITING",
        "isCompleted": run.status.is_finished,
        "isSuccess": status == "COMPLETED",
        "isFailed": status in _FAILED,
        "isCancelled": status == "CANCELED",
        "isTest": False,
        "createdAt": show_time(run.created_at),
        "updatedAt": show_time(run.finished_at or run.started_at or run.created_at),
        "startedAt": show_time(run.started_at),
        "finishedAt": show_time(run.finished_at),
        "delayedUntil": show_time(run.run_at) if is_delayed else None,
        "ttl": None if run.expires_at is None else f"{round(run.expires_at - run.run_at)}s",
        "expiredAt": show_time(run.finished_at) if status == "EXPIRED" else None,
        "tags": list(run.tags),
        "costInCents": 0,
        "baseCostInCents": 0,
        "durationMs": _duration_ms(run),
    }


def _duration_ms(run: RunSummary) -> int:
    if run.started_at is None:
        return 0
    end = run.finished_at if run.finished_at is not None else time.time()

    return max(0, round((end - run.started_at) * 1000))


def _metadata(run: Run) -> Any:
    """Return a run's metadata if they are what official clients take for such: an object."""
    if run.metadata is None or not run.metadata.lstrip().startswith(b"{"):
        return None

    return msgspec.Raw(run.metadata)


def _error(run: Run) -> dict[str, Any] | None:
    if run.status is Status.COMPLETED or run.error is None:
        return None
    error = run.error
    shown = {"name": error.type, "message": error.message}

    return {**shown, "stackTrace": error.traceback} if error.traceback else shown


def _task_error(run: Run) -> dict[str, Any]:
    message = "" if run.error is None else run.error.message
    if run.status in _INTERNAL:
        return {"type": "INTERNAL_ERROR", "code": _INTERNAL[run.status], "message": message}

    return {
        "type": "BUILT_IN_ERROR",
        "name": "Error" if run.error is None else run.error.type,
        "message": message,
        "stackTrace": "" if run.error is None else run.error.traceback,
    }


def _without_absent(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is not there: official clients take null for no text and no date."""
    return {name: value for name, value in fields.items() if value is not None}
