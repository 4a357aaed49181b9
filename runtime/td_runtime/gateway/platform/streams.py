"""Streams: sequencing what is appended, reading it back, waking those who follow.

``Sequencer`` lives on the writer thread and owns the state that numbers are given from;
``Streams`` is the face of it on the event loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import msgspec

from td_runtime.gateway.errors import (
    FencingTokenMismatchError,
    SeqNumMismatchError,
    StreamNotFoundError,
)
from td_runtime.gateway.platform.records import (
    BATCH_BYTES_MAX,
    BATCH_RECORDS_MAX,
    Batch,
    StoredRecord,
    StreamPosition,
)
from td_runtime.gateway.platform.storage import Storage

T = TypeVar("T")

STATES_KEPT: Final = 10_000
EXPIRE_STEP: Final = 200  # batches a transaction: others wait for it
IDLE_STEP: Final = 5_000  # streams looked at in one transaction
NAME_BYTES_MAX: Final = 512

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[StoredRecord]).decode


class AppendAck(msgspec.Struct, frozen=True):
    """Where a batch came to lie: first record, one past the last, and the stream's tail."""

    start: StreamPosition
    end: StreamPosition
    tail: StreamPosition


class SequencedRecord(msgspec.Struct, frozen=True):
    """A record with its place."""

    seq_num: int
    timestamp: int
    body: bytes
    headers: list[tuple[bytes, bytes]] | None
    metered_bytes: int


