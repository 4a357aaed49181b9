"""Deleting what is long over, a little at a time."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from td_runtime.store import sqlite_text as sql
from td_runtime.store.records import Pruned
from td_runtime.store.sqlite_ends import count_ends
from td_runtime.store.sqlite_rows import decode_tags

__all__ = ["Pruner"]

_STEP_RUNS = 200
_STEP_BYTES = 4 * 2**20
"""Of payloads and outputs: each page of them is read once more to be freed."""
_BEGINNING = (float("-inf"), 0)


class _Old(NamedTuple):
    """A finished run, as `OLDEST_FINISHED` reads it."""

    finished_at: float
    seq: int
    id: str
    task: str
    status: str
    key: str | None
    tags: str | None
    size: int | None
    is_needed: int
    parent_id: str | None


class Pruner:
    """Goes through the history from its oldest end, remembering how far it has come.

    A run that its unfinished parent may ask for again (R9) is passed over.
    """

    def __init__(self) -> None:
        self._position: tuple[float, int] = _BEGINNING
        self._passed = 0

    def step(
        self,
        connection: sqlite3.Connection,
        *,
        now: float,
        finished_before: float | None,
        keep: int | None,
    ) -> Pruned:
        """Delete a few runs; a step after the last one starts anew."""
        connection.execute(sql.FORGET_KEYS, (now, _STEP_RUNS))
        before = float("-inf") if finished_before is None else finished_before
        excess = 0 if keep is None else self._excess(connection, keep)
        values = (*self._position, float("inf") if excess else before, _STEP_RUNS)
        found = [_Old(*row) for row in connection.execute(sql.OLDEST_FINISHED, values)]
        deleted = size = 0
        for old in found:
            if size > _STEP_BYTES or (deleted >= excess and old.finished_at >= before):
                break
            self._position = (old.finished_at, old.seq)
            if old.is_needed:
                self._passed += 1
                continue
            _delete(connection, old)
            deleted += 1
            size += old.size or 0
        else:
            # All of a full page were looked at: behind it there may be more.
            if len(found) == _STEP_RUNS:
                return Pruned(deleted, more=True)
        if size > _STEP_BYTES:
            return Pruned(deleted, more=True)
        self._position, self._passed = _BEGINNING, 0

        return Pruned(deleted, more=False)

    def _excess(self, connection: sqlite3.Connection, keep: int) -> int:
        """Return how many finished runs there are too many, beside those passed over."""
        (finished,) = connection.execute(sql.FINISHED_RUNS).fetchone()

        return max(0, int(finished) - keep - self._passed)


def _delete(connection: sqlite3.Connection, old: _Old) -> None:
    for statement in sql.DELETE_RUN:
        connection.execute(statement, (old.seq,))
    count_ends(connection, [(old.task, old.status)], sign=-1)
    for tag in decode_tags(old.tags):
        connection.execute(sql.DELETE_TAG, (tag, old.seq))
    if _is_call_of_parent(old):
        connection.execute(sql.DELETE_KEY, (old.task, old.key, old.id))


def _is_call_of_parent(old: _Old) -> bool:
    """Whether the key is the default one of a waiting call, which only the parent can repeat."""
    return old.key is not None and old.key.startswith(f"{old.parent_id}:")
