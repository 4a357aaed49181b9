"""A disk that is full: what is refused, what is kept, and in which order it is written."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import structlog

from td_runtime.store import (
    Completed,
    NewRun,
    Status,
    StoreFullError,
    open_store,
)
from td_runtime.store.sqlite import SqliteRunStore
from tests.unit.runtime.store.helpers import BOOM, accept, claimed, reload, status
from tests.unit.runtime.store.test_group_commit import files_limited_to

SLOW = "store.commit_slow"
BIG = b'"' + b"x" * 500_000 + b'"'


@contextmanager
def full(store: SqliteRunStore) -> Iterator[None]:
    """Let the file have no page more than it has."""
    connection = store._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        with suppress(sqlite3.ProgrammingError):  # the test has closed it
            connection.execute("PRAGMA max_page_count = 1000000")


@pytest.fixture
def store(store: SqliteRunStore) -> SqliteRunStore:
    """A store that looks for room often."""
    store._changes._full_pause = 0.02
    return store


async def refused(store: SqliteRunStore) -> StoreFullError:
    """Ask for a run that does not fit."""
    with pytest.raises(StoreFullError) as caught:
        await store.accept([NewRun(task="a", payload=BIG)])
    return caught.value


async def test_an_accept_is_refused_and_says_why(store, path):
    """At once, with what to do; nothing of it is stored, and it works when there is room."""
    with full(store):
        error = await refused(store)
        assert "no space left" in error.what
        assert "free space" in (error.advice or "")
        assert (error.where, error.exit_code) == (str(path), 6)

    await asyncio.sleep(0.05)
    (run_id,) = await accept(store, "a")
    assert await store.unfinished() == 1
    assert await status(store, run_id) is Status.QUEUED


async def test_outcomes_wait_for_room_in_their_order(store):
    """Finished while the disk is full: not told as recorded until it is, then all, in order."""
    first, second = await claimed(store), await claimed(store, "b")
    with structlog.testing.capture_logs() as logs, full(store):
        waits = [
            asyncio.ensure_future(store.finish(first.id, 1, "w1", Completed(BIG))),
            asyncio.ensure_future(store.wait(second.id, 1, "w1")),
            asyncio.ensure_future(store.resume(second.id, 1, "w1")),
            asyncio.ensure_future(store.finish(second.id, 1, "w1", Completed(BIG))),
        ]
        late = asyncio.ensure_future(store.finish(first.id, 1, "w1", Completed(b"0")))
        await asyncio.sleep(0.2)
        assert not any(each.done() for each in (*waits[:1], *waits[3:], late))
        assert await status(store, first) is Status.EXECUTING
        await refused(store)

    assert await asyncio.gather(*waits) == [True] * 4
    assert not await late, "the second outcome of an attempt is late, however long the first took"
    assert (await reload(store, first)).output == BIG
    assert (await reload(store, second)).status is Status.COMPLETED
    events = [each["event"] for each in logs]
    assert events[0] == "store.full"
    assert await accept(store, "a")


async def test_a_fence_holds_for_what_was_kept(store):
    """An outcome that waited for room counts only if its attempt still has the run."""
    run = await claimed(store)
    with full(store):
        outcome = asyncio.ensure_future(store.finish(run.id, 1, "w1", Completed(BIG)))
        released = asyncio.ensure_future(store.release("w1"))
        retried = asyncio.ensure_future(store.retry(run.id, 1, "w1", run_at=0, error=BOOM))
        await asyncio.sleep(0.1)
        assert not outcome.done()

    assert (await outcome, await released, await retried) == (True, [], None)


async def test_room_that_comes_back_is_said(store, path):
    """One event when it is full, one when there is room again."""
    run = await claimed(store)
    with structlog.testing.capture_logs() as logs:
        with full(store):
            outcome = asyncio.ensure_future(store.finish(run.id, 1, "w1", Completed(BIG)))
            await asyncio.sleep(0.2)
        assert await outcome
        await accept(store, "a")

    found = [(each["event"], each["log_level"]) for each in logs if each["event"] != SLOW]
    assert found == [("store.full", "error"), ("store.restored", "info")]


async def test_a_write_that_fails_is_like_a_full_disk(store, path):
    """A quota, or a limit on file sizes: the outcome waits, and is there once writing works."""
    run = await claimed(store)
    wal = path.with_name(path.name + "-wal")
    with files_limited_to(wal.stat().st_size):
        outcome = asyncio.ensure_future(store.finish(run.id, 1, "w1", Completed(BIG)))
        await asyncio.sleep(0.1)
        assert not outcome.done()
        with pytest.raises(StoreFullError):
            await store.accept([NewRun(task="a")])

    assert await outcome
    assert (await reload(store, run)).output == BIG


async def test_a_store_that_closes_full_says_what_it_drops(path):
    """Nobody waits for ever; those runs still execute in the store, so the next start does them."""
    store = SqliteRunStore(path)
    run = await claimed(store)
    future: asyncio.Future[Any] | None = None
    with structlog.testing.capture_logs() as logs, full(store):
        future = asyncio.ensure_future(store.finish(run.id, 1, "w1", Completed(BIG)))
        await asyncio.sleep(0.05)
        await store.close()
        with pytest.raises(StoreFullError):
            await future

    dropped = [each for each in logs if each["event"] == "store.changes_dropped"]
    assert [each["changes"] for each in dropped] == [1]
    async with open_store(path) as again:
        assert [each.id for each in await again.requeue_unfinished()] == [run.id]
