from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from td_runtime.errors import ExitCode, StoreError
from td_runtime.store import NewRun, StoreFullError, open_readonly
from td_runtime.store.group_commit import GroupCommit, Pace
from td_runtime.store.sqlite import SqliteRunStore
from td_runtime.store.sqlite_file import connect, disconnect
from tests.unit.runtime.store.helpers import accept

NEVER = float("inf")


class TestPace:
    def test_the_first_commit_does_not_wait(self):
        """Nothing is known yet: no waiting."""
        assert Pace(gather=0.002).delay(1, now=100.0) == 0

    def test_a_change_alone_does_not_wait(self):
        """After a commit of one change, nothing says that more come."""
        pace = Pace(gather=0.002)
        pace.committed(1, at=100.0)

        assert pace.delay(1, now=100.0) == 0

    def test_after_several_it_gathers(self):
        """Then as many are expected again, until the gather time is over."""
        pace = Pace(gather=0.002)
        pace.committed(3, at=100.0)

        assert pace.delay(1, now=100.0005) == pytest.approx(0.0015)
        assert pace.delay(2, now=100.5) == 0
        assert pace.delay(3, now=100.0005) == 0


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A run store's file with a table to play with."""
    connection = connect(path)
    connection.execute("CREATE TABLE notes (note TEXT)")
    yield connection
    disconnect(connection)


def note(text: str, connection: sqlite3.Connection) -> str:
    """A change: write a row and answer with its text."""
    connection.execute("INSERT INTO notes VALUES (?)", (text,))

    return text


def notes(path: Path) -> list[str]:
    """Read the rows as another connection sees them: what is committed."""
    with closing(sqlite3.connect(path)) as other:
        return [row[0] for row in other.execute("SELECT note FROM notes ORDER BY rowid")]


@contextmanager
def commits(connection: sqlite3.Connection) -> Iterator[list[str]]:
    """Collect the COMMITs of a connection."""
    seen: list[str] = []
    connection.set_trace_callback(lambda text: seen.append(text) if text == "COMMIT" else None)
    yield seen
    connection.set_trace_callback(None)


async def turns(count: int) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_answer_comes_after_the_commit(connection, path):
    """Before it neither waiter nor reader knows anything; once the waiter knows, a reader sees."""
    changes = GroupCommit(connection, path)
    seen: list[list[str]] = []

    future = changes.submit(partial(note, "one"))
    future.add_done_callback(lambda _: seen.append(notes(path)))

    assert (future.done(), notes(path)) == (False, [])
    assert await future == "one"
    assert seen == [["one"]]


async def test_changes_of_one_turn_share_a_commit(connection, path):
    """They are applied in the order of the calls, and answered each with its own result."""
    changes = GroupCommit(connection, path)

    with commits(connection) as seen:
        answers = await asyncio.gather(*[changes.submit(partial(note, text)) for text in "abc"])

    assert answers == ["a", "b", "c"] == notes(path)
    assert len(seen) == 1


async def test_a_change_alone_is_committed_in_the_next_turn(connection, path):
    """No timer is involved, also not for the second one after it."""
    changes = GroupCommit(connection, path, pace=Pace(gather=1e6))

    for text in "abc":
        future = changes.submit(partial(note, text))
        await turns(2)
        assert future.done()


async def test_after_several_as_many_are_gathered(connection, path):
    """The next commit waits for as many changes as the last one had, over many turns."""
    changes = GroupCommit(connection, path, pace=Pace(gather=1e6))
    await asyncio.gather(*[changes.submit(partial(note, text)) for text in "abc"])

    with commits(connection) as seen:
        futures: list[asyncio.Future[str]] = []
        for text in "def":
            assert not any(future.done() for future in futures)
            futures.append(changes.submit(partial(note, text)))
            await turns(5)

    assert [future.done() for future in futures] == [True] * 3
    assert len(seen) == 1


async def test_gathering_ends(connection, path):
    """When fewer come than last time, what came is committed all the same."""
    changes = GroupCommit(connection, path)
    await asyncio.gather(*[changes.submit(partial(note, text)) for text in "abc"])

    assert await changes.submit(partial(note, "d")) == "d"


async def test_a_long_queue_is_cut(connection, path):
    """Past the budget the rest goes into commits of their own; nothing is forgotten."""
    changes = GroupCommit(connection, path, budget=0.0)

    with commits(connection) as seen:
        await asyncio.gather(*[changes.submit(partial(note, text)) for text in "abc"])

    assert notes(path) == ["a", "b", "c"]
    assert len(seen) == 3


