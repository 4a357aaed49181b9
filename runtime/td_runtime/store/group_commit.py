"""Group commit: changes that come close together share one transaction, and one fsync."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from td_runtime.errors import StoreError
from td_runtime.store.sqlite_file import is_busy, translate

__all__ = ["GroupCommit", "Pace"]

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]

_GATHER_S = 0.001  # the loop's clock ticks in milliseconds: this is at most 2 ms
_BUDGET_S = 0.02
_SLOW_S = 0.1
_BUSY_PAUSE_S = 0.01
_BUSY_TIMEOUT_S = 5.0

_log = structlog.get_logger()


class Pace:
    """How long to gather before a commit. Knows no clock.

    A change that comes alone is committed at once. After a commit of several, more of them are
    likely: their senders have just been answered. Then the next commit waits for as many as last
    time, but not longer than `gather` seconds.
    """

    def __init__(self, gather: float = _GATHER_S) -> None:
        self._gather = gather
        self._size = 0
        self._until = float("-inf")

    def committed(self, size: int, *, at: float) -> None:
        """Take note of a commit of so many changes."""
        self._size = size
        self._until = at + self._gather

    def delay(self, queued: int, *, now: float) -> float:
        """Return how many seconds the commit of what is queued should wait."""
        if self._size < 2 or queued >= self._size:
            return 0.0

        return max(0.0, self._until - now)


@dataclass(slots=True)
class _Pending:
    """A change in the queue, and where its answer goes."""

    change: Change[Any]
    future: Future[Any]
    result: Any = None
    error: Exception | None = None

    def answer(self) -> None:
        """Tell the waiter; one that was cancelled hears nothing."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class GroupCommit:
    """The queue of changes in front of one SQLite connection, on one event loop.

    A change that raises is undone alone; its neighbours in the transaction are committed. When the
    commit itself fails, all its changes have failed. The connection belongs to the caller, who
    closes it after `drain`.

    Args:
        connection: In autocommit mode, with a busy time-out of zero.
        path: The file, for error messages.
        pace: When to commit.
        budget: After how many seconds of changes a long queue is cut, and the loop gets its turn
            before the next commit.
        slow: A commit that takes more seconds than this is logged.
        busy_timeout: For how many seconds a file that somebody else locked is tried again.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        pace: Pace | None = None,
        budget: float = _BUDGET_S,
        slow: float = _SLOW_S,
        busy_timeout: float = _BUSY_TIMEOUT_S,
    ) -> None:
        self._connection = connection
        self._path = path
        self._pace = pace or Pace()
        self._budget = budget
        self._slow = slow
        self._busy_timeout = busy_timeout
        self._busy_since: float | None = None
        self._queue: deque[_Pending] = deque()
        self._timer: asyncio.Handle | None = None

    def submit(self, change: Change[T]) -> Future[T]:
        """Queue a change. The future is done after the commit that holds it.

        Raises (the future):
            StoreError: The database failed; the change is not stored.
        """
        future: Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append(_Pending(change, future))
        self._schedule()

        return future

    async def drain(self) -> None:
        """Return when everything queued before is committed, or has failed."""
        last = self.submit(lambda _: None)
        with suppress(StoreError):  # it is told to those who queued the changes
            await asyncio.shield(last)

    def _schedule(self) -> None:
        """Set the timer, or bring it forward when enough has gathered."""
        if self._busy_since is not None and self._timer is not None:
            return
        delay = self._pace.delay(len(self._queue), now=time.monotonic())
        if self._timer is None:
            self._set_timer(delay)
        elif delay == 0 and isinstance(self._timer, asyncio.TimerHandle):
            self._timer.cancel()
            self._set_timer(0)

    def _set_timer(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        # `call_soon` also gathers: all that the loop's present turn still queues comes along.
        self._timer = (
            loop.call_later(delay, self._flush) if delay > 0 else loop.call_soon(self._flush)
        )

    def _flush(self) -> None:
        """Commit what is queued, then tell the waiters."""
        self._timer = None
        started = time.monotonic()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            self._not_begun(error, now=started)
            return
        self._busy_since = None
        batch = self._transact(started)
        self._took(time.monotonic() - started, changes=len(batch))
        self._pace.committed(len(batch), at=time.monotonic())
        for pending in batch:
            pending.answer()
        if self._queue:
            self._set_timer(0)

    def _transact(self, started: float) -> list[_Pending]:
        """Apply and commit as many changes as fit into the budget, at least one."""
        batch: list[_Pending] = []
        try:
            while self._queue and (not batch or time.monotonic() - started < self._budget):
                batch.append(self._queue.popleft())
                self._apply(batch[-1])
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            self._fail(batch, error)

        return batch

    def _apply(self, pending: _Pending) -> None:
        """Run one change inside a savepoint of its own.

        Raises:
            sqlite3.Error: The database gave up the whole transaction.
        """
        self._connection.execute("SAVEPOINT change")
        try:
            pending.result = pending.change(self._connection)
        except Exception as error:
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK TO change")
            pending.error = self._translated(error)
        self._connection.execute("RELEASE change")

    def _not_begun(self, error: sqlite3.Error, *, now: float) -> None:
        """Try again later while somebody else has the file, else fail all that is queued."""
        if self._busy_since is None:
            self._busy_since = now
        if is_busy(error) and now - self._busy_since < self._busy_timeout:
            self._set_timer(_BUSY_PAUSE_S)
            return
        self._busy_since = None
        batch = list(self._queue)
        self._queue.clear()
        self._fail(batch, error)
        for pending in batch:
            pending.answer()

    def _fail(self, batch: Iterable[_Pending], error: sqlite3.Error) -> None:
        """Give every change its own error: one object raised in many tasks mixes tracebacks."""
        for pending in batch:
            pending.error = self._translated(error)

    def _translated(self, error: Exception) -> Exception:
        return translate(error, self._path) if isinstance(error, sqlite3.Error) else error

    def _roll_back(self) -> None:
        if not self._connection.in_transaction:
            return
        with suppress(sqlite3.Error):  # what failed is known already; the next BEGIN says the rest
            self._connection.execute("ROLLBACK")

    def _took(self, seconds: float, *, changes: int) -> None:
        if seconds > self._slow:
            _log.warning("store.commit_slow", duration_ms=round(seconds * 1000), changes=changes)
