"""The run store on one SQLite file."""

from __future__ import annotations

import heapq
import os
import sqlite3
import time
from asyncio import Future
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Mapping,
    Sequence,
    Set,
)
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from td_runtime.store import sqlite_text as sql
from td_runtime.store.errors import RunNotFoundError
from td_runtime.store.group_commit import GroupCommit
from td_runtime.store.records import Accepted, NewRun, Outcome, Place, Run, RunError, Status
from td_runtime.store.run_id import RunIds
from td_runtime.store.sqlite_file import connect, connect_readonly, disconnect, translated

__all__ = ["SqliteRunReader", "SqliteRunStore"]

_Values = tuple[Any, ...] | dict[str, Any]
_decode_error = msgspec.json.Decoder(RunError).decode
_encode_error = msgspec.json.Encoder().encode


class SqliteRunReader:
    """Reads `runs.db`, beside a supervisor or without one. See `RunReader`.

    A forked child may inherit an open one, but not use it; there, `close` does nothing.

    Args:
        path: The file.

    Raises:
        StoreError: There is no run store at `path`, or this td-runtime cannot read it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = self._connect(path)
        self._pid = os.getpid()

    def _connect(self, path: Path) -> sqlite3.Connection:
        return connect_readonly(path)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        if os.getpid() == self._pid:
            disconnect(self._connection)

    async def get(self, run_id: str) -> Run | None:
        """Return a run, None if there is none with that id."""
        row = self._one(sql.SELECT_BY_ID, (run_id,))

        return None if row is None else _to_run(row)

    async def get_many(self, run_ids: Iterable[str]) -> list[Run]:
        """Return the runs with these ids in the order asked for; unknown ids are left out."""
        rows = [self._one(sql.SELECT_BY_ID, (run_id,)) for run_id in run_ids]

        return [_to_run(row) for row in rows if row is not None]

    async def tree(self, root_id: str) -> list[Run]:
        """Return a root run and everything below it, in the order of acceptance."""
        return [_to_run(row) for row in self._all(sql.SELECT_TREE, {"root": root_id})]

    async def counts(self) -> dict[Status, int]:
        """Return how many runs there are in each status, zeros included."""
        found = {Status(status): count for status, count in self._all(sql.COUNTS)}

        return {status: found.get(status, 0) for status in Status}

    def _one(self, statement: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        rows = self._all(statement, values)

        return rows[0] if rows else None

    def _all(self, statement: str, values: _Values = ()) -> list[tuple[Any, ...]]:
        with translated(self._path):
            return self._connection.execute(statement, values).fetchall()


class SqliteRunStore(SqliteRunReader):
    """The one writer of `runs.db`. See `RunStore`.

    Everything happens on the calling loop, in no other thread: the supervisor forks.

    Args:
        path: The file; made, with mode 0600, if it does not exist.
        clock: Seconds since the epoch.

    Raises:
        StoreError: The file cannot be opened, is something else, or has a newer schema.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(path)
        self._clock = clock
        self._ids = RunIds(clock)
        self._changes = GroupCommit(self._connection, path)
        self._closed = False

    def _connect(self, path: Path) -> sqlite3.Connection:
        return connect(path)

    async def close(self) -> None:
        """Commit what is queued, then let go of the file; a second call does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        try:
            await self._changes.drain()
        finally:
            await super().close()

    def accept(self, runs: Iterable[NewRun]) -> Future[list[Accepted]]:
        """Store new runs, all or none; the answers are in the order of the requests."""
        requests = tuple(runs)

        return self._changes.submit(lambda connection: self._accept(connection, requests))

    def claim(
        self,
        places: Sequence[Place],
        *,
        limits: Mapping[str, int],
        now: float,
        only: Collection[str] | None = None,
        hold: Collection[str] = (),
    ) -> Future[list[Run]]:
        """Hand out a run to each place, the longest ready first: each counts one attempt."""
        wanted = {task: min(limit, len(places)) for task, limit in limits.items()}

        def change(connection: sqlite3.Connection) -> list[Run]:
            if only is None:
                seqs = _longest_ready(connection, wanted, len(places), now, hold)
            else:
                seqs = _named(connection, only, wanted, len(places), now)
            taken = [
                (place.owner, place.pid, now, seq) for place, seq in zip(places, seqs, strict=False)
            ]
            connection.executemany(sql.CLAIM, taken)

            return _runs(connection, seqs)

        return self._changes.submit(change)

    async def next_ready_at(self, after: float) -> float | None:
        """Return the earliest `run_at` later than `after`, None if nothing is waiting for one."""
        row = self._one(sql.NEXT_READY_AT, (after,))

        return None if row is None else row[0]

    async def unfinished(self) -> int:
        """Return how many runs have no outcome yet."""
        row = self._one(sql.UNFINISHED)

        return 0 if row is None else int(row[0])

    def wait(self, run_id: str, attempt: int, owner: str) -> Future[bool]:
        """EXECUTING → WAITING: the run waits for its children and frees its place."""
        return self._fenced(sql.WAIT, (), run_id, attempt, owner)

    def resume(self, run_id: str, attempt: int, owner: str) -> Future[bool]:
        """WAITING → EXECUTING: the run takes a place again."""
        return self._fenced(sql.RESUME, (), run_id, attempt, owner)

    def finish(
        self, run_id: str, attempt: int, owner: str, outcome: Outcome, *, records_lost: int = 0
    ) -> Future[bool]:
        """Record the outcome, once: False is a late result, and changed nothing."""
        error = None if outcome.error is None else _encode_error(outcome.error)
        facts = (str(outcome.status), outcome.output, error, records_lost, self._clock())

        return self._fenced(sql.FINISH, facts, run_id, attempt, owner)

    def retry(
        self,
        run_id: str,
        attempt: int,
        owner: str,
        *,
        run_at: float,
        error: RunError,
        crashed: bool = False,
    ) -> Future[bool]:
        """→ RETRYING: the attempt failed and counts, the next may start from `run_at` on."""
        facts = (run_at, _encode_error(error), crashed)

        return self._fenced(sql.RETRY, facts, run_id, attempt, owner)

    def requeue(
        self, run_id: str, attempt: int, owner: str, *, excused: bool, crashed: bool = False
    ) -> Future[bool]:
        """→ QUEUED, at its old place in the queue."""
        return self._fenced(sql.REQUEUE, (excused, crashed), run_id, attempt, owner)

    def release(self, owner: str, *, blamed: str | None = None) -> Future[list[Run]]:
        """Requeue every run that a dead worker had, and return them as they are now."""
        return self._changes.submit(lambda connection: _release(connection, owner, blamed))

    def requeue_unfinished(self) -> Future[list[Run]]:
        """Requeue, excused, every run that any worker had, and return them as they are now."""
        return self._changes.submit(lambda connection: _release(connection, None, None))

    def _fenced(
        self, statement: str, facts: tuple[Any, ...], run_id: str, attempt: int, owner: str
    ) -> Future[bool]:
        """Queue a change of one row; the answer is whether that attempt still had the run."""
        values = (*facts, run_id, attempt, owner)

        return self._changes.submit(
            lambda connection: connection.execute(statement, values).rowcount == 1
        )

    def _accept(
        self, connection: sqlite3.Connection, requests: tuple[NewRun, ...]
    ) -> list[Accepted]:
        batch = _Acceptance(connection, self._path, ids=self._ids, now=self._clock())
        answers = [batch.add(request) for request in requests]
        batch.insert()

        return answers


class _Acceptance:
    """The rows of one `accept`, gathered so that they are inserted in two statements."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, *, ids: RunIds, now: float
    ) -> None:
        self._connection = connection
        self._path = path
        self._ids = ids
        self._now = now
        (self._seq,) = connection.execute(sql.LAST_SEQ).fetchone()
        self._roots: dict[str, str] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._runs: list[tuple[Any, ...]] = []
        self._payloads: list[tuple[int, bytes]] = []

    def add(self, new: NewRun) -> Accepted:
        """Answer one request: with the run that has its key, or with a new one."""
        existing = self._existing(new)
        if existing is not None:
            return Accepted(existing, created=False)
        run_id = self._ids.next()
        if new.idempotency_key is not None:
            self._keys[new.task, new.idempotency_key] = run_id
        self._add_row(run_id, new)

        return Accepted(run_id, created=True)

    def insert(self) -> None:
        """Write the rows."""
        self._connection.executemany(sql.ACCEPT, self._runs)
        self._connection.executemany(sql.ACCEPT_PAYLOAD, self._payloads)

    def _add_row(self, run_id: str, new: NewRun) -> None:
        is_later = new.run_at is not None and new.run_at > self._now
        status = Status.DELAYED if is_later else Status.QUEUED
        run_at = self._now if new.run_at is None else new.run_at
        root_id = run_id if new.parent_id is None else self._root_of(new.parent_id)
        self._seq += 1
        self._runs.append(
            (
                self._seq,
                run_id,
                new.task,
                str(status),
                new.parent_id,
                root_id,
                new.idempotency_key,
                self._now,
                run_at,
            )
        )
        self._payloads.append((self._seq, new.payload))

    def _existing(self, new: NewRun) -> str | None:
        if new.idempotency_key is None:
            return None
        key = (new.task, new.idempotency_key)
        if key not in self._keys:
            row = self._connection.execute(sql.FIND_BY_KEY, key).fetchone()
            if row is None:
                return None
            self._keys[key] = row[0]

        return self._keys[key]

    def _root_of(self, parent_id: str) -> str:
        if parent_id not in self._roots:
            row = self._connection.execute(sql.ROOT_OF, (parent_id,)).fetchone()
            if row is None:
                raise RunNotFoundError(parent_id, where=str(self._path))
            self._roots[parent_id] = row[0]

        return self._roots[parent_id]


