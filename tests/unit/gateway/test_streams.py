from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from td_runtime.gateway.errors import RecordsInvalidError, StreamNotFoundError
from td_runtime.gateway.platform import Platform, sequencer
from td_runtime.gateway.platform.reading import ReadLimit
from td_runtime.gateway.platform.records import Batch, StoredRecord, StreamPosition, make_batch
from td_runtime.gateway.platform.sequencer import AppendAck
from td_runtime.gateway.platform.storage import Storage
from td_runtime.gateway.platform.stream_config import RETENTION_S
from td_runtime.gateway.platform.streams import Creation, Series, Streams

DAY_MS = 24 * 3600 * 1000


def batch(*bodies: bytes) -> Batch:
    return make_batch([StoredRecord(None, body) for body in bodies])


async def age(storage: Storage, name: str, *, days: int) -> None:
    """Make all of a stream look as if it had been stored days ago."""
    moment = int(time.time() * 1000) - days * DAY_MS

    def change(connection: sqlite3.Connection) -> None:
        (stream,) = connection.execute("SELECT id FROM streams WHERE name = ?", (name,)).fetchone()
        connection.execute("UPDATE streams SET changed_at = ? WHERE id = ?", (moment, stream))
        connection.execute("UPDATE batches SET stored_at = ? WHERE stream_id = ?", (moment, stream))

    await storage.write(change)


