"""Canceling runs: at once those that do not execute, on request those that do."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from typing import Any

from td_runtime.store import sqlite_text as sql
from td_runtime.store.records import Cancellation, Status
from td_runtime.store.sqlite_ends import count_ends
from td_runtime.store.sqlite_rows import summaries

__all__ = ["cancel"]


def cancel(
    connection: sqlite3.Connection,
    run_ids: Collection[str],
    *,
    now: float,
    by: str | None,
    descendants: bool,
) -> Cancellation:
    """Cancel these runs, and with `descendants` everything below them."""
    known: dict[str, tuple[Any, ...]] = {}
    for run_id in dict.fromkeys(run_ids):
        statement = sql.CANCELABLE_BELOW if descendants else sql.CANCELABLE
        known |= {row[1]: row for row in connection.execute(statement, (run_id,))}
    facts = {"now": now, "by": by, "descendants": descendants}
    canceled, requested = _split(row for row in known.values() if not _is_finished(row))
    connection.executemany(sql.CANCEL, [{**facts, "seq": seq} for seq in canceled])
    connection.executemany(sql.REQUEST_CANCEL, [{**facts, "seq": seq} for seq in requested])

    ended = summaries(connection, canceled)
    count_ends(connection, [(run.task, run.status) for run in ended])

    return Cancellation(
        canceled=tuple(ended),
        requested=tuple(summaries(connection, requested)),
        finished=tuple(each for each in run_ids if each in known and _is_finished(known[each])),
        unknown=tuple(each for each in run_ids if each not in known),
    )


def _is_finished(row: tuple[Any, ...]) -> bool:
    return bool(row[3] == sql.PHASES[Status.CANCELED])


def _split(rows: Iterable[tuple[Any, ...]]) -> tuple[list[int], list[int]]:
    """Return the numbers of those that end now, and of those that their workers must end."""
    ends: list[int] = []
    executes: list[int] = []
    for seq, _, status, _ in rows:
        (executes if status == Status.EXECUTING else ends).append(seq)

    return ends, executes
