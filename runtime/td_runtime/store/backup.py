"""Copying a run store while it is used."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from td_runtime.errors import StoreError
from td_runtime.store.sqlite_file import connect_readonly, disconnect, translate

__all__ = ["backup"]

_STEP_PAGES = 256  # 1 MiB: what is read at once


def backup(
    source: Path, target: Path, *, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Copy the run store as it is at this moment, beside a supervisor or without one.

    The copy is one file, mode 0600, complete or not there at all. The supervisor goes on meanwhile;
    its `runs.db-wal` grows until the copy is done.

    Args:
        source: The run store.
        target: Where the copy goes; there must be no such file.
        on_progress: Called after each step with the pages that are left, and all there are.

    Raises:
        StoreError: The store cannot be read, the target cannot be written, or is there already.
    """
    if target.exists():
        raise StoreError(
            "there is a file already",
            where=str(target),
            advice="name a file that does not exist; backups are never overwritten",
        )
    connection = connect_readonly(source)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with _writing(target):
            _copy(connection, partial, on_progress)
            _sync(partial)
            os.link(partial, target)  # refuses a file that somebody has made meanwhile
            _sync(target.parent)
    finally:
        disconnect(connection)
        with suppress(FileNotFoundError, NotADirectoryError):
            partial.unlink()


def _copy(
    source: sqlite3.Connection, partial: Path, on_progress: Callable[[int, int], None] | None
) -> None:
    # Inside one read: otherwise each commit of the supervisor would start the copy over.
    source.execute("BEGIN")
    source.execute("SELECT count(*) FROM sqlite_master").fetchone()
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
        source.backup(
            copy,
            pages=_STEP_PAGES,
            progress=None if on_progress is None else _told(on_progress),
        )
        # Without a -wal beside it the file can be moved anywhere, and read from a read-only disk.
        copy.execute("PRAGMA journal_mode = DELETE")


def _told(on_progress: Callable[[int, int], None]) -> Callable[[int, int, int], None]:
    return lambda _, left, pages: on_progress(left, pages)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn what fails at the copy into `StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, target) from error
    except OSError as error:
        raise StoreError(
            f"the backup cannot be written: {error.strerror}",
            where=str(target),
            advice="check that the folder exists, that it is writable, and that there is room",
        ) from error
