"""Group commit: changes that come close together share one transaction, and one fsync."""

from __future__ import annotations

import asyncio
import copy
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
from td_runtime.store.errors import StoreFullError
from td_runtime.store.sqlite_file import is_busy, is_full, translate

__all__ = ["GroupCommit", "Pace"]

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]

_GATHER_S = 0.001  # the loop's clock ticks in milliseconds: this is at most 2 ms
_BUDGET_S = 0.02
_SLOW_S = 0.1
_BUSY_PAUSE_S = 0.01
_BUSY_TIMEOUT_S = 5.0
_FULL_PAUSE_S = 0.5

_log = structlog.get_logger()


def _allow() -> None:
    """Every commit is worth it."""


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
    keep: bool
    is_statement: bool
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

    While the disk is full, changes that are to be kept wait here, in their order, and are tried
    again; all others are refused at once, so that nobody who could be told waits.

    Args:
        connection: In autocommit mode, with a busy time-out of zero.
        path: The file, for error messages.
        pace: When to commit.
        budget: After how many seconds of changes a long queue is cut, and the loop gets its turn
            before the next commit.
        slow: A commit that takes more seconds than this is logged.
        busy_timeout: For how many seconds a file that somebody else locked is tried again.
        full_pause: After how many seconds a full disk is tried again.
        guard: Called before each commit; raises StoreError when it would be worth nothing.
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
        full_pause: float = _FULL_PAUSE_S,
        guard: Callable[[], None] = _allow,
    ) -> None:
        self._connection = connection
        self._path = path
        self._pace = pace or Pace()
        self._budget = budget
        self._slow = slow
        self._busy_timeout = busy_timeout
        self._full_pause = full_pause
        self._guard = guard
        self._busy_since: float | None = None
        self._is_full = False
        self._refuses_until = float("-inf")
        self._queue: deque[_Pending] = deque()
        self._timer: asyncio.Handle | None = None

    def submit(
        self, change: Change[T], *, keep: bool = False, is_statement: bool = False
    ) -> Future[T]:
        """Queue a change. The future is done after the commit that holds it.

        Args:
            change: What to do.
            keep: Whether it waits for room on a full disk: it says what has happened already.
            is_statement: Whether it is one statement, which is done wholly or not at all by
                itself: then it needs no savepoint, which costs as much as a small change.

        Raises (the future):
            StoreFullError: The disk is full; the change is not stored.
            StoreError: The database failed; the change is not stored.
        """
        future: Future[T] = asyncio.get_running_loop().create_future()
        pending = _Pending(change, future, keep, is_statement)
        if not keep and time.monotonic() < self._refuses_until:
            pending.error = self._full_error()
            pending.answer()
            return future
        self._queue.append(pending)
        self._schedule()

        return future

    async def drain(self) -> None:
        """Return when everything queued before is committed, or has failed."""
        self._refuses_until = float("-inf")
        last = self.submit(lambda _: None)
        if self._is_full and self._timer is not None:
            self._timer.cancel()
            self._flush()
            self._give_up()
        with suppress(StoreError):  # it is told to those who queued the changes
            await asyncio.shield(last)

    def _schedule(self) -> None:
        """Set the timer, or bring it forward when enough has gathered."""
        is_paused = self._busy_since is not None or time.monotonic() < self._refuses_until
        if is_paused and self._timer is not None:
            return
        delay = self._pace.delay(len(self._queue), now=time.monotonic())
        if self._timer is None:
            self._set_timer(delay)
        elif delay == 0 and isinstance(self._timer, asyncio.TimerHandle):
            self._timer.cancel()
            self._set_timer(0)

    def _set_timer(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = (
            loop.call_later(delay, self._flush) if delay > 0 else loop.call_soon(self._end_turn)
        )

    def _end_turn(self) -> None:
        """Commit at the end of the loop's next turn, not in this one.

        What this turn still queues comes along, and what tasks queue that it wakes: with an
        accept, the hand-out of the accepted run, which saves a second sync before the run starts.
        """
        self._timer = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Commit what is queued, then tell the waiters."""
        self._timer = None
        started = time.monotonic()
        try:
            self._guard()
            self._connection.execute("BEGIN IMMEDIATE")
        except StoreError as error:
            self._refuse(error)
            return
        except sqlite3.Error as error:
            self._not_begun(error, now=started)
            return
        self._busy_since = None
        self._refuses_until = float("-inf")
        batch = self._transact(started)
        self._took(time.monotonic() - started, changes=len(batch))
        self._pace.committed(len(batch), at=time.monotonic())
        for pending in batch:
            pending.answer()
        self._next()

    def _next(self) -> None:
        """Go on with what is queued: at once, or later if the disk is full."""
        wait = self._refuses_until - time.monotonic()
        if wait <= 0 and self._is_full:
            self._is_full = False
            _log.info("store.restored", waiting=len(self._queue))
        if self._queue and self._timer is None:
            self._set_timer(max(0.0, wait))

    def _transact(self, started: float) -> list[_Pending]:
        """Apply and commit as many changes as fit into the budget, at least one."""
        batch: list[_Pending] = []
        try:
            while self._queue and (not batch or time.monotonic() - started < self._budget):
                batch.append(self._queue.popleft())
                if not self._apply(batch[-1]):
                    self._queue.appendleft(batch.pop())
                    break
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if not is_full(error):
                self._fail(batch, error)
                return batch
            return self._put_back(batch, error)

        return batch

    def _put_back(self, batch: list[_Pending], error: sqlite3.Error) -> list[_Pending]:
        """Queue again what is to be kept; return the others, refused."""
        self._filled(error)
        self._queue.extendleft(reversed([pending for pending in batch if pending.keep]))
        refused = [pending for pending in batch if not pending.keep]
        for pending in refused:
            pending.error = self._full_error(error)

        return refused

    def _filled(self, error: sqlite3.Error) -> None:
        """Take note of a full disk."""
        self._refuses_until = time.monotonic() + self._full_pause
        if not self._is_full:
            self._is_full = True
            _log.error("store.full", path=str(self._path), error_message=str(error))

    def _give_up(self) -> None:
        """Fail what there is still no room for: the file is closed now."""
        if not self._queue or not self._is_full:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        kept = [pending for pending in self._queue if pending.keep]
        if kept:
            _log.error("store.changes_dropped", path=str(self._path), changes=len(kept))
        while self._queue:
            pending = self._queue.popleft()
            pending.error = self._full_error()
            pending.answer()

    def _full_error(self, cause: sqlite3.Error | None = None) -> StoreFullError:
        error = StoreFullError(
            "there is no space left for the run store, so nothing new is taken",
            where=str(self._path),
            advice="free space on the disk; what was accepted before is kept and goes on then",
        )
        error.__cause__ = cause

        return error

    def _apply(self, pending: _Pending) -> bool:
        """Run one change inside a savepoint of its own; False is one that must wait for room.

        Raises:
            sqlite3.Error: The database gave up the whole transaction.
        """
        pending.error = None
        if not pending.is_statement:
            self._connection.execute("SAVEPOINT change")
        try:
            pending.result = pending.change(self._connection)
        except Exception as error:
            if not self._connection.in_transaction:
                raise
            if not pending.is_statement:
                self._connection.execute("ROLLBACK TO change")
            if isinstance(error, sqlite3.Error) and is_full(error):
                self._filled(error)
                pending.error = self._full_error(error)
            else:
                pending.error = self._translated(error)
        if not pending.is_statement:
            self._connection.execute("RELEASE change")

        return not (pending.keep and isinstance(pending.error, StoreFullError))

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
        if is_full(error):
            batch = self._put_back(batch, error)
        else:
            self._fail(batch, error)
        for pending in batch:
            pending.answer()
        self._next()

    def _refuse(self, error: StoreError) -> None:
        """Fail all that is queued."""
        batch, self._queue = self._queue, deque()
        for pending in batch:
            pending.error = copy.copy(error)
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