class ReadLimit(msgspec.Struct, frozen=True):
    """How far a read goes. ``None`` means without bound; ``until`` is exclusive."""

    count: int | None = None
    size: int | None = None
    until: int | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether anything but the caller ends the read."""
        return not (self.count is None and self.size is None and self.until is None)


class ReadResult(msgspec.Struct, frozen=True):
    """Records from one consistent look at a stream.

    ``is_spent`` says that a limit was reached, so that nothing more may follow.
    """

    records: list[SequencedRecord]
    tail: StreamPosition
    is_spent: bool = False

    @property
    def is_at_tail(self) -> bool:
        """Whether nothing lies beyond these records."""
        return bool(self.records) and self.records[-1].seq_num + 1 >= self.tail.seq_num


class _State:
    """What the sequencer knows of one stream."""

    __slots__ = ("fencing_token", "id", "last_timestamp", "next_seq", "trim_seq")

    def __init__(
        self, stream_id: int, next_seq: int, last_timestamp: int, trim_seq: int, fencing_token: str
    ) -> None:
        self.id = stream_id
        self.next_seq = next_seq
        self.last_timestamp = last_timestamp
        self.trim_seq = trim_seq
        self.fencing_token = fencing_token

    @property
    def tail(self) -> StreamPosition:
        return StreamPosition(self.next_seq, self.last_timestamp)


class Sequencer:
    """Gives sequence numbers and timestamps. Everything here runs on the writer thread."""

    def __init__(self) -> None:
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._batches: list[tuple[int, int, int, int, int, bytes]] = []
        self._dirty: dict[int, _State] = {}

    def append(
        self, connection: sqlite3.Connection, name: str, batch: Batch, *, is_creating: bool
    ) -> AppendAck:
        """Sequence a batch; it reaches the file with the next ``flush``.

        Raises:
            StreamNotFoundError: There is no such stream and ``is_creating`` is false.
            ConditionFailedError: The batch's own condition does not hold.
        """
        state = self._load(connection, name)
        if state is None and not is_creating:
            raise StreamNotFoundError(name)
        _check_conditions(state, batch)
        state = state or self._create(connection, name)
        now = int(time.time() * 1000)
        first_timestamp = _stamp(batch.records, now=now, floor=state.last_timestamp)
        start = StreamPosition(state.next_seq, first_timestamp)
        self._store(state, batch.records, now)
        self._obey(connection, state, batch, start.seq_num)

        return AppendAck(start, state.tail, state.tail)

    def ensure(self, connection: sqlite3.Connection, name: str) -> None:
        """Create the stream if it is not there."""
        if self._load(connection, name) is None:
            self._create(connection, name)

    def expire(self, connection: sqlite3.Connection, *, before_ms: int) -> int:
        """Delete one step's worth of what was stored before a time.

        Batch ids rise with the time of storing, so the oldest come first without an index.

        Returns:
            How many records went; 0 when there are none left to delete.
        """
        oldest = connection.execute(
            "SELECT id, count, stored_at FROM batches ORDER BY id LIMIT ?", (EXPIRE_STEP,)
        ).fetchall()
        old = [(batch_id, count) for batch_id, count, stored_at in oldest if stored_at < before_ms]
        connection.executemany("DELETE FROM batches WHERE id = ?", [(row[0],) for row in old])

        return sum(count for _, count in old)

    def forget_idle(
        self, connection: sqlite3.Connection, *, before_ms: int, first_id: int
    ) -> int | None:
        """Delete streams that hold nothing and have not changed since a time, one step's worth.

        Returns:
            The id to go on with, None when all were looked at.
        """
        self.flush(connection)
        self._states.clear()
        connection.execute(
            "DELETE FROM streams WHERE id >= ? AND id < ? AND changed_at < ? AND NOT EXISTS"
            " (SELECT 1 FROM batches WHERE stream_id = streams.id)",
            (first_id, first_id + IDLE_STEP, before_ms),
        )
        (last_id,) = connection.execute("SELECT coalesce(max(id), 0) FROM streams").fetchone()
        following = first_id + IDLE_STEP

        return following if following <= last_id else None

    def flush(self, connection: sqlite3.Connection) -> None:
        """Write the pending batches and the changed states."""
        if not self._dirty:
            return
        connection.executemany(
            "INSERT INTO batches (stream_id, first_seq, count, last_timestamp, stored_at, payload)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            self._batches,
        )
        now = int(time.time() * 1000)
        connection.executemany(
            "UPDATE streams SET next_seq = ?, last_timestamp = ?, trim_seq = ?,"
            " fencing_token = ?, changed_at = ? WHERE id = ?",
            [
                (s.next_seq, s.last_timestamp, s.trim_seq, s.fencing_token, now, s.id)
                for s in self._dirty.values()
            ],
        )
        self._batches.clear()
        self._dirty.clear()

    def forget(self) -> None:
        """Drop all state after a rollback: it numbered records that do not exist."""
        self._states.clear()
        self._batches.clear()
        self._dirty.clear()

    def _load(self, connection: sqlite3.Connection, name: str) -> _State | None:
        state = self._states.get(name)
        if state is not None:
            self._states.move_to_end(name)
            return state
        row = connection.execute(
            "SELECT id, next_seq, last_timestamp, trim_seq, fencing_token FROM streams"
            " WHERE name = ?",
            (name,),
        ).fetchone()

        return None if row is None else self._keep(name, _State(*row))

    def _create(self, connection: sqlite3.Connection, name: str) -> _State:
        cursor = connection.execute(
            "INSERT INTO streams (name, next_seq, last_timestamp, trim_seq, fencing_token,"
            " changed_at) VALUES (?, 0, 0, 0, '', ?)",
            (name, int(time.time() * 1000)),
        )
        assert cursor.lastrowid is not None  # noqa: S101  an INSERT that did not raise has one

        return self._keep(name, _State(cursor.lastrowid, 0, 0, 0, ""))

    def _keep(self, name: str, state: _State) -> _State:
        self._states[name] = state
        if len(self._states) > STATES_KEPT:
            self._drop_oldest()

        return state

    def _drop_oldest(self) -> None:
        name, state = next(iter(self._states.items()))
        # A state with pending rows is the only place that knows them; the next flush frees it.
        if state.id not in self._dirty:
            del self._states[name]

    def _store(self, state: _State, records: list[StoredRecord], now: int) -> None:
        last_timestamp = records[-1].timestamp or 0
        self._batches.append(
            (state.id, state.next_seq, len(records), last_timestamp, now, _encode(records))
        )
        state.next_seq += len(records)
        state.last_timestamp = last_timestamp
        self._dirty[state.id] = state

    def _obey(
        self, connection: sqlite3.Connection, state: _State, batch: Batch, first_seq: int
    ) -> None:
        if batch.fence_to is not None:
            state.fencing_token = batch.fence_to
        if batch.trim_to is None:
            return
        index, target = batch.trim_to
        state.trim_seq = max(state.trim_seq, min(target, first_seq + index))
        self.flush(connection)
        connection.execute(
            "DELETE FROM batches WHERE stream_id = ? AND first_seq + count <= ?",
            (state.id, state.trim_seq),
        )


class Streams:
    """All streams, from the event loop.

    Reads run on one thread of their own, over a connection of their own, so that a cold read
    from disk does not hold up the loop.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._sequencer = Sequencer()
        storage.join(self._sequencer)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="platform-reader")
        self._connection = storage.connect_reader()
        self._followers: dict[str, set[asyncio.Event]] = {}

    async def append(self, name: str, batch: Batch, *, is_creating: bool) -> AppendAck:
        """Append a batch atomically; returns when it is on disk.

        Raises:
            StreamNotFoundError: There is no such stream and ``is_creating`` is false.
            ConditionFailedError: The batch's own condition does not hold.
            StoreUnavailableError: Nothing was stored.
        """
        return await self._storage.write(
            lambda connection: self._sequencer.append(
                connection, name, batch, is_creating=is_creating
            ),
            after=lambda _ack: self._wake(name),
        )

    def ensure(self, connection: sqlite3.Connection, name: str) -> None:
        """Create a stream as part of somebody's write on the writer thread."""
        self._sequencer.ensure(connection, name)

    async def tail(self, name: str) -> StreamPosition:
        """The next sequence number and the last timestamp.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        return (await self._on_reader(lambda: _look_up(self._connection, name)))[1]

    async def tail_or_create(self, name: str) -> StreamPosition:
        """The tail of a stream, which is created if it is not there.

        Raises:
            StoreUnavailableError: It was not there and could not be created.
        """
        try:
            return await self.tail(name)
        except StreamNotFoundError:
            await self._storage.write(lambda connection: self.ensure(connection, name))
            return await self.tail(name)

    async def read(self, name: str, start: int, limit: ReadLimit) -> ReadResult:
        """Read from sequence number ``start``, at most 1000 records and 1 MiB at a time.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        return await self._on_reader(lambda: _read(self._connection, name, start, limit))

    async def find(self, name: str, timestamp: int) -> int:
        """The first sequence number at or after a timestamp; the tail if there is none.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        return await self._on_reader(lambda: _find(self._connection, name, timestamp))

    async def counts(self) -> dict[str, int]:
        """How many records each stream has ever taken; the 10,000 newest streams."""
        rows = await self._on_reader(
            lambda: self._connection.execute(
                "SELECT name, next_seq FROM streams ORDER BY id DESC LIMIT 10000"
            ).fetchall()
        )
        return {name: count for name, count in rows if count}

    async def expire(self, *, before_ms: int) -> int:
        """Delete what was stored before a time, in small steps; returns how many records."""
        total = 0
        while step := await self._storage.write(
            lambda connection: self._sequencer.expire(connection, before_ms=before_ms)
        ):
            total += step
        first_id: int | None = 0
        while first_id is not None:
            forget = partial(self._sequencer.forget_idle, before_ms=before_ms, first_id=first_id)
            first_id = await self._storage.write(forget)

        return total

    def follow(self, name: str, wake: asyncio.Event) -> None:
        """Set ``wake`` at every append to the stream until ``unfollow``."""
        self._followers.setdefault(name, set()).add(wake)

    def unfollow(self, name: str, wake: asyncio.Event) -> None:
        """Stop waking."""
        followers = self._followers.get(name, set())
        followers.discard(wake)
        if not followers:
            self._followers.pop(name, None)

    def wake_all(self) -> None:
        """Wake every follower, so that it sees that the gateway is stopping."""
        for name in list(self._followers):
            self._wake(name)

    def close(self) -> None:
        """Stop the reader; call before the storage is closed."""
        self._reader.shutdown()
        self._connection.close()

    def _wake(self, name: str) -> None:
        for wake in self._followers.get(name, ()):
            wake.set()

    async def _on_reader(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, function)


def _check_conditions(state: _State | None, batch: Batch) -> None:
    current = state.fencing_token if state else ""
    if batch.fencing_token is not None and batch.fencing_token != current:
        raise FencingTokenMismatchError(current)
    expected = state.next_seq if state else 0
    if batch.match_seq_num is not None and batch.match_seq_num != expected:
        raise SeqNumMismatchError(expected)


def _stamp(records: list[StoredRecord], *, now: int, floor: int) -> int:
    """Give every record its timestamp: the client's, capped at arrival, never falling."""
    for record in records:
        timestamp = now if record.timestamp is None else min(record.timestamp, now)
        record.timestamp = floor = max(timestamp, floor)

    return records[0].timestamp or 0


