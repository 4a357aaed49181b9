"""The run store as anybody may read it, beside the runtime's own reader."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the run store."""

    id: str
    task: str
    status: str
    attempt: int
    excused: int
    crashes: int
    parent_id: str | None
    idempotency_key: str | None
    pid: int | None
    """The process of the newest attempt."""
    run_at: float
    started_at: float | None
    finished_at: float | None
    payload: dict[str, Any]
    output: Any
    error: dict[str, Any] | None

    @property
    def number(self) -> int:
        """The wish that it is for."""
        return int(self.payload["n"])

    @property
    def used(self) -> int:
        """How many attempts count against the limit."""
        return self.attempt - self.excused

    @property
    def is_overdue(self) -> bool:
        """Whether it had to end, did not, and was ended with its worker."""
        return self.error is not None and "did not stop" in self.error["message"]

    def __str__(self) -> str:
        return (
            f"{self.id} ({self.task}, {self.status}, attempt {self.attempt}, "
            f"{self.excused} excused, {self.crashes} crashes)"
        )


_ROWS = """
SELECT id, task, status, attempt, excused, crashes, parent_id, idempotency_key, pid,
    run_at, started_at, finished_at, payload, output, error
FROM runs JOIN payloads USING (seq) ORDER BY seq
"""
_ROOTS = """
SELECT id, payload FROM runs JOIN payloads USING (seq) WHERE parent_id IS NULL AND id > ?
"""
_UNFINISHED = "SELECT count(*) FROM runs WHERE finished_at IS NULL"


def read_all(path: Path) -> list[Record]:
    """Return all runs in the order of their acceptance."""
    with closing(_connect(path)) as connection:
        rows = connection.execute(_ROWS).fetchall()

    return [_record(row) for row in rows]


def count_unfinished(path: Path) -> int:
    """Return how many runs have no outcome."""
    with closing(_connect(path)) as connection:
        return int(connection.execute(_UNFINISHED).fetchone()[0])


def root_ids(path: Path, numbers: set[int], *, after: str) -> dict[int, str]:
    """Return which runs without a parent are there for some wishes, younger than a run."""
    with closing(_connect(path)) as connection:
        rows = connection.execute(_ROOTS, (after,)).fetchall()
    found = ((int(msgspec.json.decode(payload)["n"]), run_id) for run_id, payload in rows)

    return {number: run_id for number, run_id in found if number in numbers}


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30.0)


def _record(row: tuple[Any, ...]) -> Record:
    *facts, payload, output, error = row
    names = Record.__struct_fields__[: len(facts)]

    return Record(
        **dict(zip(names, facts, strict=True)),
        payload=msgspec.json.decode(payload),
        output=None if output is None else msgspec.json.decode(output),
        error=None if error is None else msgspec.json.decode(error),
    )
