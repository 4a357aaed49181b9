"""A run as the commands print it: as JSON, and in words."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from td_runtime.cli.tables import moment, span

if TYPE_CHECKING:
    from td_runtime.store import Run, RunSummary

__all__ = ["facts_of", "full_document", "progress_of", "summary_document"]

_HIDDEN: Final = {"id", "owner"}
_LARGE: Final = {"payload", "output", "metadata", "error", "log_tail"}
_PREVIEW: Final = 200
"""Characters of a payload or an output that are shown beside other facts."""


def summary_document(run: "RunSummary") -> dict[str, Any]:
    """Return what lists show of a run; times are seconds since the epoch."""
    facts = msgspec.structs.asdict(run)

    return {"run_id": run.id, **{k: v for k, v in facts.items() if k not in _HIDDEN | _LARGE}}


def full_document(run: "Run") -> dict[str, Any]:
    """Return everything that is known of a run."""
    return {
        **summary_document(run),
        "payload": msgspec.Raw(run.payload),
        "output": _raw(run.output),
        "metadata": _raw(run.metadata),
        "error": None if run.error is None else msgspec.to_builtins(run.error),
        "log_tail": run.log_tail,
    }


def progress_of(run: "RunSummary") -> str:
    """Say how long the newest attempt took, or takes, or when the run may start."""
    now = time.time()
    if run.status.is_finished:
        if run.started_at is None or run.finished_at is None:
            return ""
        return span(run.finished_at - run.started_at)
    if run.owner is not None and run.started_at is not None:
        return f"{span(now - run.started_at)} so far"

    return f"starts in {span(run.run_at - now)}" if run.run_at > now else ""


def facts_of(run: "Run") -> Iterator[tuple[str, str]]:
    """Yield names and values for people; what is not there is left out."""
    for name, value in _facts(run):
        if value:
            yield name, value


def _facts(run: "Run") -> Iterator[tuple[str, str]]:
    yield "run", run.id
    yield "task", run.task
    yield "status", run.status
    yield "queue", run.queue
    yield "concurrency key", run.concurrency_key or ""
    yield "idempotency key", run.idempotency_key or ""
    yield "tags", ", ".join(run.tags)
    yield "priority", f"{run.priority:g}" if run.priority else ""
    yield "attempt", _attempts(run)
    yield "created", moment(run.created_at)
    yield "starts", moment(run.run_at) if run.run_at > run.created_at else ""
    yield "expires", moment(run.expires_at)
    yield "started", moment(run.started_at)
    yield "finished", moment(run.finished_at)
    yield "took", progress_of(run) if run.started_at is not None else ""
    yield "parent", run.parent_id or ""
    yield "root", run.root_id if run.root_id != run.id else ""
    yield "replay of", run.replay_of or ""
    yield "streams of", run.stream_run_id or ""
    yield "triggered by", run.triggered_by or ""
    yield "canceled by", run.canceled_by or ""
    yield "worker", f"{run.worker} (pid {run.pid})" if run.worker is not None else ""
    yield "records lost", f"{run.records_lost:,}" if run.records_lost else ""
    yield "payload", _preview(run.payload, "--payload")
    yield "metadata", _preview(run.metadata, "--json")
    yield "output", _preview(run.output, "--output")


def _attempts(run: "Run") -> str:
    notes = []
    if run.max_attempts is not None:
        notes.append(f"at most {run.max_attempts}")
    if run.excused:
        notes.append(f"{run.excused} excused")
    if run.crashes:
        notes.append(f"{run.crashes} crashed")

    return f"{run.attempt} ({', '.join(notes)})" if notes else str(run.attempt)


def _preview(text: bytes | None, option: str) -> str:
    if text is None:
        return ""
    shown = text.decode(errors="replace")
    if len(shown) <= _PREVIEW:
        return shown

    return f"{shown[:_PREVIEW]}… ({len(text):,} bytes; {option} prints all)"


def _raw(text: bytes | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text)