def _look_up(connection: sqlite3.Connection, name: str) -> tuple[int, StreamPosition, int]:
    row = connection.execute(
        "SELECT id, next_seq, last_timestamp, trim_seq FROM streams WHERE name = ?", (name,)
    ).fetchone()
    if row is None:
        raise StreamNotFoundError(name)

    return row[0], StreamPosition(row[1], row[2]), row[3]


def _read(connection: sqlite3.Connection, name: str, start: int, limit: ReadLimit) -> ReadResult:
    connection.execute("BEGIN")  # one snapshot for tail and records
    try:
        stream_id, tail, trim_seq = _look_up(connection, name)
        records = _walk(connection, stream_id, max(start, trim_seq))
        taken, is_spent = _take(records, limit)
    finally:
        connection.execute("COMMIT")

    return ReadResult(taken, tail, is_spent)


def _walk(connection: sqlite3.Connection, stream_id: int, start: int) -> Iterator[SequencedRecord]:
    rows = connection.execute(
        "SELECT first_seq, payload FROM batches WHERE stream_id = ? AND first_seq >="
        " coalesce((SELECT max(first_seq) FROM batches WHERE stream_id = ? AND first_seq <= ?),"
        " 0) ORDER BY first_seq",
        (stream_id, stream_id, start),
    )
    for first_seq, payload in rows:
        for seq_num, record in enumerate(_decode(payload), first_seq):
            if seq_num >= start:
                yield _sequence(seq_num, record)


