"""The sequencer: gives numbers and timestamps, and writes batches. Lives on the writer thread."""

from __future__ import annotations

import sqlite3
import time
from collections import OrderedDict
from typing import Final

import msgspec

from td_runtime.gateway.errors import (
    FencingTokenMismatchError,
    NameTakenError,
    RecordsInvalidError,
    SeqNumMismatchError,
    StreamNotFoundError,
)
from td_runtime.gateway.platform.records import (
    TIMESTAMP_MAX,
    Batch,
    StoredRecord,
    StreamPosition,
)
from td_runtime.gateway.platform.stream_config import DEFAULT, StreamConfig, parse_config

STATES_KEPT: Final = 10_000
EXPIRE_STEP: Final = 200  # batches a transaction: others wait for it
KEEPS_ITS_OWN_TIME: Final = "config LIKE '%retention_policy%'"
IDLE_STEP: Final = 5_000  # streams looked at in one transaction

_encode = msgspec.msgpack.Encoder().encode


class AppendAck(msgspec.Struct, frozen=True):
    """Where a batch came to lie: first record, one past the last, and the stream's tail."""

    start: StreamPosition
    end: StreamPosition
    tail: StreamPosition


class Creation(msgspec.Struct, frozen=True):
    """How a stream is made: its configuration as JSON, and the request that asked for it."""

    config: str = "{}"
    request_token: str | None = None


PLAIN: Final = Creation()


class _State:
    """What the sequencer knows of one stream."""

    __slots__ = ("config", "fencing_token", "id", "last_timestamp", "next_seq", "trim_seq")

    def __init__(
        self,
        stream_id: int,
        next_seq: int,
        last_timestamp: int,
        trim_seq: int,
        fencing_token: str,
        config: str,
    ) -> None:
        self.id = stream_id
        self.next_seq = next_seq
        self.last_timestamp = last_timestamp
        self.trim_seq = trim_seq
        self.fencing_token = fencing_token
        self.config = parse_config(config)

    @property
    def tail(self) -> StreamPosition:
        return StreamPosition(self.next_seq, self.last_timestamp)


