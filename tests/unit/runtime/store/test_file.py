from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from td_runtime.errors import ExitCode, StoreError
from td_runtime.store import NewRun, Status, open_readonly, open_store
from td_runtime.store.sqlite import SqliteRunReader
from td_runtime.store.sqlite_file import is_busy, translate
from tests.unit.runtime.store.helpers import accept


def write(path: Path, *statements: str) -> None:
    """Do something to the file behind the store's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def refusal(opening, path: Path) -> str:
    """Open the file, which must fail, and return what was said."""
    with pytest.raises(StoreError) as caught:
        opening(path)
    assert caught.value.exit_code == ExitCode.STORE
    assert caught.value.where == str(path)
    assert caught.value.advice

    return caught.value.what


async def test_runs_survive_the_store(path):
    """What was accepted before closing is there after opening."""
    async with open_store(path) as store:
        ids = await accept(store, "a", "b")

    async with open_store(path) as store:
        assert ids == [run.id for run in await store.get_many(ids)]


async def test_files_are_private(path, tmp_path):
    """Database, WAL and index can be read by their owner only, whatever the umask."""
    old = os.umask(0)
    try:
        async with open_store(path) as store:
            await accept(store, "a")
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    finally:
        os.umask(old)

    assert modes == {"runs.db": 0o600, "runs.db-wal": 0o600, "runs.db-shm": 0o600}


def pragma(connection: sqlite3.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


async def test_a_commit_is_synced(store):
    """WAL, and every commit waits for the disk; the loop never waits for a lock."""
    settings = {
        name: pragma(store._connection, name)
        for name in ("journal_mode", "synchronous", "busy_timeout", "mmap_size")
    }

    assert settings == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 0, "mmap_size": 0}


async def test_the_gateways_columns_are_there(store, path):
    """The gateway reads these four from `runs`, over a connection of its own."""
    (root,) = await accept(store, "a")
    (child,) = await store.accept([NewRun(task="a", parent_id=root)])

    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as other:
        rows = other.execute("SELECT id, status, parent_id, root_id FROM runs").fetchall()

    assert rows == [(root, "QUEUED", None, root), (child.id, "QUEUED", root, root)]


@pytest.mark.parametrize("opening", [open_store, open_readonly])
class TestRefused:
    async def test_a_newer_schema(self, opening, path):
        """A newer td-runtime's file is left alone, and both versions are named."""
        await open_store(path).close()
        write(path, "PRAGMA user_version = 7")

        what = refusal(opening, path)

        assert what == "the run store has schema version 7; this td-runtime knows 3"

    def test_another_programs_database(self, opening, path):
        """A file with tables of somebody else is not taken over."""
        write(path, "CREATE TABLE theirs (x)", "PRAGMA user_version = 1")

        assert refusal(opening, path) == "the file is a database, but not a run store"

    def test_a_file_that_is_no_database(self, opening, path):
        """What SQLite says about it comes after what it means."""
        path.write_text("dear diary" * 1000)

        what = refusal(opening, path)

        assert what == "the run store's file is not a database: file is not a database"

    async def test_a_damaged_file(self, opening, path):
        """Damage found at opening is said as such."""
        await open_store(path).close()
        with path.open("r+b") as file:
            file.seek(100)
            file.write(b"\xff" * 8000)

        what = refusal(opening, path)

        assert what == "the run store is damaged: database disk image is malformed"


def test_a_folder_in_its_place_is_refused(path):
    """It cannot be opened to write, and to read there is nothing."""
    path.mkdir()

    assert (
        refusal(open_store, path) == "the run store cannot be opened: unable to open database file"
    )
    assert refusal(open_readonly, path) == "there is no run store yet"


def test_a_missing_folder_is_refused(path):
    """The store makes its file, not the data folder."""
    what = refusal(open_store, path.parent / "nowhere" / "runs.db")

    assert what == "the run store cannot be opened: No such file or directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_refused(path):
    """The advice is about rights."""
    path.parent.chmod(0o500)
    try:
        what = refusal(open_store, path)
    finally:
        path.parent.chmod(0o700)

    assert what == "the run store cannot be opened: Permission denied"


async def test_damage_found_later_is_said_as_such(path):
    """A page that went bad fails the read, not the program."""
    async with open_store(path) as store:
        ids = await accept(store, *["a"] * 500)
    content = bytearray(path.read_bytes())
    content[4096 * 8 :] = b"\xff" * (len(content) - 4096 * 8)
    path.write_bytes(content)

    async with open_readonly(path) as reader:
        with pytest.raises(StoreError, match="the run store is damaged"):
            await reader.get_many(ids)


