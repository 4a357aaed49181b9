# ruff: noqa: S608  every text that is put together here is ours
"""Every SQL text of the SQLite dialect.

A partial index is used only when a query repeats its condition, so the conditions have names here
and `INDEXED BY` makes a query that drifted away fail instead of scanning. The phase is in the
indexes once more as a column, since only then SQLite answers from the index alone.
"""

from __future__ import annotations

from td_runtime.store.records import FINISHED, IN_HAND, READY, Status

__all__ = [
    "ACCEPT",
    "ACCEPT_PAYLOAD",
    "APPLICATION_ID",
    "CLAIM",
    "COLUMNS",
    "COUNTS",
    "FIND_BY_KEY",
    "FINISH",
    "LAST_SEQ",
    "NEXT_READY_AT",
    "READY_BY_ID",
    "READY_OF_TASK",
    "RELEASE",
    "REQUEUE",
    "RESUME",
    "RETRY",
    "ROOT_OF",
    "SCHEMA",
    "SCHEMA_VERSION",
    "SELECT_BY_ID",
    "SELECT_BY_SEQ",
    "SELECT_IN_HAND",
    "SELECT_TREE",
    "UNFINISHED",
    "WAIT",
]

APPLICATION_ID = 0x74645253  # "tdRS"
SCHEMA_VERSION = 1


PHASES = {
    **dict.fromkeys(READY, 0),
    **dict.fromkeys(IN_HAND, 1),
    **dict.fromkeys(FINISHED, 2),
}
"""What every index condition is about. A number of its own, since every statement evaluates the
conditions of all indexes: with lists of status texts an update takes twice as long."""


def _becomes(status: Status) -> str:
    """Write the assignments that move a run to a status."""
    return f"status = '{status}', phase = {PHASES[status]}"


_READY = "phase = 0"
_LATER = "phase = 0 AND status <> 'QUEUED'"
_IN_HAND = "phase = 1"
_FINISHED = "phase = 2"

SCHEMA = f"""
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
CREATE INDEX runs_ready ON runs (phase, task, run_at, seq, status) WHERE {_READY};
CREATE INDEX runs_later ON runs (phase, run_at, status) WHERE {_LATER};
CREATE INDEX runs_in_hand ON runs (phase, owner, status) WHERE {_IN_HAND};
CREATE INDEX runs_finished ON runs (phase, status, finished_at) WHERE {_FINISHED};
CREATE INDEX runs_below ON runs (root_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX runs_idempotency ON runs (task, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

# -- accept

LAST_SEQ = "SELECT coalesce(max(seq), 0) FROM runs"
ROOT_OF = "SELECT root_id FROM runs WHERE id = ?"
FIND_BY_KEY = "SELECT id FROM runs WHERE task = ? AND idempotency_key = ?"
ACCEPT = """
INSERT INTO runs
    (seq, id, task, status, phase, parent_id, root_id, idempotency_key, created_at, run_at)
VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?)
"""
ACCEPT_PAYLOAD = "INSERT INTO payloads (seq, payload) VALUES (?, ?)"

# -- claim

READY_OF_TASK = f"""
SELECT run_at, seq FROM runs INDEXED BY runs_ready
WHERE {_READY} AND task = ? AND run_at <= ? ORDER BY run_at, seq LIMIT ?
"""
READY_BY_ID = f"""
SELECT run_at, seq, task FROM runs WHERE id = ? AND {_READY} AND run_at <= ?
"""
CLAIM = f"""
UPDATE runs SET {_becomes(Status.EXECUTING)},
    attempt = attempt + 1, owner = ?, pid = ?, started_at = ?
WHERE seq = ?
"""
NEXT_READY_AT = f"""
SELECT min(run_at) FROM runs INDEXED BY runs_later WHERE {_LATER} AND run_at > ?
"""

# -- the end of an attempt, fenced

_FENCE = f"WHERE id = ? AND attempt = ? AND owner = ? AND {_IN_HAND}"
WAIT = f"UPDATE runs SET {_becomes(Status.WAITING)} {_FENCE}"
RESUME = f"UPDATE runs SET {_becomes(Status.EXECUTING)} {_FENCE}"
FINISH = f"""
UPDATE runs SET status = ?, phase = 2,
    output = ?, error = ?, records_lost = ?, finished_at = ?
{_FENCE}
"""
RETRY = f"""
UPDATE runs SET {_becomes(Status.RETRYING)},
    owner = NULL, run_at = ?, error = ?, crashes = crashes + ?
{_FENCE}
"""
REQUEUE = f"""
UPDATE runs SET {_becomes(Status.QUEUED)},
    owner = NULL, excused = excused + ?, crashes = crashes + ?
{_FENCE}
"""

# -- the end of a worker

SELECT_IN_HAND = f"""
SELECT seq FROM runs WHERE {_IN_HAND} AND (:owner IS NULL OR owner = :owner) ORDER BY run_at, seq
"""
RELEASE = f"""
UPDATE runs SET {_becomes(Status.QUEUED)},
    owner = NULL, excused = excused + (id IS NOT :blamed), crashes = crashes + (id IS :blamed)
WHERE seq = :seq
"""

# -- reads

COLUMNS = (
    "id",
    "task",
    "status",
    "payload",
    "root_id",
    "created_at",
    "run_at",
    "parent_id",
    "idempotency_key",
    "attempt",
    "excused",
    "crashes",
    "owner",
    "pid",
    "output",
    "error",
    "records_lost",
    "started_at",
    "finished_at",
)
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM runs JOIN payloads USING (seq)"
SELECT_BY_SEQ = f"{_SELECT} WHERE seq = ?"
SELECT_BY_ID = f"{_SELECT} WHERE id = ?"
SELECT_TREE = f"""
{_SELECT} WHERE id = :root OR (root_id = :root AND parent_id IS NOT NULL) ORDER BY seq
"""
COUNTS = f"""
SELECT 'QUEUED', count(*) FROM runs INDEXED BY runs_ready WHERE {_READY} AND status = 'QUEUED'
UNION ALL
SELECT status, count(*) FROM runs INDEXED BY runs_later WHERE {_LATER} GROUP BY status
UNION ALL
SELECT status, count(*) FROM runs INDEXED BY runs_in_hand WHERE {_IN_HAND} GROUP BY status
UNION ALL
SELECT status, count(*) FROM runs INDEXED BY runs_finished WHERE {_FINISHED} GROUP BY status
"""
UNFINISHED = f"""
SELECT (SELECT count(*) FROM runs INDEXED BY runs_ready WHERE {_READY})
     + (SELECT count(*) FROM runs INDEXED BY runs_in_hand WHERE {_IN_HAND})
"""
