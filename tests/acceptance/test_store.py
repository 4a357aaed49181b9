"""`td-runtime store`: a backup of a store in use, and what its check says."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.command import answer, td
from tests.acceptance.forked import forked
from tests.runtime_process import RuntimeProcess

TASKS = """
def echo(payload):
    return payload
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    """Run one runtime for all tests here."""
    folder = tmp_path_factory.mktemp("store")
    with RuntimeProcess(folder, tasks=TASKS, workers=1) as started:
        yield started


def test_a_backup_is_made_while_runs_go_on(runtime: RuntimeProcess, tmp_path: Path) -> None:
    """It is whole, holds the run that had ended, and is never written twice."""
    run_id = runtime.trigger("echo", 1)
    runtime.result(run_id)
    copy = tmp_path / "copy.db"

    made = answer(td("store", "backup", str(copy), "--json", config=runtime.config))
    checked = td("store", "check", str(copy), config=runtime.config)
    again = td("store", "backup", str(copy), config=runtime.config)

    assert made == {"path": str(copy), "bytes": copy.stat().st_size}
    assert (checked.returncode, checked.stdout) == (0, f"{copy}: ok\n")
    assert again.returncode == 6
    assert "there is a file already" in again.stderr
    with closing(sqlite3.connect(copy)) as connection:
        found = connection.execute("SELECT status FROM runs WHERE id = ?", (run_id,)).fetchone()
    assert found == ("COMPLETED",)


def test_a_store_in_use_can_be_checked(runtime: RuntimeProcess) -> None:
    """Beside the supervisor, without a path: its own store, and nothing is wrong."""
    found = answer(forked("store", "check", "--json", config=runtime.config))

    assert found["problems"] == []


def test_a_damaged_backup_is_said_to_be(runtime: RuntimeProcess, tmp_path: Path) -> None:
    """Exit code 6, and a line that names the run and what is wrong with it."""
    run_id = runtime.trigger("echo", 1)
    runtime.result(run_id)
    copy = tmp_path / "copy.db"
    forked("store", "backup", str(copy), config=runtime.config)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("DELETE FROM payloads")

    done = forked("store", "check", str(copy), config=runtime.config)

    assert done.returncode == 6
    assert "has no payload" in done.stderr
    assert "Traceback" not in done.stderr
