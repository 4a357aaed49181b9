# ruff: noqa: S608  every text that is put together here is ours
"""Pages of runs: which index answers a query, and how several ranges become one page."""

from __future__ import annotations

import heapq
import math
import sqlite3
from collections.abc import Iterator
from itertools import islice
from typing import Any

from td_runtime.store import sqlite_text as sql
from td_runtime.store.records import RunQuery, RunSummary, Status
from td_runtime.store.run_id import first_id
from td_runtime.store.sqlite_rows import summaries

__all__ = ["find"]

_EVERY_SEQ = (0, 2**63 - 1)
_Range = tuple[str, dict[str, Any]]
"""Index and condition, and the values for it."""


def find(connection: sqlite3.Connection, query: RunQuery) -> list[RunSummary]:
    """Read one page, newest first."""
    low, high = _bounds(connection, query)
    if low >= high or query.limit <= 0:
        return []
    # Towards the page of newer runs one walks from its oldest run up.
    upwards = query.after is not None and query.before is None
    walks = [
        _walk(connection, each, query, low=low, high=high, upwards=upwards)
        for each in _ranges(connection, query)
    ]
    merged = heapq.merge(*walks, reverse=not upwards)
    seqs = list(islice(merged, query.limit))

    return summaries(connection, seqs[::-1] if upwards else seqs)


def _walk(
    connection: sqlite3.Connection,
    found: _Range,
    query: RunQuery,
    *,
    low: int,
    high: int,
    upwards: bool,
) -> list[int]:
    """Return the numbers of the first runs of a range, in the order of the walk."""
    place, values = found
    conditions, more = _conditions(query)
    statement = f"""
        SELECT seq FROM runs {place} AND seq >= :low AND seq < :high {conditions}
        ORDER BY seq {"ASC" if upwards else "DESC"} LIMIT :limit
    """
    rows = connection.execute(
        statement, {**values, **more, "low": low, "high": high, "limit": query.limit}
    )

    return [seq for (seq,) in rows]


def _ranges(connection: sqlite3.Connection, query: RunQuery) -> Iterator[_Range]:
    """Yield where the runs are that the most selective condition names."""
    if query.tag is not None:
        yield "WHERE seq IN (SELECT seq FROM tags WHERE tag = :tag)", {"tag": query.tag}
    elif query.parent_id is not None:
        yield "INDEXED BY runs_below WHERE parent_id = :parent", {"parent": query.parent_id}
    elif query.statuses:
        for status in query.statuses:
            yield from _ranges_of(connection, status, query)
    elif query.tasks:
        for task in query.tasks:
            yield "INDEXED BY runs_by_task WHERE task = :task", {"task": task}
    elif query.queue is not None:
        yield "INDEXED BY runs_by_queue WHERE queue = :queue", {"queue": query.queue}
    else:
        yield "NOT INDEXED WHERE TRUE", {}


def _ranges_of(connection: sqlite3.Connection, status: Status, query: RunQuery) -> Iterator[_Range]:
    """Yield the ranges of one status: of history one a task."""
    values = {"status": str(status)}
    if not status.is_finished:
        yield from ((f"INDEXED BY {place}", values) for place in sql.FINDABLE[status])
        return
    tasks = {task for (task,) in connection.execute(sql.HISTORY_TASKS, (str(status),))}
    for task in sorted(tasks & query.tasks if query.tasks else tasks):
        yield from (
            (f"INDEXED BY {place}", {**values, "task": task}) for place in sql.FINDABLE[status]
        )


def _conditions(query: RunQuery) -> tuple[str, dict[str, Any]]:
    """Write all conditions once more, for what the chosen range does not say."""
    texts: list[str] = []
    values: dict[str, Any] = {}
    for column, wanted in (("status", query.statuses), ("task", query.tasks)):
        if wanted:
            names = {f"{column}_{n}": str(each) for n, each in enumerate(sorted(wanted))}
            texts.append(f"{column} IN ({', '.join(f':{name}' for name in names)})")
            values |= names
    for name, text, value in (
        ("q_queue", "+queue = :q_queue", query.queue),
        ("q_parent", "+parent_id = :q_parent", query.parent_id),
        ("q_since", "created_at >= :q_since", query.since),
        ("q_until", "created_at < :q_until", query.until),
    ):
        if value is not None:
            texts.append(text)
            values[name] = value

    return "".join(f" AND {text}" for text in texts), values


def _bounds(connection: sqlite3.Connection, query: RunQuery) -> tuple[int, int]:
    """Return the first number of a page's runs, and the one after the last: ids hold the time."""
    low, high = _EVERY_SEQ
    if query.since is not None:
        low = _seq_from(connection, first_id(math.floor(query.since * 1000)))
    if query.until is not None:
        high = _seq_from(connection, first_id(math.ceil(query.until * 1000)))
    if query.before is not None:
        high = min(high, _seq_from(connection, query.before))
    if query.after is not None:
        low = max(low, _seq_from(connection, query.after + "\0"))

    return low, high


def _seq_from(connection: sqlite3.Connection, run_id: str) -> int:
    """Return the number of the first run whose id is this or greater."""
    row = connection.execute(sql.SEQ_FROM_ID, (run_id,)).fetchone()

    return _EVERY_SEQ[1] if row is None else int(row[0])
