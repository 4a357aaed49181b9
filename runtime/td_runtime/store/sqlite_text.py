# ruff: noqa: S608  every text that is put together here is ours
"""Every SQL text of the SQLite dialect.

A partial index is used only when a query repeats its condition, so the conditions have names here
and `INDEXED BY` makes a query that drifted away fail instead of scanning. The phase is in the
indexes once more as a column, since only then SQLite answers from the index alone.
"""

from __future__ import annotations

from td_runtime.store.records import FINISHED, IN_HAND, Run, RunSummary, Status

__all__ = [
    "ACCEPT",
    "ACCEPT_KEY",
    "ACCEPT_METADATA",
    "ACCEPT_PAYLOAD",
    "ACCEPT_TAG",
    "APPLICATION_ID",
    "CANCEL",
    "CANCELABLE",
    "CANCELABLE_BELOW",
    "CLAIM",
    "COLUMNS",
    "COUNTS",
    "COUNTS_BY_TASK",
    "COUNT_ENDS",
    "DELETE_KEY",
    "DELETE_RUN",
    "DELETE_TAG",
    "DUE",
    "EXPIRE",
    "EXPIRED",
    "FINDABLE",
    "FIND_BY_KEY",
    "FINISH",
    "FINISHED_RUNS",
    "FINISH_ONE",
    "FORGET_KEYS",
    "FORGET_TICKS",
    "HISTORY_TASKS",
    "IDS_FROM",
    "INDEXES",
    "LAST_ID",
    "LAST_SEQ",
    "LAST_TICKS",
    "MAKE_ROOM",
    "NEXT_DUE_AT",
    "OF_KEY",
    "OF_QUEUE",
    "OLDEST_FINISHED",
    "ONE_UNFINISHED",
    "PARENT",
    "PARK",
    "PARKED_KEYS",
    "PROMOTE",
    "READY_BY_ID",
    "READY_OF_QUEUE",
    "RECORD_TICK",
    "RELEASE",
    "REQUEST_CANCEL",
    "REQUEUE",
    "RESCHEDULE",
    "RESUME",
    "RETRY",
    "SCHEMA",
    "SCHEMA_VERSION",
    "SELECT_BY_ID",
    "SELECT_BY_SEQS",
    "SELECT_IN_HAND",
    "SELECT_TREE",
    "SEQ_FROM_ID",
    "SET_METADATA",
    "SET_TAGS",
    "SHELVE",
    "SUMMARIES",
    "SUMMARY_COLUMNS",
    "TABLES",
    "TAGS_OF",
    "UNFINISHED",
    "UNPARK",
    "UNSHELVE",
    "VERSION",
    "WAIT",
]

APPLICATION_ID = 0x74645253  # "tdRS"
SCHEMA_VERSION = 3


PHASES = {
    Status.QUEUED: 0,
    Status.DELAYED: 3,
    Status.RETRYING: 3,
    **dict.fromkeys(IN_HAND, 1),
    **dict.fromkeys(FINISHED, 2),
}
"""What every index condition is about. A number of its own, since every statement evaluates the
conditions of all indexes: with lists of status texts an update takes twice as long.

A QUEUED run has one of two further phases while a hand-out would only pass over it: 4, parked, its
concurrency key is at its limit; 5, shelved, its task is not registered. So a queue's index range
begins with runs that can start, however many behind them cannot."""


def _becomes(status: Status) -> str:
    """Write the assignments that move a run to a status."""
    return f"status = '{status}', phase = {PHASES[status]}"


_READY = "phase = 0"
_IN_HAND = "phase = 1"
_FINISHED = "phase = 2"
_LATER = "phase = 3"
_ASIDE = "phase > 3"
_PARKED = "phase > 3 AND phase = 4"
_SHELVED = "phase > 3 AND phase = 5"

