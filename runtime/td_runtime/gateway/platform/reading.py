"""Reading streams back: plain functions over a read-only connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import msgspec

from td_runtime.gateway.errors import StreamNotFoundError
from td_runtime.gateway.platform.records import (
    BATCH_BYTES_MAX,
    BATCH_RECORDS_MAX,
    StoredRecord,
    StreamPosition,
)

_decode = msgspec.msgpack.Decoder(list[StoredRecord]).decode


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


def look_up(connection: sqlite3.Connection, name: str) -> tuple[int, StreamPosition, int]:
    """A stream's id, its tail, and the number below which it is trimmed.

    Raises:
        StreamNotFoundError: There is no such stream.
    """
    row = connection.execute(
        "SELECT id, next_seq, last_timestamp, trim_seq FROM streams WHERE name = ?", (name,)
    ).fetchone()
    if row is None:
        raise StreamNotFoundError(name)

    return row[0], StreamPosition(row[1], row[2]), row[3]


def read(connection: sqlite3.Connection, name: str, start: int, limit: ReadLimit) -> ReadResult:
    """Records from ``start`` on, at most 1000 and 1 MiB of them.

    Raises:
        StreamNotFoundError: There is no such stream.
    """
    with _snapshot(connection):
        stream_id, tail, trim_seq = look_up(connection, name)
        with closing(_walk(connection, stream_id, max(start, trim_seq))) as records:
            taken, is_spent = _take(records, limit)

    return ReadResult(taken, tail, is_spent)


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All reads within see the store at one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def _walk(
    connection: sqlite3.Connection, stream_id: int, start: int
) -> Generator[SequencedRecord, None, None]:
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


def find(connection: sqlite3.Connection, name: str, timestamp: int) -> int:
    """The first sequence number at or after a timestamp; the tail if there is none.

    Raises:
        StreamNotFoundError: There is no such stream.
    """
    with _snapshot(connection):
        stream_id, tail, trim_seq = look_up(connection, name)
        first_seq = _bisect(connection, stream_id, trim_seq, tail.seq_num, timestamp)
        with closing(_walk(connection, stream_id, first_seq)) as records:
            return next((r.seq_num for r in records if r.timestamp >= timestamp), tail.seq_num)


def _bisect(
    connection: sqlite3.Connection, stream_id: int, low: int, high: int, timestamp: int
) -> int:
    """Where the first batch begins that reaches a timestamp; timestamps never fall."""
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(
            "SELECT first_seq, count, last_timestamp FROM batches"
            " WHERE stream_id = ? AND first_seq <= ? ORDER BY first_seq DESC LIMIT 1",
            (stream_id, middle),
        ).fetchone()
        if row is None:  # deleted with age
            low = middle + 1
        elif row[2] < timestamp:
            low = row[0] + row[1]
        else:
            high = row[0]

    return low