def _sequence(seq_num: int, record: StoredRecord) -> SequencedRecord:
    return SequencedRecord(
        seq_num, record.timestamp or 0, record.body, record.headers, record.metered_bytes
    )


def _take(
    records: Iterator[SequencedRecord], limit: ReadLimit
) -> tuple[list[SequencedRecord], bool]:
    """Take what fits one read; the second value says that a limit of the caller's was met."""
    taken: list[SequencedRecord] = []
    size = 0
    for record in records:
        size += record.metered_bytes
        if _is_beyond(limit, record, len(taken), size):
            return taken, True
        if len(taken) == BATCH_RECORDS_MAX or (taken and size > BATCH_BYTES_MAX):
            return taken, False
        taken.append(record)

    return taken, _is_filled(limit, len(taken), size)


def _is_beyond(limit: ReadLimit, record: SequencedRecord, count: int, size: int) -> bool:
    if limit.until is not None and record.timestamp >= limit.until:
        return True
    if limit.count is not None and count >= limit.count:
        return True

    return limit.size is not None and size > limit.size


def _is_filled(limit: ReadLimit, count: int, size: int) -> bool:
    if limit.count is not None and count >= limit.count:
        return True

    return limit.size is not None and size >= limit.size


def _find(connection: sqlite3.Connection, name: str, timestamp: int) -> int:
    connection.execute("BEGIN")
    try:
        stream_id, tail, trim_seq = _look_up(connection, name)
        row = connection.execute(
            "SELECT first_seq FROM batches WHERE stream_id = ? AND last_timestamp >= ?"
            " ORDER BY first_seq LIMIT 1",
            (stream_id, timestamp),
        ).fetchone()
        if row is None:
            return tail.seq_num
        records = _walk(connection, stream_id, max(row[0], trim_seq))
        return next((r.seq_num for r in records if r.timestamp >= timestamp), tail.seq_num)
    finally:
        connection.execute("COMMIT")
