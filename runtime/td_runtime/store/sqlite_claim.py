"""Choosing which runs are handed out, reading no more rows than are taken or moved.

Each queue is an index range in the order of hand-out; the ranges are merged. A run at its front
that cannot start is moved out of it, once: parked while its concurrency key is at its limit (the
trigger `runs_make_room` lets it back in), shelved while its task is not registered.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing

from td_runtime.store import sqlite_text as sql
from td_runtime.store.records import QueueLimits

__all__ = ["Choice", "choose", "choose_named", "reconsider"]

_MOST_MOVED = 500
"""Runs that one hand-out moves aside; more are left to the next, so that none takes long."""
_ALL = -1

Candidate = tuple[float, int, str, str, str | None]
"""Rank, number, task, queue, concurrency key."""


class Choice:
    """The runs that one hand-out takes, and those it moves aside.

    Args:
        connection: In a transaction.
        queues: What is handed out from, and its limits.
        tasks: The registered tasks; None: any.
        capacity: Most runs that are taken.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        queues: Mapping[str, QueueLimits],
        *,
        tasks: Collection[str] | None,
        capacity: int,
    ) -> None:
        self._connection = connection
        self._queues = queues
        self._tasks = tasks
        self._capacity = capacity
        self._room: dict[str, int] = {}
        self._key_room: dict[tuple[str, str], int] = {}
        self.taken: list[int] = []
        self.parked: list[tuple[int]] = []
        self.shelved: list[tuple[int]] = []

    @property
    def is_over(self) -> bool:
        """Whether no more are to be looked at."""
        moved = len(self.parked) + len(self.shelved)

        return len(self.taken) >= self._capacity or moved >= _MOST_MOVED

    def room(self, queue: str) -> int:
        """Return how many more runs of a queue may start."""
        if queue not in self._room:
            limits = self._queues.get(queue)
            most = self._capacity
            if limits is None:
                most = 0
            elif limits.concurrency is not None:
                (executing,) = self._connection.execute(sql.OF_QUEUE, (queue,)).fetchone()
                most = min(most, limits.concurrency - executing)
            self._room[queue] = most

        return self._room[queue]

    def look_at(self, candidate: Candidate) -> None:
        """Take a run, or move it aside. There is room in its queue."""
        _, seq, task, queue, key = candidate
        if self._tasks is not None and task not in self._tasks:
            self.shelved.append((seq,))
        elif key is not None and not self._takes_key(queue, key):
            self.parked.append((seq,))
        else:
            self._room[queue] -= 1
            self.taken.append(seq)

    def move_aside(self) -> None:
        """Write which runs are passed over from now on."""
        self._connection.executemany(sql.PARK, self.parked)
        self._connection.executemany(sql.SHELVE, self.shelved)

    def _takes_key(self, queue: str, key: str) -> bool:
        """Count a run of a key, if there is room for it."""
        most = self._queues[queue].per_key
        if most is None:
            return True
        if (queue, key) not in self._key_room:
            (executing,) = self._connection.execute(sql.OF_KEY, (queue, key)).fetchone()
            self._key_room[queue, key] = most - executing
        if self._key_room[queue, key] <= 0:
            return False
        self._key_room[queue, key] -= 1

        return True


def choose(
    connection: sqlite3.Connection,
    queues: Mapping[str, QueueLimits],
    capacity: int,
    *,
    tasks: Collection[str] | None = None,
    hold: Iterable[str] = (),
) -> Choice:
    """Choose among all that are ready, those first in order that may start.

    Args:
        connection: In a transaction.
        queues: What is handed out from, and its limits.
        capacity: Most runs that are chosen.
        tasks: The registered tasks; None: any.
        hold: Ids of runs that are left where they are.
    """
    if any(limits.per_key is not None for limits in queues.values()):
        connection.execute(sql.MAKE_ROOM)
    choice = Choice(connection, queues, tasks=tasks, capacity=capacity)
    held = {candidate[1] for candidate in _named(connection, hold)}
    with ExitStack() as stack:
        # An open cursor is an open read; it must not outlive the choice, since rows change next.
        ranges = [
            stack.enter_context(closing(_range(connection, queue, choice)))
            for queue in queues
            if choice.room(queue) > 0
        ]
        _fill(choice, (each for each in heapq.merge(*ranges) if each[1] not in held))

    return choice


def choose_named(
    connection: sqlite3.Connection,
    run_ids: Iterable[str],
    queues: Mapping[str, QueueLimits],
    capacity: int,
    *,
    tasks: Collection[str] | None = None,
) -> Choice:
    """Choose among these runs, those first in order that may start; no run is moved aside."""
    choice = Choice(connection, queues, tasks=tasks, capacity=capacity)
    candidates = sorted(_named(connection, run_ids), key=lambda candidate: candidate[:2])
    _fill(choice, (each for each in candidates if choice.room(each[3]) > 0))
    choice.parked.clear()
    choice.shelved.clear()

    return choice


def reconsider(connection: sqlite3.Connection, queues: Mapping[str, QueueLimits]) -> None:
    """Put back what was moved aside, as far as it may start by the limits as they are now."""
    connection.execute(sql.UNSHELVE)
    for queue, key in connection.execute(sql.PARKED_KEYS).fetchall():
        limits = queues.get(queue)
        most = None if limits is None else limits.per_key
        connection.execute(sql.UNPARK, (queue, key, _ALL if most is None else most))


def _fill(choice: Choice, candidates: Iterator[Candidate]) -> None:
    while not choice.is_over and (candidate := next(candidates, None)) is not None:
        choice.look_at(candidate)


def _range(
    connection: sqlite3.Connection, queue: str, choice: Choice
) -> Generator[Candidate, None, None]:
    """Yield the ready runs of a queue, in order, while there is room in it."""
    with closing(connection.execute(sql.READY_OF_QUEUE, (queue,))) as rows:
        for row in rows:
            yield row
            if choice.room(queue) <= 0:
                return


def _named(connection: sqlite3.Connection, run_ids: Iterable[str]) -> list[Candidate]:
    found = (connection.execute(sql.READY_BY_ID, (run_id,)).fetchone() for run_id in run_ids)

    return [row for row in found if row is not None]
