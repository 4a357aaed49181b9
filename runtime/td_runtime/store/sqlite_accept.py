"""Accepting runs: the rows of one request, gathered so that each table is written once."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from td_runtime.store import sqlite_text as sql
from td_runtime.store.errors import ParentCanceledError, RunNotFoundError
from td_runtime.store.records import IDEMPOTENCY_TTL, Accepted, NewRun, Status, default_queue
from td_runtime.store.run_id import RunIds
from td_runtime.store.sqlite_rows import encode_tags

__all__ = ["Acceptance"]


class Acceptance:
    """The rows of one `accept`.

    Args:
        connection: In a transaction.
        path: The file, for error messages.
        ids: Makes the ids.
        now: The time of acceptance.
    """

    def __init__(
        self, connection: sqlite3.Connection, path: Path, *, ids: RunIds, now: float
    ) -> None:
        self._connection = connection
        self._path = path
        self._ids = ids
        self._now = now
        (self._seq,) = connection.execute(sql.LAST_SEQ).fetchone()
        self._roots: dict[str, str] = {}
        self._known: dict[tuple[str, str], str] = {}
        self._runs: list[tuple[Any, ...]] = []
        self._payloads: list[tuple[int, bytes]] = []
        self._metadata: list[tuple[int, bytes]] = []
        self._tags: list[tuple[str, int]] = []
        self._keys: list[tuple[str, str, str, float]] = []

    def add(self, new: NewRun) -> Accepted:
        """Answer one request: with the run that has its key, or with a new one."""
        if new.idempotency_key is not None:
            existing = self._existing(new.task, new.idempotency_key)
            if existing is not None:
                return Accepted(existing, created=False)
        run_id = self._ids.next()
        self._seq += 1
        self._add_row(run_id, new)
        self._payloads.append((self._seq, new.payload))
        self._add_rest(run_id, new)

        return Accepted(run_id, created=True)

    def insert(self) -> None:
        """Write the rows."""
        for statement, rows in (
            (sql.ACCEPT, self._runs),
            (sql.ACCEPT_PAYLOAD, self._payloads),
            (sql.ACCEPT_METADATA, self._metadata),
            (sql.ACCEPT_TAG, self._tags),
            (sql.ACCEPT_KEY, self._keys),
        ):
            if rows:
                self._connection.executemany(statement, rows)

    def _add_row(self, run_id: str, new: NewRun) -> None:
        run_at = self._now if new.run_at is None else new.run_at
        status = Status.DELAYED if run_at > self._now else Status.QUEUED
        self._runs.append(
            (
                self._seq,
                run_id,
                new.task,
                str(status),
                sql.PHASES[status],
                default_queue(new.task) if new.queue is None else new.queue,
                run_at - new.priority,
                new.concurrency_key,
                new.parent_id,
                run_id if new.parent_id is None else self._root_of(new.parent_id),
                new.idempotency_key,
                self._now,
                run_at,
                new.priority,
                None if new.ttl is None else max(run_at, self._now) + new.ttl,
                new.max_attempts,
                new.max_duration,
                encode_tags(new.tags),
                new.replay_of,
                new.stream_run_id,
                new.triggered_by,
            )
        )

    def _add_rest(self, run_id: str, new: NewRun) -> None:
        """Gather what most requests do not have."""
        if new.metadata is not None:
            self._metadata.append((self._seq, new.metadata))
        self._tags += [(tag, self._seq) for tag in dict.fromkeys(new.tags)]
        if new.idempotency_key is not None:
            ttl = IDEMPOTENCY_TTL if new.idempotency_ttl is None else new.idempotency_ttl
            self._known[new.task, new.idempotency_key] = run_id
            self._keys.append((new.task, new.idempotency_key, run_id, self._now + ttl))

    def _existing(self, task: str, key: str) -> str | None:
        if (task, key) not in self._known:
            row = self._connection.execute(sql.FIND_BY_KEY, (task, key, self._now)).fetchone()
            if row is None:
                return None
            self._known[task, key] = row[0]

        return self._known[task, key]

    def _root_of(self, parent_id: str) -> str:
        if parent_id not in self._roots:
            row = self._connection.execute(sql.PARENT, (parent_id,)).fetchone()
            if row is None:
                raise RunNotFoundError(parent_id, where=str(self._path))
            root_id, is_canceled = row
            if is_canceled:
                raise ParentCanceledError(parent_id)
            self._roots[parent_id] = root_id

        return self._roots[parent_id]