async def test_a_change_that_raises_is_undone_alone(connection, path):
    """Its rows are gone, its waiter gets the error, its neighbours are committed with no trace."""
    changes = GroupCommit(connection, path)

    def fail(connection: sqlite3.Connection) -> None:
        note("bad", connection)
        raise LookupError("no")

    futures: list[asyncio.Future[Any]] = [
        changes.submit(partial(note, "a")),
        changes.submit(fail),
        changes.submit(lambda connection: connection.execute("SELECT * FROM nowhere")),
        changes.submit(partial(note, "b")),
    ]
    first, error, sql_error, last = await asyncio.gather(*futures, return_exceptions=True)

    assert first == "a"
    assert last == "b"
    assert isinstance(error, LookupError)
    assert isinstance(sql_error, StoreError)
    assert isinstance(sql_error.__cause__, sqlite3.OperationalError)
    assert notes(path) == ["a", "b"]


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let every write of this process beyond so many bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_commit_that_fails_is_told_to_all(connection, path):
    """No change of it was stored, each waiter gets an error of its own, and the next one works."""
    changes = GroupCommit(connection, path, full_pause=0.0)
    await changes.submit(partial(note, "before"))
    wal = path.with_name(path.name + "-wal").stat().st_size

    with files_limited_to(wal), commits(connection) as seen:
        futures = [changes.submit(partial(note, text)) for text in "ab"]
        errors = await asyncio.gather(*futures, return_exceptions=True)

    assert len(seen) == 1, "the changes themselves went well, the commit did not"
    assert [StoreFullError, StoreFullError] == [type(error) for error in errors]
    assert errors[0] is not errors[1]
    assert notes(path) == ["before"]
    assert await changes.submit(partial(note, "after")) == "after"
    assert notes(path) == ["before", "after"]


async def test_a_full_disk_is_said_and_passes(store, path):
    """What does not fit is refused with what to do; once there is space, all goes on."""
    store._changes._full_pause = 0.0
    (first,) = await accept(store, "a")
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StoreError) as caught:
        await store.accept([NewRun(task="a", payload=b" " * 100_000)])
    assert caught.value.exit_code == ExitCode.STORE
    assert "there is no space left" in caught.value.what
    assert (str(path), True) == (caught.value.where, "free space" in (caught.value.advice or ""))

    store._connection.execute("PRAGMA max_page_count = 1000000")
    (second,) = await accept(store, "a")
    assert [first, second] == [run.id for run in await store.get_many([first, second])]


async def test_a_locked_file_is_tried_again(connection, path):
    """While somebody else writes the loop goes on; afterwards the change is committed."""
    changes = GroupCommit(connection, path, busy_timeout=NEVER)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        future = changes.submit(partial(note, "mine"))
        await turns(10)
        late = changes.submit(partial(note, "late"))
        await turns(10)
        assert (future.done(), late.done()) == (False, False)

        other.execute("ROLLBACK")
        assert await future == "mine"
        assert await late == "late"

    assert notes(path) == ["mine", "late"]


async def test_a_file_locked_for_too_long_is_an_error(connection, path):
    """All that is queued fails, saying that somebody else writes; the next change works."""
    changes = GroupCommit(connection, path, busy_timeout=0.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        futures = [changes.submit(partial(note, text)) for text in "ab"]
        errors = await asyncio.gather(*futures, return_exceptions=True)

    assert [str(error).split(":")[0] for error in errors] == [
        "another process is writing to the run store"
    ] * 2
    assert await changes.submit(partial(note, "c")) == "c"


async def test_a_waiter_that_is_cancelled_withdraws_nothing(connection, path):
    """Its change is committed, and its neighbours hear as always."""
    changes = GroupCommit(connection, path)
    gone, stays = [changes.submit(partial(note, text)) for text in "ab"]

    gone.cancel()

    assert await stays == "b"
    assert notes(path) == ["a", "b"]


async def test_a_slow_commit_is_logged(connection, path):
    """One event, with how long it took and how many changes waited for it."""
    changes = GroupCommit(connection, path, slow=-1.0)

    with structlog.testing.capture_logs() as logs:
        await asyncio.gather(*[changes.submit(partial(note, text)) for text in "ab"])

    (event,) = logs
    assert (
        event["event"],
        event["log_level"],
        event["changes"],
    ) == ("store.commit_slow", "warning", 2)
    assert event["duration_ms"] >= 0


async def test_a_commit_in_time_is_not_logged(connection, path):
    """The usual case says nothing."""
    changes = GroupCommit(connection, path, slow=NEVER)

    with structlog.testing.capture_logs() as logs:
        await changes.submit(partial(note, "a"))

    assert logs == []


async def test_closing_commits_what_is_queued(path):
    """Who leaves the context need not have waited; after it the file is free."""
    async with SqliteRunStore(path) as store:
        accepted = store.accept([NewRun(task="a")])

    (answer,) = await accepted
    async with open_readonly(path) as reader:
        assert await reader.get(answer.id) is not None


async def test_a_closed_store_refuses(path):
    """Changes and reads fail as an error of the store; closing again does nothing."""
    store = SqliteRunStore(path)
    await store.close()
    await store.close()

    with pytest.raises(StoreError):
        await store.accept([NewRun(task="a")])
    with pytest.raises(StoreError):
        await store.get("run_x")
