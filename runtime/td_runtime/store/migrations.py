# ruff: noqa: S608  every text that is put together here is ours
"""Bringing a run store of an older td-runtime to today's schema: one step a version.

What the last steps make is today's schema, which a test compares with that of a new file. Tables
and indexes are those of version 2 to this day; whoever changes them copies into the step to version
2 what it takes from `sqlite_text`.
"""

from __future__ import annotations

import sqlite3

from td_runtime.store import sqlite_text as sql

__all__ = ["migrate"]

# The columns that a row of version 1 has not got are either new facts or follow from others.
_TO_2 = (
    """
DROP INDEX runs_ready;
DROP INDEX runs_later;
DROP INDEX runs_in_hand;
DROP INDEX runs_finished;
DROP INDEX runs_below;
DROP INDEX runs_idempotency;
ALTER TABLE runs RENAME TO runs_1;
ALTER TABLE payloads RENAME TO payloads_1;
"""
    + sql.TABLES
    + """
INSERT INTO runs (
    seq, id, task, status, phase, queue, rank, attempt, excused, crashes, parent_id, root_id,
    idempotency_key, owner, pid, records_lost, created_at, run_at, started_at, finished_at,
    error, output
)
SELECT
    seq, id, task, status,
    CASE WHEN status IN ('DELAYED', 'RETRYING') THEN 3 ELSE phase END,
    'task/' || task, run_at, attempt, excused, crashes, parent_id, root_id,
    idempotency_key, owner, pid, records_lost, created_at, run_at, started_at, finished_at,
    error, output
FROM runs_1 ORDER BY seq;
INSERT INTO payloads SELECT seq, payload FROM payloads_1 ORDER BY seq;
-- A key of version 1 held for ever; now it holds for 30 days from the acceptance of its run, and
-- at least as long as that run is not finished.
INSERT INTO idempotency
SELECT task, idempotency_key, id, iif(phase = 2, created_at + 2592000.0, 9e15)
FROM runs_1 WHERE idempotency_key IS NOT NULL;
INSERT INTO history SELECT task, status, count(*) FROM runs_1 WHERE phase = 2 GROUP BY 1, 2;
DROP TABLE runs_1;
DROP TABLE payloads_1;
"""
    + sql.INDEXES
    + "PRAGMA user_version = 2;"
)

# Only a file that was made by version 2 has triggers, which counted the history.
_TO_3 = """
DROP TRIGGER IF EXISTS runs_end;
DROP TRIGGER IF EXISTS runs_go;
PRAGMA user_version = 3;
"""

_STEPS = {1: _TO_2, 2: _TO_3}


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring an open file from `version` to today's schema, in one transaction, or not at all."""
    steps = [_STEPS[each] for each in range(version, sql.SCHEMA_VERSION)]
    if not steps:
        return
    try:
        connection.executescript("BEGIN IMMEDIATE;" + "".join(steps) + "COMMIT;")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