def _longest_ready(
    connection: sqlite3.Connection,
    wanted: Mapping[str, int],
    capacity: int,
    now: float,
    hold: Collection[str] = (),
) -> list[int]:
    """Pick the runs to hand out, without looking at one whose task is at its limit.

    The queue of each task is an index range in the right order; the ranges are merged, so rows are
    read only as far as they are taken, plus one a task, plus what is held back.
    """
    held = {seq for _, seq, _ in _ready_by_id(connection, hold, now)}
    with ExitStack() as stack:
        # An open cursor is an open read; it must not outlive the choice, since rows change next.
        queues = [
            stack.enter_context(closing(_queue_of(connection, task, count, now, held)))
            for task, count in wanted.items()
            if count > 0
        ]

        return [seq for _, seq in islice(heapq.merge(*queues), capacity)]


def _queue_of(
    connection: sqlite3.Connection, task: str, count: int, now: float, held: Set[int]
) -> Generator[tuple[float, int], None, None]:
    """Yield up to `count` ready runs of a task, in order."""
    with closing(connection.execute(sql.READY_OF_TASK, (task, now, count + len(held)))) as rows:
        yield from islice((row for row in rows if row[1] not in held), count)


def _ready_by_id(
    connection: sqlite3.Connection, run_ids: Iterable[str], now: float
) -> list[tuple[float, int, str]]:
    """Return time, number and task of those runs that are ready, the longest ready first."""
    found = (connection.execute(sql.READY_BY_ID, (run_id, now)).fetchone() for run_id in run_ids)

    return sorted(row for row in found if row is not None)


