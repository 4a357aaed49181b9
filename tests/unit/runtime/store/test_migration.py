from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from td_runtime.errors import ExitCode, StoreError
from td_runtime.store import (
    Completed,
    NewRun,
    RunError,
    RunQuery,
    Status,
    migrations,
    open_readonly,
    open_store,
)
from td_runtime.store.check import check
from tests.unit.runtime.store.helpers import FAR, pass_time, places, queues

VERSION_1 = """
CREATE TABLE runs (
    seq INTEGER PRIMARY KEY,            -- the order of acceptance
    id TEXT NOT NULL UNIQUE,
    task TEXT NOT NULL,
    status TEXT NOT NULL,
    phase INTEGER NOT NULL,             -- follows from the status
    attempt INTEGER NOT NULL DEFAULT 0,
    excused INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    parent_id TEXT,
    root_id TEXT NOT NULL,
    idempotency_key TEXT,
    owner TEXT,                         -- NULL while nobody has the run
    pid INTEGER,
    records_lost INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,           -- seconds since the epoch, as all times
    run_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    output BLOB,                        -- JSON text, as the payload and the error
    error BLOB
);
-- A row is rewritten whole at every transition; a payload of megabytes is written once, here.
CREATE TABLE payloads (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL);
CREATE INDEX runs_ready ON runs (phase, task, run_at, seq, status) WHERE phase = 0;
CREATE INDEX runs_later ON runs (phase, run_at, status) WHERE phase = 0 AND status <> 'QUEUED';
CREATE INDEX runs_in_hand ON runs (phase, owner, status) WHERE phase = 1;
CREATE INDEX runs_finished ON runs (phase, status, finished_at) WHERE phase = 2;
CREATE INDEX runs_below ON runs (root_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX runs_idempotency ON runs (task, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
PRAGMA application_id = 1952731731;
PRAGMA user_version = 1;
"""
"""The schema of the first release, as it was."""

TRIGGERS_OF_2 = """
CREATE TRIGGER runs_end AFTER UPDATE OF phase ON runs
WHEN NEW.phase = 2 AND OLD.phase <> 2
BEGIN
    INSERT INTO history VALUES (NEW.task, NEW.status, 1)
    ON CONFLICT (task, status) DO UPDATE SET runs = runs + 1;
END;
CREATE TRIGGER runs_go AFTER DELETE ON runs WHEN OLD.phase = 2
BEGIN
    UPDATE history SET runs = runs - 1 WHERE task = OLD.task AND status = OLD.status;
END;
"""

_ERROR = b'{"type":"ValueError","message":"boom","traceback":"","retryable":true}'
_COLUMNS = (
    "seq, id, task, status, phase, attempt, excused, crashes, parent_id, root_id, idempotency_key,"
    " owner, pid, records_lost, created_at, run_at, started_at, finished_at, output, error"
)
_RUNS: tuple[tuple[Any, ...], ...] = (
    (1, "run_1", "a", "COMPLETED", 2, 2, 1, 0, None, "run_1", "key", "w1", 42, 3, 1e6, 1e6, 1e6,
     2e6, b"7", None),
    (2, "run_2", "b", "FAILED", 2, 1, 0, 0, "run_1", "run_1", None, "w1", 42, 0, 1e6, 1e6, 1e6,
     2e6, None, _ERROR),
    (4, "run_4", "a", "EXECUTING", 1, 1, 0, 0, None, "run_4", "k4", "w1", 42, 0, 1e6, 1e6, 1e6,
     None, None, None),
    (5, "run_5", "a", "RETRYING", 0, 1, 0, 1, None, "run_5", None, None, 42, 0, 1e6, 3e6, 1e6,
     None, None, _ERROR),
    (6, "run_6", "a", "DELAYED", 0, 0, 0, 0, None, "run_6", None, None, None, 0, 1e6, 4e6, None,
     None, None, None),
    (7, "run_7", "a", "QUEUED", 0, 0, 0, 0, "run_4", "run_4", None, None, None, 0, 1e6, 1e6, None,
     None, None, None),
)  # fmt: skip