async def test_concurrent_appends_share_a_transaction_in_order(streams: Streams) -> None:
    """Batches queued together are numbered in the order they came, each stream on its own."""
    appends = [
        streams.append(f"s{n % 2}", batch(b"%d" % n, b"%d" % n), is_creating=True)
        for n in range(20)
    ]

    acks = await asyncio.gather(*appends)

    assert [a.start.seq_num for a in acks] == [n // 2 * 2 for n in range(20)]
    assert [a.end.seq_num for a in acks] == [n // 2 * 2 + 2 for n in range(20)]


async def test_a_missing_stream_is_created_only_if_asked(streams: Streams) -> None:
    """Without leave to create, an append to a stream that is not there fails."""
    with pytest.raises(StreamNotFoundError):
        await streams.append("none", batch(b"x"), is_creating=False)

    await streams.append("none", batch(b"x"), is_creating=True)
    assert (await streams.tail("none")).seq_num == 1


async def test_states_are_let_go_and_found_again(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more streams than states are kept, numbers still go on."""
    monkeypatch.setattr(sequencer, "STATES_KEPT", 3)

    for expected in range(3):
        acks = await asyncio.gather(
            *(streams.append(f"s{n}", batch(b"x"), is_creating=True) for n in range(10))
        )
        assert {a.start.seq_num for a in acks} == {expected}


async def test_a_time_is_found_in_any_batch(streams: Streams) -> None:
    """The first record at or after a time is found, inside batches, at their edges, after trims."""
    for first in range(0, 60, 3):
        stamps = [(first + n) // 2 * 10 for n in range(3)]
        records = [StoredRecord(stamp, b"") for stamp in stamps]
        await streams.append("s", make_batch(records), is_creating=True)

    def expected(timestamp: int, low: int) -> int:
        return next((n for n in range(low, 60) if n // 2 * 10 >= timestamp), low_or_tail(low))

    def low_or_tail(low: int) -> int:
        return max(low, tail)

    tail = 60
    times = range(0, 310, 5)
    assert [await streams.find("s", t) for t in times] == [expected(t, 0) for t in times]

    trim = make_batch([StoredRecord(None, (31).to_bytes(8, "big"), [(b"", b"trim")])])
    await streams.append("s", trim, is_creating=True)
    found = [await streams.find("s", t) for t in times if t <= 290]
    assert found == [expected(t, 31) for t in times if t <= 290]


async def test_a_wake_follows_the_commit(streams: Streams) -> None:
    """A follower that is woken finds the record; it is woken by its own stream alone."""
    wake, other = asyncio.Event(), asyncio.Event()
    streams.follow("s", wake)
    streams.follow("other", other)

    await streams.append("s", batch(b"x"), is_creating=True)

    assert (wake.is_set(), other.is_set()) == (True, False)
    streams.unfollow("s", wake)
    wake.clear()
    await streams.append("s", batch(b"x"), is_creating=True)
    assert not wake.is_set()


async def test_old_records_go_and_numbers_stay(storage: Storage, streams: Streams) -> None:
    """Records past their retention are deleted; the stream goes on where it was."""
    for _ in range(3):
        await streams.append("s", batch(b"old", b"old"), is_creating=True)
    await age(storage, "s", days=31)
    await streams.append("s", batch(b"new"), is_creating=True)
    await streams.append("t", batch(b"new"), is_creating=True)

    gone = await streams.expire(before_ms=int(time.time() * 1000) - 30 * DAY_MS)
    found = await streams.read("s", 0, ReadLimit())

    assert gone == 6
    assert [(r.seq_num, r.body) for r in found.records] == [(6, b"new")]
    assert (await streams.tail("t")).seq_num == 1


async def test_deletion_goes_in_small_steps(
    storage: Storage, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is old, one transaction deletes a bounded part of it, and all of it goes."""
    monkeypatch.setattr(sequencer, "EXPIRE_STEP", 2)
    monkeypatch.setattr(sequencer, "IDLE_STEP", 2)
    for n in range(5):
        await streams.append(f"s{n}", batch(b"old"), is_creating=True)
        await age(storage, f"s{n}", days=31)

    gone = await streams.expire(before_ms=int(time.time() * 1000) - 30 * DAY_MS)

    assert gone == 5
    assert await streams.counts() == {}


async def test_empty_streams_go_when_they_are_old(storage: Storage, streams: Streams) -> None:
    """A stream that holds nothing and has not changed for the retention time is forgotten."""
    await streams.append("idle", batch(b"x"), is_creating=True)
    await streams.append("busy", batch(b"x"), is_creating=True)
    await age(storage, "idle", days=31)

    await streams.expire(before_ms=int(time.time() * 1000) - 30 * DAY_MS)

    assert await streams.counts() == {"busy": 1}
    with pytest.raises(StreamNotFoundError):
        await streams.tail("idle")
    assert (await streams.append("idle", batch(b"x"), is_creating=True)).start.seq_num == 0


async def test_the_platform_keeps_thirty_days(tmp_path: Path) -> None:
    """The platform's own chore deletes expired tokens and records of more than 30 days."""
    platform = Platform.open(str(tmp_path))
    try:
        token = await platform.tokens.issue(slot="run/r/k", stream="runs/r/k")
        await platform.streams.append("runs/r/k", batch(b"x"), is_creating=False)
        kept = await platform.expire()
        await age(platform._storage, "runs/r/k", days=31)
        await platform.tokens.expire_all()
        gone = await platform.expire()
    finally:
        platform.close()

    with closing(sqlite3.connect(tmp_path / "platform.db")) as connection:
        (tokens,) = connection.execute("SELECT count(*) FROM tokens").fetchone()
    assert (RETENTION_S, kept, gone, tokens) == (30 * 24 * 3600, 0, 1, 0)
    assert token.startswith("tds_")


async def test_nothing_of_a_series_is_stored_after_a_failure(
    storage: Storage, streams: Streams
) -> None:
    """Also when it is the file that refuses: the batches behind the failed one are not stored."""
    series = Series()

    def broken(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO nothing VALUES (1)")

    def append(body: bytes, match_seq_num: int | None = None) -> asyncio.Future[AppendAck]:
        made = make_batch([StoredRecord(None, body)], match_seq_num=match_seq_num)
        return streams.submit("s", made, creation=Creation(), series=series)

    outcomes = await asyncio.gather(
        append(b"0"),
        append(b"1", match_seq_num=9),
        append(b"2"),
        storage.write(broken),
        append(b"3"),
        return_exceptions=True,
    )

    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == [
        "AppendAck",
        "SeqNumMismatchError",
        "SessionBrokenError",
        "StoreUnavailableError",
        "SessionBrokenError",
    ]
    assert (await streams.tail("s")).seq_num == 1


async def test_a_configured_stream_stamps_as_it_says(streams: Streams) -> None:
    """Arrival time, required timestamps and the future are as a stream's configuration says."""
    future = 10**14

    async def stamp(mode: str, timestamp: int | None, *, uncapped: bool = False) -> int:
        config = {"timestamping": {"mode": mode, "uncapped": uncapped}}
        await streams.create(f"{mode}{uncapped}", Creation(json.dumps(config), "again"))
        made = make_batch([StoredRecord(timestamp, b"x")])
        return (await streams.append(f"{mode}{uncapped}", made)).start.timestamp

    assert await stamp("client-prefer", 5) == 5
    assert await stamp("client-prefer", future) < future
    assert await stamp("client-prefer", future, uncapped=True) == future
    assert await stamp("arrival", 5) > 5
    assert await stamp("client-require", 7) == 7
    with pytest.raises(RecordsInvalidError):
        await stamp("client-require", None)


async def test_a_deleted_stream_begins_anew(streams: Streams) -> None:
    """Nothing of a deleted stream is left: number, fence, records, configuration."""
    await streams.create("s", Creation('{"timestamping": {"mode": "arrival"}}'))
    fence = make_batch([StoredRecord(None, b"mine", [(b"", b"fence")])])
    await streams.append("s", fence)

    await streams.delete("s")

    with pytest.raises(StreamNotFoundError):
        await streams.tail("s")
    made = make_batch([StoredRecord(5, b"new")], fencing_token="", match_seq_num=0)
    assert (await streams.append("s", made, is_creating=True)).start == StreamPosition(0, 5)


async def test_a_stream_may_say_how_long_it_keeps_its_records(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream's own retention goes before everybody's, whether it is shorter or for ever."""
    await streams.create("short", Creation('{"retention_policy": {"age": 60}}'))
    await streams.create("ever", Creation('{"retention_policy": {"infinite": {}}}'))
    for name in ("short", "usual", "ever"):
        await streams.append(name, make_batch([StoredRecord(None, b"x")]), is_creating=True)
    later = time.time() + 120
    monkeypatch.setattr("td_runtime.gateway.platform.streams.time.time", lambda: later)

    gone = [await streams.expire(before_ms=moment) for moment in (0, int(later * 1000))]

    left = await streams.read("ever", 0, ReadLimit())
    assert (gone, len(left.records)) == ([1, 1], 1)
