"""The run store on one SQLite file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from asyncio import Future
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from td_runtime.errors import StoreError
from td_runtime.store import sqlite_text as sql
from td_runtime.store.group_commit import GroupCommit
from td_runtime.store.records import (
    Accepted,
    Cancellation,
    Due,
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
)
from td_runtime.store.run_id import RunIds
from td_runtime.store.sqlite_accept import Acceptance
from td_runtime.store.sqlite_cancel import cancel
from td_runtime.store.sqlite_change import add_tags, reschedule
from td_runtime.store.sqlite_claim import choose, choose_named, reconsider
from td_runtime.store.sqlite_ends import count_ends, finish_all
from td_runtime.store.sqlite_file import connect, connect_readonly, disconnect, translated
from td_runtime.store.sqlite_find import find
from td_runtime.store.sqlite_prune import Pruner
from td_runtime.store.sqlite_rows import encode_error, runs, summaries, to_run

__all__ = ["SqliteRunReader", "SqliteRunStore"]

_DUE_AT_ONCE = 256
_IDS_AT_ONCE = 500
_Values = tuple[Any, ...] | dict[str, Any]


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

        return None if row is None else to_run(row)

    async def get_many(self, run_ids: Iterable[str]) -> list[Run]:
        """Return the runs with these ids in the order asked for; unknown ids are left out."""
        rows = [self._one(sql.SELECT_BY_ID, (run_id,)) for run_id in run_ids]

        return [to_run(row) for row in rows if row is not None]

    async def are_finished(self, run_ids: Sequence[str]) -> bool:
        """Return whether all of these have their outcome; unknown ids do."""
        for start in range(0, len(run_ids), _IDS_AT_ONCE):
            ids = msgspec.json.encode(run_ids[start : start + _IDS_AT_ONCE])
            if self._one(sql.ONE_UNFINISHED, (ids.decode(),)) is not None:
                return False
            await asyncio.sleep(0)

        return True

    async def tree(self, root_id: str) -> list[Run]:
        """Return a root run and everything below it, in the order of acceptance."""
        return [to_run(row) for row in self._all(sql.SELECT_TREE, {"root": root_id})]

    async def find(self, query: RunQuery) -> list[RunSummary]:
        """Return a page of runs, newest first."""
        with translated(self._path):
            return find(self._connection, query)

    async def ids_beginning_with(self, prefix: str, *, limit: int) -> list[str]:
        """Return the first ids that begin so, in the order of acceptance."""
        rows = self._all(sql.IDS_FROM, (prefix, limit))

        return [run_id for (run_id,) in rows if run_id.startswith(prefix)]

    async def counts(self) -> dict[Status, int]:
        """Return how many runs there are in each status, zeros included."""
        found = {Status(status): count for status, count in self._all(sql.COUNTS)}

        return {status: found.get(status, 0) for status in Status}

    async def counts_by_task(self) -> dict[str, dict[Status, int]]:
        """Return how many runs of each task there are in each status; no zeros."""
        found: dict[str, dict[Status, int]] = {}
        for task, status, count in self._all(sql.COUNTS_BY_TASK):
            counts = found.setdefault(task, {})
            counts[Status(status)] = counts.get(Status(status), 0) + count

        return found

    async def last_ticks(self) -> dict[str, float]:
        """Return up to when the ticks of each scheduled task are dealt with."""
        return dict(self._all(sql.LAST_TICKS))

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
        last = self._one(sql.LAST_ID)
        # In the order of acceptance over all starts: pages are cut by id.
        self._ids = RunIds(clock, after=None if last is None else last[0])
        self._file = path.stat().st_ino
        self._changes = GroupCommit(self._connection, path, guard=self._require_file)
        self._pruner = Pruner()
        self._is_behind = False
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
        queues: Mapping[str, QueueLimits],
        now: float,
        tasks: Collection[str] | None = None,
        only: Collection[str] | None = None,
        hold: Collection[str] = (),
    ) -> Future[list[Run]]:
        """Hand out a run to each place, the longest ready first: each counts one attempt."""

        def change(connection: sqlite3.Connection) -> list[Run]:
            if only is None:
                choice = choose(connection, queues, len(places), tasks=tasks, hold=hold)
                choice.move_aside()
            else:
                choice = choose_named(connection, only, queues, len(places), tasks=tasks)
            self._is_behind = choice.is_over and len(choice.taken) < len(places)
            taken = [
                (place.owner, place.pid, place.worker, now, seq)
                for place, seq in zip(places, choice.taken, strict=False)
            ]
            connection.executemany(sql.CLAIM, taken)

            return runs(connection, choice.taken)

        return self._changes.submit(change)

    async def startable(
        self,
        run_ids: Collection[str],
        *,
        queues: Mapping[str, QueueLimits],
        tasks: Collection[str] | None = None,
    ) -> int:
        """Return how many of these runs would be handed out if there were a place for each."""
        with translated(self._path):
            choice = choose_named(self._connection, run_ids, queues, len(run_ids), tasks=tasks)

        return len(choice.taken)

    @property
    def is_behind(self) -> bool:
        """Whether the last hand-out ended before it had looked at all that is ready."""
        return self._is_behind

    def reconsider(self, queues: Mapping[str, QueueLimits]) -> Future[None]:
        """Look again at the runs that hand-outs have passed over: limits or tasks have changed."""
        return self._changes.submit(lambda connection: reconsider(connection, queues))

    def pass_time(self, now: float) -> Future[Due]:
        """Queue the runs whose `run_at` has come, and expire those whose time to start is over."""
        return self._changes.submit(lambda connection: _pass_time(connection, now))

    async def next_due_at(self) -> float | None:
        """Return when `pass_time` has something to do next, None if never."""
        row = self._one(sql.NEXT_DUE_AT)

        return None if row is None else row[0]

    async def unfinished(self) -> int:
        """Return how many runs have no outcome yet."""
        row = self._one(sql.UNFINISHED)

        return 0 if row is None else int(row[0])

    def cancel(
        self, run_ids: Collection[str], *, by: str | None = None, descendants: bool = False
    ) -> Future[Cancellation]:
        """Cancel runs: at once those that do not execute, by their workers those that do."""
        now = self._clock()

        return self._changes.submit(
            lambda connection: cancel(connection, run_ids, now=now, by=by, descendants=descendants)
        )

    def set_metadata(self, run_id: str, metadata: bytes) -> Future[bool]:
        """Replace a run's metadata; False when there is no such run."""
        return self._changes.submit(
            lambda connection: (
                connection.execute(sql.SET_METADATA, (metadata, run_id)).rowcount == 1
            )
        )

    def add_tags(self, run_id: str, tags: tuple[str, ...]) -> Future[bool]:
        """Give a run these tags, too; False when there is no such run."""
        return self._changes.submit(lambda connection: add_tags(connection, run_id, tags))

    def reschedule(self, run_id: str, run_at: float) -> Future[bool]:
        """Let a run that is DELAYED start at another time; False when there is none."""
        return self._changes.submit(lambda connection: reschedule(connection, run_id, run_at))

    def record_tick(self, task: str, at: float) -> Future[None]:
        """Keep that the ticks of a scheduled task up to *at* are dealt with."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(sql.RECORD_TICK, (task, at))

        return self._changes.submit(change)

    def forget_ticks(self, tasks: Collection[str]) -> Future[None]:
        """Forget how far the ticks of these tasks are dealt with: they have no schedule."""

        def change(connection: sqlite3.Connection) -> None:
            connection.executemany(sql.FORGET_TICKS, [(task,) for task in tasks])

        return self._changes.submit(change)

    def wait(self, run_id: str, attempt: int, owner: str) -> Future[bool]:
        """EXECUTING → WAITING: the run waits for its children and frees its place."""
        return self._fenced(sql.WAIT, (run_id, attempt, owner))

    def resume(self, run_id: str, attempt: int, owner: str) -> Future[bool]:
        """WAITING → EXECUTING: the run takes a place again."""
        return self._fenced(sql.RESUME, (run_id, attempt, owner))

    def finish(
        self, run_id: str, attempt: int, owner: str, outcome: Outcome, *, records_lost: int = 0
    ) -> Future[bool]:
        """Record the outcome, once: False is a late result, and changed nothing."""
        ends = (Finish(run_id, attempt, owner, outcome, records_lost),)
        now = self._clock()

        return self._changes.submit(
            lambda connection: finish_all(connection, ends, now)[0], keep=True
        )

    def finish_all(self, ends: Sequence[Finish]) -> Future[list[bool]]:
        """Record outcomes as `finish` does, all or none; the answers are in their order."""
        now = self._clock()

        return self._changes.submit(lambda connection: finish_all(connection, ends, now), keep=True)

    def retry(
        self,
        run_id: str,
        attempt: int,
        owner: str,
        *,
        run_at: float,
        error: RunError,
        crashed: bool = False,
    ) -> Future[Status | None]:
        """→ RETRYING: the attempt failed and counts, the next may start from `run_at` on."""
        facts = {"run_at": run_at, "error": encode_error(error), "crashed": crashed}

        return self._put_back(sql.RETRY, facts, run_id, attempt, owner)

    def requeue(
        self, run_id: str, attempt: int, owner: str, *, excused: bool, crashed: bool = False
    ) -> Future[Status | None]:
        """→ QUEUED, at its old place in the queue."""
        facts = {"excused": excused, "crashed": crashed}

        return self._put_back(sql.REQUEUE, facts, run_id, attempt, owner)

    def release(self, owner: str, *, blamed: str | None = None) -> Future[list[Run]]:
        """Requeue every run that a dead worker had, and return them as they are now."""
        return self._release(owner, blamed)

    def requeue_unfinished(self) -> Future[list[Run]]:
        """Requeue, excused, every run that any worker had, and return them as they are now."""
        return self._release(None, None)

    def prune(self, *, finished_before: float | None, keep: int | None) -> Future[Pruned]:
        """Delete a few of the oldest finished runs; repeat it while there are more."""
        now = self._clock()

        return self._changes.submit(
            lambda connection: self._pruner.step(
                connection, now=now, finished_before=finished_before, keep=keep
            )
        )

    def _require_file(self) -> None:
        """Refuse to go on in a file that is not at its path any more.

        SQLite would go on in it, and what is accepted would be gone at the end of the process.
        """
        try:
            is_ours = self._path.stat().st_ino == self._file
        except OSError:
            is_ours = False
        if not is_ours:
            raise StoreError(
                "the run store was deleted, moved or replaced while it is used",
                where=str(self._path),
                advice="put it back, or a backup of it, and start td-runtime again; nothing was "
                "accepted since",
            )

    def _fenced(self, statement: str, values: tuple[Any, ...]) -> Future[bool]:
        """Queue a change of one row; the answer is whether that attempt still had the run."""
        return self._changes.submit(
            lambda connection: connection.execute(statement, values).rowcount == 1,
            keep=True,
            is_statement=True,
        )

    def _put_back(
        self, statement: str, facts: dict[str, Any], run_id: str, attempt: int, owner: str
    ) -> Future[Status | None]:
        """Queue the end of an attempt that is not the run's own; the answer is what the run is."""
        values = {
            **facts,
            "id": run_id,
            "attempt": attempt,
            "owner": owner,
            "now": self._clock(),
        }

        def change(connection: sqlite3.Connection) -> Status | None:
            rows = connection.execute(statement, values).fetchall()
            count_ends(connection, [row for row in rows if row[1] == Status.CANCELED])

            return Status(rows[0][1]) if rows else None

        return self._changes.submit(change, keep=True)

    def _release(self, owner: str | None, blamed: str | None) -> Future[list[Run]]:
        """Queue the requeueing of the runs of one owner, or of all."""
        now = self._clock()

        def change(connection: sqlite3.Connection) -> list[Run]:
            seqs = [seq for (seq,) in connection.execute(sql.SELECT_IN_HAND, {"owner": owner})]
            connection.executemany(
                sql.RELEASE, [{"blamed": blamed, "now": now, "seq": seq} for seq in seqs]
            )

            released = runs(connection, seqs)
            count_ends(
                connection,
                [(run.task, run.status) for run in released if run.status.is_finished],
            )

            return released

        # At a start nobody has anything to lose yet: a full disk is said then, not waited for.
        return self._changes.submit(change, keep=owner is not None)

    def _accept(
        self, connection: sqlite3.Connection, requests: tuple[NewRun, ...]
    ) -> list[Accepted]:
        batch = Acceptance(connection, self._path, ids=self._ids, now=self._clock())
        answers = [batch.add(request) for request in requests]
        batch.insert()

        return answers


def _pass_time(connection: sqlite3.Connection, now: float) -> Due:
    expired = [seq for (seq,) in connection.execute(sql.EXPIRED, (now, _DUE_AT_ONCE))]
    connection.executemany(sql.EXPIRE, [(now, seq) for seq in expired])
    queued = [seq for (seq,) in connection.execute(sql.DUE, (now, _DUE_AT_ONCE))]
    connection.executemany(sql.PROMOTE, [(seq,) for seq in queued])

    gone = summaries(connection, expired)
    count_ends(connection, [(run.task, run.status) for run in gone])

    return Due(queued=tuple(summaries(connection, queued)), expired=tuple(gone))