class TestReadonly:
    def test_without_a_store(self, path):
        """Looking makes nothing."""
        assert refusal(open_readonly, path) == "there is no run store yet"
        assert not path.exists()

    def test_with_an_empty_file(self, path):
        """A store that was never finished is none."""
        path.touch()

        assert refusal(open_readonly, path) == "the run store is empty"

    async def test_without_a_supervisor(self, path):
        """After a clean close, which leaves no WAL, everything can be read."""
        async with open_store(path) as store:
            ids = await accept(store, "a", "b")
        assert sorted(each.name for each in path.parent.iterdir()) == ["runs.db"]

        async with open_readonly(path) as reader:
            assert ids == [run.id for run in await reader.get_many(ids)]
            assert (await reader.counts())[Status.QUEUED] == 2
            assert [ids[0]] == [run.id for run in await reader.tree(ids[0])]

    async def test_beside_a_supervisor(self, store, path):
        """What is committed is seen at once, over one open reader."""
        async with open_readonly(path) as reader:
            for _ in range(3):
                (run_id,) = await accept(store, "a")
                assert await reader.get(run_id) == await store.get(run_id)

    async def test_it_cannot_write(self, store, path):
        """SQLite itself refuses."""
        async with SqliteRunReader(path) as reader:
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader._connection.execute("DELETE FROM runs")

    async def test_it_outlives_the_supervisor(self, path):
        """A reader that stays open does not keep the next supervisor from writing, and sees it."""
        store = open_store(path)
        async with open_readonly(path) as reader:
            (first,) = await accept(store, "a")
            await store.close()
            async with open_store(path) as store:
                (second,) = await accept(store, "a")
                assert [first, second] == [run.id for run in await reader.get_many([first, second])]


@pytest.mark.parametrize("name", ["run ?.db", "100%.db", "a#b&mode=memory.db", "ü.db"])
async def test_any_name_will_do(tmp_path, name):
    """A path is a path, whatever it means in a URI."""
    async with open_store(tmp_path / name) as store:
        await accept(store, "a")
        assert (tmp_path / name).exists()
        async with open_readonly(tmp_path / name) as reader:
            assert (await reader.counts())[Status.QUEUED] == 1


CODES = {
    sqlite3.SQLITE_BUSY: "another process is writing",
    sqlite3.SQLITE_BUSY_SNAPSHOT: "another process is writing",
    sqlite3.SQLITE_LOCKED: "another connection holds",
    sqlite3.SQLITE_FULL: "no space left",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_CORRUPT_INDEX: "damaged",
    sqlite3.SQLITE_NOTADB: "not a database",
    sqlite3.SQLITE_READONLY: "cannot be written",
    sqlite3.SQLITE_READONLY_DIRECTORY: "cannot be written",
    sqlite3.SQLITE_PERM: "may not be opened",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk failed",
    sqlite3.SQLITE_IOERR_FSYNC: "the disk failed",
    sqlite3.SQLITE_ERROR: "the run store failed",
    None: "the run store failed",
}


@pytest.mark.parametrize(("code", "what"), CODES.items())
def test_every_failure_is_translated(path, code, what):
    """An operator reads what it means, where, and what to do; SQLite's words and error are kept."""
    error = sqlite3.OperationalError("in SQLite's words")
    if code is not None:
        error.sqlite_errorcode = code

    translation = translate(error, path)

    assert what in translation.what
    assert translation.what.endswith(": in SQLite's words")
    assert (str(path), error) == (translation.where, translation.__cause__)
    assert translation.advice
    assert is_busy(error) == (what.startswith("another"))


@pytest.mark.parametrize("loss", ["delete", "replace"])
async def test_nothing_is_accepted_into_a_file_that_is_gone(path, loss):
    """SQLite would go on in it, and whatever was accepted would end with the process (R1)."""
    async with open_store(path) as store:
        await store.accept([NewRun(task="a")])
        path.unlink()
        if loss == "replace":
            path.touch()
        with pytest.raises(StoreError, match="deleted, moved or replaced while it is used"):
            await store.accept([NewRun(task="a")])
        with pytest.raises(StoreError, match="deleted, moved or replaced while it is used"):
            await store.record_tick("a", 1.0)
