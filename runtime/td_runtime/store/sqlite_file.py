"""The SQLite file under a run store: how it is opened, closed, and what its failures mean."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from td_runtime.errors import StoreError
from td_runtime.store import sqlite_text
from td_runtime.store.migrations import migrate

__all__ = [
    "connect",
    "connect_readonly",
    "disconnect",
    "is_busy",
    "is_full",
    "translate",
    "translated",
]

_OPEN_TIMEOUT_S = 5.0
_JOURNAL_SIZE_LIMIT = 64 * 2**20  # bytes; a burst's WAL shrinks again

# A connection is strongly held until it is closed. A forked child inherits this set, so its
# interpreter never finalises the parent's connection: SQLite would believe to be the last user and
# delete the WAL under the parent.
_connections: set[sqlite3.Connection] = set()

_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)

_ADVICE = {
    sqlite3.SQLITE_BUSY: (
        "another process is writing to the run store",
        "end the process that has the file open (`fuser FILE`); only the supervisor writes to it",
    ),
    sqlite3.SQLITE_LOCKED: (
        "another connection holds the run store",
        "end the process that has the file open (`fuser FILE`); only the supervisor writes to it",
    ),
    sqlite3.SQLITE_FULL: (
        "there is no space left for the run store",
        "free space on the disk; what was not stored was not acknowledged",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "the run store is damaged",
        "stop td-runtime and put a backup in its place, or move the file and its -wal away",
    ),
    sqlite3.SQLITE_NOTADB: (
        "the run store's file is not a database",
        "stop td-runtime and put a backup in its place, or move the file and its -wal away",
    ),
    sqlite3.SQLITE_READONLY: (
        "the run store cannot be written",
        "make the data folder and the files in it writable for this user",
    ),
    sqlite3.SQLITE_PERM: (
        "the run store may not be opened",
        "make the data folder and the files in it readable and writable for this user",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "the run store cannot be opened",
        "check that the data folder exists and that this user may write to it",
    ),
    sqlite3.SQLITE_IOERR: (
        "the disk failed under the run store",
        "look at the kernel log (`dmesg`) and at the free space of the disk",
    ),
}


def connect(path: Path) -> sqlite3.Connection:
    """Open the run store for its one writer; make it if there is none.

    A commit on the connection is on the disk when it returns.

    Raises:
        StoreError: The file cannot be opened, is something else, or has a newer schema.
    """
    with translated(path):
        _create_private(path)
        connection = _open(path, "rw")
    with _closed_on_failure(connection), translated(path):
        # WAL and FULL together: readers never block the writer, and a commit survives power loss.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_SIZE_LIMIT}")
        version = _schema_version(connection, path)
        if version == 0:
            _create_schema(connection)
        else:
            migrate(connection, version)
        # From here on the loop waits for nobody; a locked file is tried again from a timer.
        connection.execute("PRAGMA busy_timeout = 0")

    return connection


def connect_readonly(path: Path) -> sqlite3.Connection:
    """Open the run store beside its writer, or without one; nothing is ever written.

    Raises:
        StoreError: There is no run store, it cannot be opened, or it has a newer schema.
    """
    with translated(path):
        is_there = path.is_file()
    if not is_there:
        raise StoreError(
            "there is no run store yet",
            where=str(path),
            advice="check the data folder, or start td-runtime once",
        )
    with translated(path):
        connection = _open(path, "ro")
    with _closed_on_failure(connection), translated(path):
        version = _schema_version(connection, path)
        if version == 0:
            raise StoreError(
                "the run store is empty", where=str(path), advice="start td-runtime once"
            )
        if version < sqlite_text.SCHEMA_VERSION:
            raise StoreError(
                f"the run store has schema version {version}, "
                f"which this td-runtime has not brought to {sqlite_text.SCHEMA_VERSION} yet",
                where=str(path),
                advice="start td-runtime once: it does so when it starts",
            )

    return connection


def disconnect(connection: sqlite3.Connection) -> None:
    """Close the connection; SQLite folds the WAL into the file if it was the last one."""
    _connections.discard(connection)
    connection.close()


def translate(error: sqlite3.Error, path: Path) -> StoreError:
    """Say in an operator's words what a failure of SQLite means; the cause is kept."""
    what, advice = _ADVICE.get(
        _primary_code(error),
        ("the run store failed", "look at the log; if it happens again, report it"),
    )
    translation = StoreError(f"{what}: {error}", where=str(path), advice=advice)
    translation.__cause__ = error

    return translation


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise inside into `StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error
    except OSError as error:
        raise StoreError(
            f"the run store cannot be opened: {error.strerror}",
            where=str(path),
            advice="check that the data folder exists and that this user may write to it",
        ) from error


def is_busy(error: sqlite3.Error) -> bool:
    """Whether trying again later may help, since another connection is in the way."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_full(error: sqlite3.Error) -> bool:
    """Whether the file could not grow, which passes once somebody makes room."""
    # A quota or a limit on file sizes is a failed write, not a full disk, to SQLite. A failed sync
    # is neither: nobody knows what is on the disk then.
    return getattr(error, "sqlite_errorcode", 0) in _NO_ROOM


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's result code without its extension; 0 for errors of Python's binding."""
    code: int = getattr(error, "sqlite_errorcode", 0)

    return code & 0xFF


def _create_private(path: Path) -> None:
    """Make the file with mode 0600; SQLite gives its -wal and -shm the same mode."""
    # Never open an existing one: closing any descriptor of a file drops all locks that SQLite
    # connections of this process hold on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _open(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=_OPEN_TIMEOUT_S,
        isolation_level=None,
    )
    _connections.add(connection)

    return connection


@contextmanager
def _closed_on_failure(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        disconnect(connection)
        raise


def _schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """Read the version; 0 is a new file.

    Raises:
        StoreError: The file belongs to another program, or to a newer td-runtime.
    """
    version = _pragma(connection, "user_version")
    application = _pragma(connection, "application_id")
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != sqlite_text.APPLICATION_ID and (application or version or tables):
        raise StoreError(
            "the file is a database, but not a run store",
            where=str(path),
            advice="move it away, or set another runtime.data_dir",
        )
    if version > sqlite_text.SCHEMA_VERSION:
        raise StoreError(
            f"the run store has schema version {version}; "
            f"this td-runtime knows {sqlite_text.SCHEMA_VERSION}",
            where=str(path),
            advice="start the td-runtime that wrote it, or a newer one",
        )

    return version


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()

    return int(value)


def _create_schema(connection: sqlite3.Connection) -> None:
    """Make tables and version in one transaction: a crash in between leaves a new file."""
    connection.executescript(f"BEGIN IMMEDIATE;{sqlite_text.SCHEMA}COMMIT;")