class Sequencer:
    """Gives sequence numbers and timestamps. Everything here runs on the writer thread.

    Should another process write to the file, as a predecessor may that is just ending, the first
    number given from stale state meets one that is taken: the file refuses it, the transaction is
    rolled back, and ``forget`` has the state read anew.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._batches: list[tuple[int, int, int, int, int, bytes]] = []
        self._dirty: dict[int, _State] = {}

    def append(
        self,
        connection: sqlite3.Connection,
        name: str,
        batch: Batch,
        *,
        creation: Creation | None,
    ) -> AppendAck:
        """Sequence a batch; it reaches the file with the next ``flush``.

        Raises:
            StreamNotFoundError: There is no such stream and ``creation`` is None.
            ConditionFailedError: The batch's own condition does not hold.
        """
        state = self._load(connection, name)
        if state is None and creation is None:
            raise StreamNotFoundError(name)
        _check_conditions(state, batch)
        if state is not None and state.config is not DEFAULT:
            _check_timestamps(state.config, batch.records)
        state = state or self._create(connection, name, creation or PLAIN)
        now = int(time.time() * 1000)
        first_timestamp = _stamp(
            batch.records, now=now, floor=state.last_timestamp, config=state.config
        )
        start = StreamPosition(state.next_seq, first_timestamp)
        self._store(state, batch.records, now)
        self._obey(connection, state, batch, start.seq_num)

        return AppendAck(start, state.tail, state.tail)

    def ensure(
        self, connection: sqlite3.Connection, name: str, creation: Creation | None = None
    ) -> None:
        """Create the stream if it is not there."""
        if self._load(connection, name) is None:
            self._create(connection, name, creation or PLAIN)

    def create(self, connection: sqlite3.Connection, name: str, creation: Creation) -> int:
        """Create a stream that is not there; returns when, in milliseconds.

        Raises:
            NameTakenError: It is there, and another request made it.
        """
        made = _look_up_made(connection, name)
        if made is None:
            self._create(connection, name, creation)
            made = _look_up_made(connection, name)
            assert made is not None  # noqa: S101  just created
        elif creation.request_token is None or creation.request_token != made[1]:
            raise NameTakenError("the stream already exists")

        return made[0]

    def configure(self, connection: sqlite3.Connection, name: str, config: str) -> None:
        """Give a stream another configuration.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        state = self._load(connection, name)
        if state is None:
            raise StreamNotFoundError(name)
        connection.execute("UPDATE streams SET config = ? WHERE id = ?", (config, state.id))
        state.config = parse_config(config)

    def delete(self, connection: sqlite3.Connection, name: str) -> None:
        """Delete a stream and all it holds.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        state = self._load(connection, name)
        if state is None:
            raise StreamNotFoundError(name)
        self.flush(connection)
        self._states.pop(name, None)
        connection.execute("DELETE FROM batches WHERE stream_id = ?", (state.id,))
        connection.execute("DELETE FROM streams WHERE id = ?", (state.id,))

    def expire_stream(
        self, connection: sqlite3.Connection, stream_id: int, *, before_ms: int
    ) -> int:
        """Delete one step's worth of what a stream stored before a time; returns how many records.

        For a stream that says itself how long it keeps its records.
        """
        oldest = connection.execute(
            "SELECT id, count, stored_at FROM batches WHERE stream_id = ? ORDER BY first_seq"
            " LIMIT ?",
            (stream_id, EXPIRE_STEP),
        ).fetchall()
        return _delete_old(connection, oldest, before_ms)

    def expire(self, connection: sqlite3.Connection, *, before_ms: int) -> int:
        """Delete one step's worth of what was stored before a time.

        Batch ids rise with the time of storing, so the oldest come first without an index. Streams
        that say themselves how long they keep their records are left to ``expire_stream``.

        Returns:
            How many records went; 0 when there are none left to delete.
        """
        oldest = connection.execute(
            "SELECT id, count, stored_at FROM batches WHERE stream_id NOT IN"  # noqa: S608  constants
            f" (SELECT id FROM streams WHERE {KEEPS_ITS_OWN_TIME}) ORDER BY id LIMIT ?",
            (EXPIRE_STEP,),
        ).fetchall()
        return _delete_old(connection, oldest, before_ms)

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
            "SELECT id, next_seq, last_timestamp, trim_seq, fencing_token, config FROM streams"
            " WHERE name = ?",
            (name,),
        ).fetchone()

        return None if row is None else self._keep(name, _State(*row))

    def _create(self, connection: sqlite3.Connection, name: str, creation: Creation) -> _State:
        now = int(time.time() * 1000)
        cursor = connection.execute(
            "INSERT INTO streams (name, next_seq, last_timestamp, trim_seq, fencing_token,"
            " changed_at, created_at, config, request_token) VALUES (?, 0, 0, 0, '', ?, ?, ?, ?)",
            (name, now, now, creation.config, creation.request_token),
        )
        assert cursor.lastrowid is not None  # noqa: S101  an INSERT that did not raise has one

        return self._keep(name, _State(cursor.lastrowid, 0, 0, 0, "", creation.config))

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


def _look_up_made(connection: sqlite3.Connection, name: str) -> tuple[int, str | None] | None:
    """When a stream was made, and by which request."""
    row: tuple[int, str | None] | None = connection.execute(
        "SELECT created_at, request_token FROM streams WHERE name = ?", (name,)
    ).fetchone()

    return row


def _delete_old(
    connection: sqlite3.Connection, oldest: list[tuple[int, int, int]], before_ms: int
) -> int:
    old = [(batch_id, count) for batch_id, count, stored_at in oldest if stored_at < before_ms]
    connection.executemany("DELETE FROM batches WHERE id = ?", [(row[0],) for row in old])

    return sum(count for _, count in old)


def _check_conditions(state: _State | None, batch: Batch) -> None:
    current = state.fencing_token if state else ""
    if batch.fencing_token is not None and batch.fencing_token != current:
        raise FencingTokenMismatchError(current)
    expected = state.next_seq if state else 0
    if batch.match_seq_num is not None and batch.match_seq_num != expected:
        raise SeqNumMismatchError(expected)


def _check_timestamps(config: StreamConfig, records: list[StoredRecord]) -> None:
    if config.mode == "client-require" and any(r.timestamp is None for r in records):
        raise RecordsInvalidError("this stream requires a timestamp of every record")


def _stamp(records: list[StoredRecord], *, now: int, floor: int, config: StreamConfig) -> int:
    """Give every record its timestamp: the client's, capped at arrival, never falling."""
    if config is not DEFAULT:
        return _stamp_as_configured(records, now=now, floor=floor, config=config)
    for record in records:
        timestamp = now if record.timestamp is None else min(record.timestamp, now)
        record.timestamp = floor = max(timestamp, floor)

    return records[0].timestamp or 0


def _stamp_as_configured(
    records: list[StoredRecord], *, now: int, floor: int, config: StreamConfig
) -> int:
    latest = TIMESTAMP_MAX if config.is_uncapped else now
    for record in records:
        asked = None if config.mode == "arrival" else record.timestamp
        record.timestamp = floor = max(now if asked is None else min(asked, latest), floor)

    return records[0].timestamp or 0
