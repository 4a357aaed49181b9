"""Recording that runs have ended, and how many have: one count a task and status.

Whatever moves a run to an end, or deletes one that ended, counts it here, in the same transaction;
`check` compares the counts with the rows. A trigger would do it by itself, and cost a sixth of all
that the store does for a run.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from td_runtime.store import sqlite_text as sql
from td_runtime.store.records import Finish, Status
from td_runtime.store.sqlite_rows import encode_error

__all__ = ["count_ends", "finish_all"]


def finish_all(connection: sqlite3.Connection, ends: Sequence[Finish], now: float) -> list[bool]:
    """Record ends; the answers, False for an attempt that had lost its run, are in their order."""
    if not _finish_known(connection, ends, now):
        return [_finish(connection, end, now) for end in ends]

    return [True] * len(ends)


def _finish_known(connection: sqlite3.Connection, ends: Sequence[Finish], now: float) -> bool:
    """Record all of them at once, or nothing, if one is late or of a task that must be looked up.

    That spares each of them most of what a statement costs.
    """
    known = [(end.task, end.outcome.status) for end in ends if end.task is not None]
    if len(known) < len(ends):
        return False
    connection.execute("SAVEPOINT ends")
    rows = connection.executemany(sql.FINISH, [_values(end, now) for end in ends]).rowcount
    is_whole = rows == len(ends)
    if is_whole:
        count_ends(connection, known)
    else:
        connection.execute("ROLLBACK TO ends")
    connection.execute("RELEASE ends")

    return is_whole


def _finish(connection: sqlite3.Connection, end: Finish, now: float) -> bool:
    found = connection.execute(sql.FINISH_ONE, _values(end, now)).fetchall()
    count_ends(connection, [(task, end.outcome.status) for (task,) in found])

    return bool(found)


def count_ends(
    connection: sqlite3.Connection, ends: Iterable[tuple[str, Status | str]], *, sign: int = 1
) -> None:
    """Count runs that have ended, by task and status; with a *sign* of -1, that are deleted."""
    counts = Counter((task, str(status)) for task, status in ends)
    connection.executemany(sql.COUNT_ENDS, [(*key, sign * runs) for key, runs in counts.items()])


def _values(end: Finish, now: float) -> tuple[Any, ...]:
    outcome = end.outcome

    return (
        str(outcome.status),
        outcome.output,
        encode_error(outcome.error),
        getattr(outcome, "log_tail", None),
        end.records_lost,
        now,
        end.run_id,
        end.attempt,
        end.owner,
    )
