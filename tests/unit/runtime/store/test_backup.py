from __future__ import annotations

import asyncio
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from td_runtime.errors import StoreError
from td_runtime.store import Completed, NewRun, open_readonly, open_store
from td_runtime.store.backup import backup
from td_runtime.store.check import check
from tests.unit.runtime.store.helpers import accept, claimed


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "copy.db"


async def test_a_backup_holds_what_is_committed(store, path, target):
    """Beside the open store: one private file with every run, whole, that opens as a run store."""
    ids = await accept(store, *["a"] * 50)

    await asyncio.to_thread(backup, path, target)

    later = await accept(store, "a")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(each.name for each in path.parent.iterdir() if "copy" in each.name) == ["copy.db"]
    assert check(target) == []
    async with open_readonly(target) as copy:
        assert ids == [run.id for run in await copy.get_many(ids + later)]
    async with open_store(target) as copy:
        assert await accept(copy, "a")


async def test_a_backup_is_of_one_moment(store, path, target):
    """What is committed while it is copied, step by step, is not in it, and restarts nothing."""
    await store.accept([NewRun(task="a", payload=b" " * 4096)] * 2000)
    before = await store.unfinished()
    steps: list[int] = []

    def commit_more(left: int, _: int) -> None:
        steps.append(left)
        store._connection.execute(
            "INSERT INTO payloads SELECT max(seq) + 1, zeroblob(9000) FROM payloads"
        )

    backup(path, target, on_progress=commit_more)

    assert len(steps) > 3
    assert steps == sorted(steps, reverse=True)
    async with open_store(target) as copy:
        assert await copy.unfinished() == before
    assert check(target) == []


async def test_a_file_that_exists_is_not_overwritten(store, path, target):
    """Neither the backup of yesterday nor the store itself."""
    target.write_text("yesterday")

    for there in (target, path):
        with pytest.raises(StoreError, match="there is a file already"):
            backup(path, there)

    assert target.read_text() == "yesterday"


async def test_a_backup_that_cannot_be_written_leaves_nothing(store, path, tmp_path):
    """No such folder: an error that says so, and no part of a file anywhere."""
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(StoreError, match="the backup cannot be written"):
        backup(path, tmp_path / "nowhere" / "copy.db")

    assert before == sorted(tmp_path.rglob("*"))


async def test_a_store_in_use_is_whole(store, path):
    """Runs in every kind of state break no rule of the check."""
    run = await claimed(store)
    await store.finish(run.id, 1, "w1", Completed())
    await claimed(store)
    await store.accept(
        [
            NewRun(task="b", tags=("x", "y"), metadata=b"{}", idempotency_key="k"),
            NewRun(task="b", run_at=9e9, ttl=5, priority=7),
        ]
    )

    assert check(path) == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE runs SET phase = 3", "has a phase that is not its status's"),
        ("UPDATE runs SET owner = 'w'", "is in the queue and has an owner"),
        ("UPDATE runs SET finished_at = 1", "is finished and has no end, or has one"),
        ("UPDATE runs SET excused = 5", "has more excused attempts or crashes than attempts"),
        ("UPDATE runs SET rank = 5", "is at another place in its queue"),
        ("DELETE FROM payloads", "has no payload"),
        ("INSERT INTO metadata VALUES (77, '1')", "is nobody's metadata"),
        ("DELETE FROM tags", "has tags that lists by tag do not find"),
        ("INSERT INTO tags VALUES ('z', 77)", "is nobody's tag"),
        ("UPDATE idempotency SET key = 'other'", "has an idempotency key that answers"),
        ("INSERT INTO history VALUES ('a', 'FAILED', 3)", "is counted wrongly in the history"),
    ],
)
async def test_each_broken_rule_is_found(path, damage, says):
    """The problem names the run and what is wrong with it; SQLite itself sees nothing."""
    async with open_store(path) as store:
        (run,) = await store.accept([NewRun(task="a", tags=("x",), idempotency_key="k")])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(damage)

    problems = check(path)

    assert any(says in problem for problem in problems)
    assert all(run.id in each or "row 77" in each or "a FAILED" in each for each in problems)


async def test_damage_on_the_disk_is_found(path):
    """Pages that were overwritten are said in SQLite's words."""
    async with open_store(path) as store:
        await store.accept([NewRun(task="a", payload=b" " * 9000)] * 50)
    with path.open("r+b") as file:
        file.seek(4096 * 30)
        file.write(b"\xff" * 4096 * 5)

    try:
        problems = check(path)
    except StoreError as error:
        problems = [error.what]

    assert problems