@pytest.fixture
def old(path: Path) -> Path:
    """A file that the first release has left behind."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(VERSION_1)
        marks = ", ".join("?" * len(_RUNS[0]))
        connection.executemany(f"INSERT INTO runs ({_COLUMNS}) VALUES ({marks})", _RUNS)
        connection.executemany(
            "INSERT INTO payloads VALUES (?, ?)", [(run[0], b'"p"') for run in _RUNS]
        )
    return path


def schema_of(path: Path) -> list[tuple[str, str, str]]:
    """Every table, index and trigger of a file, in its own words."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name"
        ).fetchall()
    return [(kind, name, text.replace('"', "")) for kind, name, text in rows]


async def test_an_older_store_is_brought_to_todays_schema(old, tmp_path):
    """After the first start it has just what a new file has, and breaks no rule."""
    await open_store(old).close()
    new = tmp_path / "new.db"
    await open_store(new).close()

    assert schema_of(old) == schema_of(new)
    assert check(old) == []


async def test_every_run_of_an_older_store_is_kept(old):
    """Facts, outcomes and payloads; what waited waits, what was due starts, keys still hold."""
    async with open_store(old) as store:
        done, failed, retrying = await store.get_many(["run_1", "run_2", "run_5"])
        assert (done.status, done.output, done.payload) == (Status.COMPLETED, b"7", b'"p"')
        assert (done.attempt, done.excused, done.records_lost, done.queue) == (2, 1, 3, "task/a")
        assert failed.error == RunError(type="ValueError", message="boom")
        assert (failed.parent_id, failed.root_id) == ("run_1", "run_1")
        assert (retrying.status, retrying.run_at, retrying.crashes) == (Status.RETRYING, 3e6, 1)
        assert {s: n for s, n in (await store.counts()).items() if n} == {
            Status.COMPLETED: 1,
            Status.FAILED: 1,
            Status.EXECUTING: 1,
            Status.RETRYING: 1,
            Status.DELAYED: 1,
            Status.QUEUED: 1,
        }
        assert len(await store.find(RunQuery())) == 6
        (again,) = await store.accept([NewRun(task="a", idempotency_key="k4")])
        assert again.id == "run_4"
        await store.requeue_unfinished()
        await pass_time(store)
        runs = await store.claim(places(9), queues=queues(), now=FAR)
        assert [run.id for run in runs] == ["run_4", "run_7", "run_5", "run_6"]


async def test_a_store_of_version_2_counts_no_end_twice(path, tmp_path):
    """Its triggers, which counted the history, are gone when the first run ends."""
    await open_store(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(TRIGGERS_OF_2 + "PRAGMA user_version = 2;")
    async with open_store(path) as store:
        await store.accept([NewRun(task="a")])
        (run,) = await store.claim(places(1), queues=queues(), now=FAR)
        assert await store.finish(run.id, 1, "w1", Completed())
        assert (await store.counts())[Status.COMPLETED] == 1
    new = tmp_path / "new.db"
    await open_store(new).close()

    assert schema_of(path) == schema_of(new)
    assert check(path) == []


async def test_a_migration_is_done_wholly_or_not_at_all(old, monkeypatch):
    """It fails in the middle: the file is as it was, the error says so, the next start does it."""
    before = schema_of(old)
    monkeypatch.setitem(migrations._STEPS, 1, migrations._STEPS[1] + "SELECT no_such_thing;")
    with pytest.raises(StoreError):
        open_store(old)
    assert schema_of(old) == before
    monkeypatch.undo()

    async with open_store(old) as store:
        assert await store.unfinished() == 4


def test_who_only_reads_does_not_migrate(old):
    """A command that looks at an older store says who brings it up to date."""
    with pytest.raises(StoreError) as caught:
        open_readonly(old)

    assert "has schema version 1" in caught.value.what
    assert caught.value.exit_code == ExitCode.STORE