def _named(
    connection: sqlite3.Connection,
    run_ids: Iterable[str],
    wanted: Mapping[str, int],
    capacity: int,
    now: float,
) -> list[int]:
    """Pick the runs to hand out among these, within the limits."""
    room = dict(wanted)
    chosen: list[int] = []
    for _, seq, task in _ready_by_id(connection, run_ids, now):
        if len(chosen) < capacity and room.get(task, 0) > 0:
            room[task] -= 1
            chosen.append(seq)

    return chosen


def _release(connection: sqlite3.Connection, owner: str | None, blamed: str | None) -> list[Run]:
    """Requeue the runs of one owner, or of all."""
    seqs = [seq for (seq,) in connection.execute(sql.SELECT_IN_HAND, {"owner": owner})]
    connection.executemany(sql.RELEASE, [{"blamed": blamed, "seq": seq} for seq in seqs])

    return _runs(connection, seqs)


def _runs(connection: sqlite3.Connection, seqs: Iterable[int]) -> list[Run]:
    return [_to_run(connection.execute(sql.SELECT_BY_SEQ, (seq,)).fetchone()) for seq in seqs]


def _to_run(row: tuple[Any, ...]) -> Run:
    facts = dict(zip(sql.COLUMNS, row, strict=True))
    facts["status"] = Status(facts["status"])
    if facts["error"] is not None:
        facts["error"] = _decode_error(facts["error"])

    return Run(**facts)
