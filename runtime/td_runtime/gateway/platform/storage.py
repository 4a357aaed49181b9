"""The platform's SQLite file and the one thread that writes it.

Every write of a moment goes into one transaction: while a commit is in its ``fsync``, the next
writes gather in the queue. Callers are told after the commit, never before, so whatever was
answered is on disk.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeVar

from td_runtime.gateway.errors import GatewayError, StoreOpenError, StoreUnavailableError

T = TypeVar("T")

GROUP_MAX: Final = 512

# One script a schema version; a file is brought up from whichever it has. Never change one that
# was released: append the next.
_SCRIPTS: Final = (
    """
CREATE TABLE streams (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    next_seq INTEGER NOT NULL,
    last_timestamp INTEGER NOT NULL,
    trim_seq INTEGER NOT NULL,
    fencing_token TEXT NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    stream_id INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    count INTEGER NOT NULL,
    last_timestamp INTEGER NOT NULL,
    stored_at INTEGER NOT NULL,
    payload BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX batches_by_place ON batches (stream_id, first_seq);
CREATE TABLE tokens (
    hash BLOB PRIMARY KEY,
    slot TEXT NOT NULL,
    stream TEXT NOT NULL,
    ops TEXT NOT NULL,
    issued_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    revoked INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_by_slot ON tokens (slot);
CREATE INDEX tokens_by_expiry ON tokens (expires_at);
""",
    """
ALTER TABLE streams ADD COLUMN created_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE streams ADD COLUMN config TEXT NOT NULL DEFAULT '{}';
ALTER TABLE streams ADD COLUMN request_token TEXT;
UPDATE streams SET created_at = changed_at;
CREATE TABLE basins (
    name TEXT PRIMARY KEY,
    config TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    request_token TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE issued_tokens (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    document TEXT NOT NULL,
    expires_at REAL
) STRICT, WITHOUT ROWID;
""",
    """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    external_id TEXT UNIQUE,
    type TEXT NOT NULL,
    task_identifier TEXT NOT NULL,
    trigger_config TEXT NOT NULL,
    tags TEXT NOT NULL,
    metadata TEXT,
    current_run_id TEXT,
    current_run_version INTEGER NOT NULL,
    closed_at INTEGER,
    closed_reason TEXT,
    expires_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE waitpoints (
    id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL,
    stream TEXT NOT NULL,
    idempotency_key TEXT,
    idempotency_expires_at INTEGER,
    tags TEXT NOT NULL,
    timeout_at INTEGER,
    created_at INTEGER NOT NULL,
    completed_at INTEGER,
    output TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX waitpoints_by_stream ON waitpoints (stream) WHERE completed_at IS NULL;
CREATE INDEX waitpoints_by_key ON waitpoints (idempotency_key)
    WHERE idempotency_key IS NOT NULL;
""",
    """
CREATE TABLE run_batches (
    id TEXT PRIMARY KEY,
    run_count INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    idempotency_key TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX run_batches_by_key ON run_batches (idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE TABLE run_batch_items (
    batch_id TEXT NOT NULL,
    "index" INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    PRIMARY KEY (batch_id, "index")
) STRICT, WITHOUT ROWID;
CREATE INDEX run_batch_items_by_run ON run_batch_items (run_id);
""",
)
SCHEMA_VERSION: Final = len(_SCRIPTS)


class Participant(Protocol):
    """Something that keeps state beside the writer's transaction."""

    def flush(self, connection: sqlite3.Connection) -> None:
        """Write what is pending; called before each commit."""

    def forget(self) -> None:
        """Drop pending and cached state; called after a rollback."""


class _Write:
    """One operation on its way through the writer thread."""

    __slots__ = ("after", "error", "future", "on_failed", "operation", "result")

    def __init__(
        self,
        operation: Callable[[sqlite3.Connection], Any],
        after: Callable[[Any], None] | None,
        on_failed: Callable[[], None] | None,
        future: asyncio.Future[Any],
    ) -> None:
        self.operation = operation
        self.after = after
        self.on_failed = on_failed
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        """Run inside the open transaction; a domain error concerns this operation alone."""
        self.error = None
        try:
            self.result = self.operation(connection)
        except GatewayError as error:
            self.fail(error)

    def fail(self, error: GatewayError) -> None:
        """Note, on the writer thread, that nothing of it will be stored."""
        self.error = error
        if self.on_failed is not None:
            self.on_failed()

    def settle(self) -> None:
        """Tell the caller, on the event loop, after the commit."""
        if self.error is None and self.after is not None:
            self._call_after(self.after)
        if self.future.done():  # the caller went away; what it asked for is stored all the same
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)

    def _call_after(self, after: Callable[[Any], None]) -> None:
        """Let a failure be this caller's alone: the others of the group wait to be told, too."""
        try:
            after(self.result)
        except Exception as error:  # noqa: BLE001  as above
            self.error = error
            self.future.get_loop().call_exception_handler(
                {"message": "a write was stored, but not taken note of", "exception": error}
            )


class Storage:
    """``platform.db``: one writer thread, readers beside it.

    Opened by ``open`` on the event loop, closed by ``close``, which commits what was queued.
    """

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self._loop = loop
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._participants: list[Participant] = []
        self._connection = _connect(path)
        self._thread = threading.Thread(target=self._write_forever, name="platform-writer")

    @classmethod
    def open(cls, path: str) -> Storage:
        """Open or create the file and start its writer.

        Raises:
            StoreOpenError: The file cannot be opened, or belongs to a newer version.
        """
        try:
            storage = cls(path, asyncio.get_running_loop())
        except (sqlite3.Error, OSError) as error:
            raise StoreOpenError(f"cannot open {path}: {error}") from error
        storage._thread.start()

        return storage

    def join(self, participant: Participant) -> None:
        """Have ``participant`` flushed before commits and emptied after rollbacks."""
        self._participants.append(participant)

    def connect_reader(self) -> sqlite3.Connection:
        """A read-only connection of the caller's own; it sees what is committed."""
        connection = sqlite3.connect(
            f"file:{uri_path(self._path)}?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA query_only = ON")
        return connection

    def write(
        self,
        operation: Callable[[sqlite3.Connection], T],
        *,
        after: Callable[[T], None] | None = None,
        on_failed: Callable[[], None] | None = None,
    ) -> asyncio.Future[T]:
        """Queue ``operation`` for the writer; the future resolves after its commit.

        Args:
            operation: Runs on the writer thread inside a transaction shared with others. It must
                raise a ``GatewayError`` before it changes anything, or not at all.
            after: Called with the result on the event loop after the commit, before the future
                resolves, also when the caller was cancelled meanwhile.
            on_failed: Called on the writer thread when nothing of it is stored, before any later
                write runs.

        Raises:
            StoreUnavailableError: Through the future: nothing was stored.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if not self._thread.is_alive():
            future.set_exception(StoreUnavailableError("the gateway is stopping"))
            return future
        self._queue.put(_Write(operation, after, on_failed, future))

        return future

    def close(self) -> None:
        """Commit what is queued and stop the writer. Blocks for one commit at most."""
        self._queue.put(None)
        self._thread.join()

    def _write_forever(self) -> None:
        try:
            while group := self._gather():
                self._commit(group)
                self._loop.call_soon_threadsafe(_settle, group)
        finally:
            self._connection.close()

    def _gather(self) -> list[_Write]:
        first = self._queue.get()
        group = [] if first is None else [first]
        while group and len(group) < GROUP_MAX and not self._queue.empty():
            write = self._queue.get()
            if write is None:
                self._queue.put(None)  # seen again on the next round
                break
            group.append(write)

        return group

    def _commit(self, group: list[_Write]) -> None:
        try:
            self._try_commit(group)
        except Exception:  # noqa: BLE001  the writer must outlive any failed write
            for write in group:
                self._commit_alone(write)

    def _commit_alone(self, write: _Write) -> None:
        """Try again in a transaction of its own: a bad write fails alone."""
        # State is read anew under the transaction's lock, for each write: between two of them
        # another process may have written, and its numbers would be given again.
        self._roll_back()
        try:
            self._try_commit([write])
        except Exception as error:  # noqa: BLE001  as above
            self._roll_back()
            failure = StoreUnavailableError(f"the write was not committed: {error}")
            failure.__cause__ = error
            write.fail(failure)

    def _try_commit(self, group: list[_Write]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for write in group:
            write.run(self._connection)
        for participant in self._participants:
            participant.flush(self._connection)
        self._connection.execute("COMMIT")

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        for participant in self._participants:
            participant.forget()


def _settle(group: Iterable[_Write]) -> None:
    for write in group:
        write.settle()


def _connect(path: str) -> sqlite3.Connection:
    # Created here so that it is private from its first byte; SQLite gives -wal and -shm its mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = -16384")
    _migrate(connection)

    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(
            f"it was written by a newer version (schema {version}, this one knows {SCHEMA_VERSION})"
        )
    for number, script in enumerate(_SCRIPTS[version:], version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;"
        )


def uri_path(path: str) -> str:
    """A file's path as the path of an SQLite ``file:`` URI."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
