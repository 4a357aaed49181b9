from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from td_runtime.gateway.errors import (
    GatewayError,
    StoreOpenError,
    StoreUnavailableError,
    StreamNotFoundError,
)
from td_runtime.gateway.platform.reading import ReadLimit
from td_runtime.gateway.platform.records import Batch, StoredRecord, make_batch
from td_runtime.gateway.platform.storage import _SCRIPTS, Storage
from td_runtime.gateway.platform.streams import Streams


def batch(*bodies: bytes) -> Batch:
    return make_batch([StoredRecord(None, body) for body in bodies])


def create(name: str):
    return lambda connection: connection.execute(f"CREATE TABLE {name} (x)").rowcount


def tables(storage: Storage) -> set[str]:
    with closing(storage.connect_reader()) as reader:
        rows = reader.execute("SELECT name FROM sqlite_master WHERE name LIKE 't%'").fetchall()
    return {name for (name,) in rows} - {"tokens", "tokens_by_slot", "tokens_by_expiry"}


async def test_a_bad_write_fails_alone(storage: Storage) -> None:
    """Of writes that share a transaction the broken one fails and the others are committed."""
    writes = [storage.write(create(name)) for name in ("t1", "t2", "t1", "t3")]

    results = await asyncio.gather(*writes, return_exceptions=True)

    assert [isinstance(r, StoreUnavailableError) for r in results] == [False, False, True, False]
    assert isinstance(results[2].__cause__, sqlite3.OperationalError)
    assert tables(storage) == {"t1", "t2", "t3"}


async def test_a_refusal_undoes_nothing(storage: Storage) -> None:
    """A domain error goes to its caller; what shares the transaction is committed at once."""

    def refuse(_connection: sqlite3.Connection) -> None:
        raise StreamNotFoundError("x")

    results = await asyncio.gather(
        storage.write(create("t1")), storage.write(refuse), return_exceptions=True
    )

    assert isinstance(results[1], StreamNotFoundError)
    assert tables(storage) == {"t1"}


async def test_after_runs_though_the_caller_left(storage: Storage) -> None:
    """A cancelled caller's write is committed, and others are told of it."""
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    write = storage.write(create("t1"), after=told.set_result)

    write.cancel()

    await asyncio.wait_for(told, 10)
    assert tables(storage) == {"t1"}


async def test_an_after_that_raises_strands_nobody(storage: Storage) -> None:
    """Its caller gets the error, and those whose writes were committed with it their answers."""
    reported: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: reported.append(context["exception"])
    )
    broken = ValueError("taking note failed")

    def fail(_result: int) -> None:
        raise broken

    writes = [storage.write(create("t1"), after=fail), storage.write(create("t2"))]
    results = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), 10)

    assert results == [broken, -1]
    assert reported == [broken]


async def test_a_reader_cannot_write(storage: Storage) -> None:
    """Only the writer's connection may change the file."""
    with (
        closing(storage.connect_reader()) as reader,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        reader.execute("DELETE FROM streams")


async def test_close_commits_what_is_queued(tmp_path: Path) -> None:
    """Writes queued before the close are on disk after it; later ones are refused."""
    storage = Storage.open(str(tmp_path / "platform.db"))
    for n in range(100):
        storage.write(create(f"t{n}"))
    storage.close()

    with pytest.raises(StoreUnavailableError):
        await storage.write(create("late"))
    with closing(sqlite3.connect(tmp_path / "platform.db")) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name GLOB 't[0-9]*'"
        ).fetchone()
    assert count == 100


async def test_the_file_is_in_the_durable_mode(storage: Storage) -> None:
    """The writer's connection is in WAL mode with full synchronisation."""
    modes = await storage.write(
        lambda c: [c.execute(f"PRAGMA {n}").fetchone()[0] for n in ("journal_mode", "synchronous")]
    )

    assert modes == ["wal", 2]


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """A path that cannot be created is an error that names it."""
    path = str(tmp_path / "missing" / "platform.db")

    with pytest.raises(StoreOpenError, match="missing"):
        Storage.open(path)


async def test_two_processes_on_one_file_do_not_overlap(tmp_path: Path) -> None:
    """Should two writers meet, as at a hand-over, numbers stay gapless and every record is kept."""
    storages = [Storage.open(str(tmp_path / "platform.db")) for _ in range(2)]
    writers = [Streams(storage) for storage in storages]
    try:
        acks = [
            await writers[n // 2 % 2].append("s", batch(b"%d" % n), is_creating=True)
            for n in range(12)
        ]
        acks += await asyncio.gather(
            *(writers[n % 2].append("s", batch(b"%d" % n), is_creating=True) for n in range(12, 40))
        )
        found = await writers[0].read("s", 0, ReadLimit())
    finally:
        for streams, storage in zip(writers, storages, strict=True):
            streams.close()
            storage.close()

    assert sorted(a.start.seq_num for a in acks) == list(range(40))
    assert {r.body: r.seq_num for r in found.records} == {
        b"%d" % n: ack.start.seq_num for n, ack in enumerate(acks)
    }


async def test_a_full_disk_costs_no_numbers(storage: Storage, streams: Streams) -> None:
    """Appends that do not fit are refused whole; once there is room numbers go on gaplessly."""
    await streams.append("s", batch(b"first"), is_creating=True)
    (pages,) = await storage.write(lambda c: c.execute("PRAGMA page_count").fetchone())
    await storage.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())

    big = batch(b"x" * 100_000)
    attempts = [streams.append("s", big, is_creating=True) for _ in range(3)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    await storage.write(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone())
    ack = await streams.append("s", batch(b"second"), is_creating=True)
    found = await streams.read("s", 0, ReadLimit())

    assert all(isinstance(result, StoreUnavailableError) for result in results)
    assert all(isinstance(result, GatewayError) for result in results)
    assert ack.start.seq_num == 1
    assert [(r.seq_num, r.body) for r in found.records] == [(0, b"first"), (1, b"second")]


async def test_a_file_of_an_older_version_is_brought_up(tmp_path: Path) -> None:
    """What version 1 stored is there after the file was opened by this version."""
    path = str(tmp_path / "platform.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{_SCRIPTS[0]} PRAGMA user_version = 1;")
        connection.execute("INSERT INTO streams VALUES (1, 'runs/r/old', 7, 5000, 2, 'f', 6000)")
        connection.commit()

    storage = Storage.open(path)
    streams = Streams(storage)
    try:
        tail = await streams.tail("runs/r/old")
        ack = await streams.append("runs/r/old", batch(b"new"), is_creating=False)
    finally:
        streams.close()
        storage.close()

    assert (tail.seq_num, tail.timestamp, ack.start.seq_num) == (7, 5000, 7)


async def test_a_failed_write_says_so_before_the_next_one_runs(storage: Storage) -> None:
    """`on_failed` is called on the writer thread between the failed write and its successor."""
    seen: list[str] = []

    def broken(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO nothing VALUES (1)")

    def follow(_connection: sqlite3.Connection) -> None:
        seen.append("followed")

    await asyncio.gather(
        storage.write(broken, on_failed=lambda: seen.append("failed")),
        storage.write(follow),
        return_exceptions=True,
    )

    assert seen[-2:] == ["failed", "followed"]