TABLES = """
CREATE TABLE runs (
    seq INTEGER PRIMARY KEY,            -- the order of acceptance, and of the ids
    id TEXT NOT NULL UNIQUE,
    task TEXT NOT NULL,
    status TEXT NOT NULL,
    phase INTEGER NOT NULL,             -- follows from the status
    queue TEXT NOT NULL,
    rank REAL NOT NULL,                 -- the order of hand-out: run_at - priority
    concurrency_key TEXT,
    attempt INTEGER NOT NULL DEFAULT 0,
    excused INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    parent_id TEXT,
    root_id TEXT NOT NULL,
    idempotency_key TEXT,
    owner TEXT,                         -- NULL while nobody has the run
    worker INTEGER,
    pid INTEGER,
    records_lost INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,           -- seconds since the epoch, as all times
    run_at REAL NOT NULL,
    priority REAL NOT NULL DEFAULT 0,
    started_at REAL,
    finished_at REAL,
    expires_at REAL,                    -- NULL once the run has started
    max_attempts INTEGER,
    max_duration REAL,
    tags TEXT,                          -- a JSON list, NULL for none
    replay_of TEXT,
    stream_run_id TEXT,
    triggered_by TEXT,
    canceled_by TEXT,
    cancel_requested_at REAL,
    cancels_children INTEGER NOT NULL DEFAULT 0,
    log_tail TEXT,                      -- what may be large comes last
    error BLOB,                         -- JSON text, as the payload and the output
    output BLOB
);
-- A row is rewritten whole at every transition; a payload of megabytes is written once, here.
CREATE TABLE payloads (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL);
CREATE TABLE metadata (seq INTEGER PRIMARY KEY, metadata BLOB NOT NULL);
CREATE TABLE tags (tag TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (tag, seq)) WITHOUT ROWID;
-- A key may outlive its run: what it stands for has been done.
CREATE TABLE idempotency (
    task TEXT NOT NULL,
    key TEXT NOT NULL,
    run_id TEXT NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (task, key)
) WITHOUT ROWID;
-- How many finished runs there are, so that nobody counts them; see `sqlite_ends`.
CREATE TABLE history (
    task TEXT NOT NULL, status TEXT NOT NULL, runs INTEGER NOT NULL, PRIMARY KEY (task, status)
) WITHOUT ROWID;
-- Up to when the ticks of a scheduled task are dealt with.
CREATE TABLE ticks (task TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""

INDEXES = f"""
CREATE INDEX runs_ready ON runs (phase, queue, rank, seq, task, concurrency_key) WHERE {_READY};
CREATE INDEX runs_in_hand ON runs (phase, queue, concurrency_key, status) WHERE {_IN_HAND};
CREATE INDEX runs_finished ON runs (phase, task, status) WHERE {_FINISHED};
CREATE INDEX runs_history ON runs (phase, finished_at) WHERE {_FINISHED};
CREATE INDEX runs_later ON runs (phase, run_at, status) WHERE {_LATER};
CREATE INDEX runs_aside ON runs (phase, queue, concurrency_key, rank) WHERE {_ASIDE};
CREATE INDEX runs_expiring ON runs (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX runs_below ON runs (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX runs_by_task ON runs (task);
CREATE INDEX runs_by_queue ON runs (queue);
CREATE INDEX idempotency_ends ON idempotency (expires_at);
"""

LAST_TICKS = "SELECT task, at FROM ticks"
FORGET_TICKS = "DELETE FROM ticks WHERE task = ?"
RECORD_TICK = """
INSERT INTO ticks VALUES (?, ?) ON CONFLICT (task) DO UPDATE SET at = max(at, excluded.at)
"""

MAKE_ROOM = f"""
CREATE TEMP TRIGGER IF NOT EXISTS runs_make_room AFTER UPDATE OF phase ON main.runs
WHEN OLD.concurrency_key IS NOT NULL AND OLD.phase < 2 AND OLD.status <> 'WAITING'
    AND (NEW.phase IN (2, 3, 5) OR NEW.status = 'WAITING')
BEGIN
    UPDATE runs SET phase = 0 WHERE seq = (
        SELECT seq FROM runs
        WHERE {_PARKED} AND queue = NEW.queue AND concurrency_key = NEW.concurrency_key
        ORDER BY rank, seq LIMIT 1
    );
END
"""
"""A run that frees a place of its key lets the next parked one of that key into the queue.

Made by a hand-out with a limit per key, for its connection: without one it would cost every run."""

VERSION = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

SCHEMA = TABLES + INDEXES + VERSION

# -- accept

LAST_SEQ = "SELECT coalesce(max(seq), 0) FROM runs"
LAST_ID = "SELECT max(id) FROM runs"
PARENT = """
SELECT root_id, cancels_children AND (cancel_requested_at IS NOT NULL) FROM runs WHERE id = ?
"""
FIND_BY_KEY = "SELECT run_id FROM idempotency WHERE task = ? AND key = ? AND expires_at > ?"
ACCEPT = """
INSERT INTO runs (
    seq, id, task, status, phase, queue, rank, concurrency_key, parent_id, root_id,
    idempotency_key, created_at, run_at, priority, expires_at, max_attempts, max_duration, tags,
    replay_of, stream_run_id, triggered_by
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
ACCEPT_PAYLOAD = "INSERT INTO payloads (seq, payload) VALUES (?, ?)"
ACCEPT_METADATA = "INSERT INTO metadata (seq, metadata) VALUES (?, ?)"
ACCEPT_TAG = "INSERT INTO tags (tag, seq) VALUES (?, ?)"
ACCEPT_KEY = (
    "INSERT OR REPLACE INTO idempotency (task, key, run_id, expires_at) VALUES (?, ?, ?, ?)"
)
SET_METADATA = """
INSERT OR REPLACE INTO metadata (seq, metadata) SELECT seq, ? FROM runs WHERE id = ?
"""
TAGS_OF = "SELECT seq, tags FROM runs WHERE id = ?"
SET_TAGS = "UPDATE runs SET tags = ? WHERE seq = ?"
RESCHEDULE = """
UPDATE runs SET run_at = :run_at, rank = :run_at - priority,
    expires_at = expires_at - run_at + :run_at
WHERE id = :id AND status = :status
"""

# -- claim

READY_OF_QUEUE = f"""
SELECT rank, seq, task, queue, concurrency_key FROM runs INDEXED BY runs_ready
WHERE {_READY} AND queue = ? ORDER BY rank, seq
"""
READY_BY_ID = """
SELECT rank, seq, task, queue, concurrency_key FROM runs WHERE id = ? AND phase IN (0, 4)
"""
_EXECUTING = f"{_IN_HAND} AND queue = ? AND status = '{Status.EXECUTING}'"
OF_QUEUE = f"SELECT count(*) FROM runs INDEXED BY runs_in_hand WHERE {_EXECUTING}"
OF_KEY = f"{OF_QUEUE} AND concurrency_key = ?"
CLAIM = f"""
UPDATE runs SET {_becomes(Status.EXECUTING)},
    attempt = attempt + 1, owner = ?, pid = ?, worker = ?, started_at = ?, expires_at = NULL
WHERE seq = ?
"""
PARK = "UPDATE runs SET phase = 4 WHERE seq = ?"
SHELVE = "UPDATE runs SET phase = 5 WHERE seq = ?"
UNSHELVE = f"UPDATE runs SET phase = 0 WHERE {_SHELVED}"
PARKED_KEYS = f"""
WITH RECURSIVE parked (queue, concurrency_key) AS (
    SELECT * FROM (SELECT queue, concurrency_key FROM runs INDEXED BY runs_aside
        WHERE {_PARKED} ORDER BY queue, concurrency_key LIMIT 1)
    UNION ALL
    SELECT next.queue, next.concurrency_key FROM parked, runs AS next
    WHERE next.seq = (
        SELECT seq FROM runs INDEXED BY runs_aside
        WHERE {_PARKED}
            AND (queue, concurrency_key) > (parked.queue, parked.concurrency_key)
        ORDER BY queue, concurrency_key LIMIT 1
    )
)
SELECT queue, concurrency_key FROM parked
"""
UNPARK = f"""
UPDATE runs SET phase = 0 WHERE seq IN (
    SELECT seq FROM runs INDEXED BY runs_aside
    WHERE {_PARKED} AND queue = ? AND concurrency_key = ? ORDER BY rank, seq LIMIT ?
)
"""

# -- time

NEXT_DUE_AT = f"""
SELECT min(at) FROM (
    SELECT min(run_at) AS at FROM runs INDEXED BY runs_later WHERE {_LATER}
    UNION ALL
    SELECT min(expires_at) FROM runs INDEXED BY runs_expiring WHERE expires_at IS NOT NULL
)
"""
DUE = f"""
SELECT seq FROM runs INDEXED BY runs_later
WHERE {_LATER} AND run_at <= ? ORDER BY run_at LIMIT ?
"""
PROMOTE = f"UPDATE runs SET {_becomes(Status.QUEUED)} WHERE seq = ?"
EXPIRED = """
SELECT seq FROM runs INDEXED BY runs_expiring
WHERE expires_at IS NOT NULL AND expires_at <= ? ORDER BY expires_at LIMIT ?
"""
EXPIRE = f"""
UPDATE runs SET {_becomes(Status.EXPIRED)}, finished_at = ?, expires_at = NULL WHERE seq = ?
"""

# -- the end of an attempt, fenced


def _unless_canceled(status: Status) -> str:
    """Write the assignments that put a run back, or end it if it was to be canceled."""
    return f"""
    status = iif(cancel_requested_at IS NULL, '{status}', '{Status.CANCELED}'),
    phase = iif(cancel_requested_at IS NULL, {PHASES[status]}, {PHASES[Status.CANCELED]}),
    owner = iif(cancel_requested_at IS NULL, NULL, owner),
    finished_at = iif(cancel_requested_at IS NULL, NULL, :now)"""


_FENCE = f"WHERE id = ? AND attempt = ? AND owner = ? AND {_IN_HAND}"
_NAMED_FENCE = f"WHERE id = :id AND attempt = :attempt AND owner = :owner AND {_IN_HAND}"
WAIT = f"UPDATE runs SET {_becomes(Status.WAITING)} {_FENCE}"
RESUME = f"UPDATE runs SET {_becomes(Status.EXECUTING)} {_FENCE}"
FINISH = f"""
UPDATE runs SET status = ?1, phase = 2, crashes = crashes + (?1 = '{Status.CRASHED}'),
    output = ?, error = ?, log_tail = ?, records_lost = ?, finished_at = ?
{_FENCE}
"""
FINISH_ONE = f"{FINISH} RETURNING task"
RETRY = f"""
UPDATE runs SET {_unless_canceled(Status.RETRYING)},
    run_at = :run_at, rank = :run_at - priority, error = :error, crashes = crashes + :crashed
{_NAMED_FENCE} RETURNING task, status
"""
REQUEUE = f"""
UPDATE runs SET {_unless_canceled(Status.QUEUED)},
    excused = excused + :excused, crashes = crashes + :crashed
{_NAMED_FENCE} RETURNING task, status
"""

# -- the end of a worker

SELECT_IN_HAND = f"""
SELECT seq FROM runs INDEXED BY runs_in_hand
WHERE {_IN_HAND} AND (:owner IS NULL OR owner = :owner) ORDER BY rank, seq
"""
RELEASE = f"""
UPDATE runs SET {_unless_canceled(Status.QUEUED)},
    excused = excused + (id IS NOT :blamed), crashes = crashes + (id IS :blamed)
WHERE seq = :seq
"""

# -- cancel

CANCELABLE = "SELECT seq, id, status, phase FROM runs WHERE id = ?"
CANCELABLE_BELOW = """
WITH RECURSIVE below (id) AS (
    VALUES (?)
    UNION
    SELECT runs.id FROM below JOIN runs INDEXED BY runs_below ON runs.parent_id = below.id
)
SELECT seq, id, status, phase FROM below JOIN runs USING (id)
"""
_CANCELED_BY = """
    cancel_requested_at = coalesce(cancel_requested_at, :now),
    canceled_by = coalesce(canceled_by, :by),
    cancels_children = cancels_children OR :descendants"""
CANCEL = f"""
UPDATE runs SET {_becomes(Status.CANCELED)}, finished_at = :now, expires_at = NULL, {_CANCELED_BY}
WHERE seq = :seq
"""
REQUEST_CANCEL = f"UPDATE runs SET {_CANCELED_BY} WHERE seq = :seq"

# -- the past

COUNT_ENDS = """
INSERT INTO history VALUES (?, ?, ?)
ON CONFLICT (task, status) DO UPDATE SET runs = runs + excluded.runs
"""
FINISHED_RUNS = "SELECT coalesce(sum(runs), 0) FROM history"
OLDEST_FINISHED = f"""
SELECT finished_at, seq, id, task, status, idempotency_key, tags,
    length(output) + (SELECT length(payload) FROM payloads WHERE payloads.seq = run.seq),
    idempotency_key IS NOT NULL
        AND EXISTS (SELECT 1 FROM runs WHERE runs.id = run.parent_id AND phase <> 2),
    parent_id
FROM runs AS run INDEXED BY runs_history
WHERE {_FINISHED} AND (finished_at, seq) > (?, ?) AND finished_at < ?
ORDER BY finished_at, seq LIMIT ?
"""
DELETE_RUN = (
    "DELETE FROM runs WHERE seq = ?",
    "DELETE FROM payloads WHERE seq = ?",
    "DELETE FROM metadata WHERE seq = ?",
)
DELETE_TAG = "DELETE FROM tags WHERE tag = ? AND seq = ?"
DELETE_KEY = "DELETE FROM idempotency WHERE task = ? AND key = ? AND run_id = ?"
FORGET_KEYS = """
DELETE FROM idempotency WHERE (task, key) IN (
    SELECT task, key FROM idempotency INDEXED BY idempotency_ends WHERE expires_at <= ? LIMIT ?
)
"""

# -- reads

SUMMARY_COLUMNS = RunSummary.__struct_fields__
COLUMNS = Run.__struct_fields__
_IN_ORDER = "FROM (SELECT value AS seq FROM json_each(?)) CROSS JOIN runs USING (seq)"
"""The rows with these numbers, in their order: CROSS JOIN keeps the outer loop outside. One query
for all costs a third of one for each."""
SUMMARIES = f"SELECT {', '.join(SUMMARY_COLUMNS)} {_IN_ORDER}"
_SELECT = f"""
SELECT {", ".join(COLUMNS)} FROM runs JOIN payloads USING (seq) LEFT JOIN metadata USING (seq)
"""
SELECT_BY_SEQS = _SELECT.replace("FROM runs", _IN_ORDER)
SELECT_BY_ID = f"{_SELECT} WHERE id = ?"
SELECT_TREE = f"""
WITH RECURSIVE below (run_id) AS (
    SELECT id FROM runs WHERE id = :root AND parent_id IS NULL
    UNION
    SELECT runs.id FROM below JOIN runs INDEXED BY runs_below ON runs.parent_id = below.run_id
)
{_SELECT} JOIN below ON run_id = id ORDER BY seq
"""
COUNTS = f"""
SELECT 'QUEUED', (SELECT count(*) FROM runs INDEXED BY runs_ready WHERE {_READY})
    + (SELECT count(*) FROM runs INDEXED BY runs_aside WHERE {_ASIDE})
UNION ALL
SELECT status, count(*) FROM runs INDEXED BY runs_later WHERE {_LATER} GROUP BY status
UNION ALL
SELECT status, count(*) FROM runs INDEXED BY runs_in_hand WHERE {_IN_HAND} GROUP BY status
UNION ALL
SELECT status, sum(runs) FROM history GROUP BY status
"""
COUNTS_BY_TASK = f"""
SELECT task, 'QUEUED', count(*) FROM runs INDEXED BY runs_ready WHERE {_READY} GROUP BY task
UNION ALL
SELECT task, 'QUEUED', count(*) FROM runs INDEXED BY runs_aside WHERE {_ASIDE} GROUP BY task
UNION ALL
SELECT task, status, count(*) FROM runs INDEXED BY runs_later WHERE {_LATER} GROUP BY task, status
UNION ALL
SELECT task, status, count(*) FROM runs INDEXED BY runs_in_hand WHERE {_IN_HAND}
GROUP BY task, status
UNION ALL
SELECT task, status, runs FROM history WHERE runs > 0
"""
UNFINISHED = f"""
SELECT (SELECT count(*) FROM runs INDEXED BY runs_ready WHERE {_READY})
     + (SELECT count(*) FROM runs INDEXED BY runs_aside WHERE {_ASIDE})
     + (SELECT count(*) FROM runs INDEXED BY runs_later WHERE {_LATER})
     + (SELECT count(*) FROM runs INDEXED BY runs_in_hand WHERE {_IN_HAND})
"""
ONE_UNFINISHED = f"""
SELECT 1 FROM runs WHERE id IN (SELECT value FROM json_each(?)) AND NOT ({_FINISHED}) LIMIT 1
"""
IDS_FROM = "SELECT id FROM runs WHERE id >= ? ORDER BY id LIMIT ?"
SEQ_FROM_ID = "SELECT seq FROM runs WHERE id >= ? ORDER BY id LIMIT 1"
HISTORY_TASKS = "SELECT task FROM history WHERE status = ? AND runs > 0"
FINDABLE = {
    Status.QUEUED: (f"runs_ready WHERE {_READY}", f"runs_aside WHERE {_ASIDE}"),
    **dict.fromkeys(
        (Status.DELAYED, Status.RETRYING), (f"runs_later WHERE {_LATER} AND status = :status",)
    ),
    **dict.fromkeys(IN_HAND, (f"runs_in_hand WHERE {_IN_HAND} AND status = :status",)),
    **dict.fromkeys(
        FINISHED, (f"runs_finished WHERE {_FINISHED} AND task = :task AND status = :status",)
    ),
}
"""Where the runs of a status are found without reading others: index and condition."""
