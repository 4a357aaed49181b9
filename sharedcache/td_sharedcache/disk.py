"""The rows that all processes of a host share: one diskcache file under kernel locks.

What diskcache does by default and must not do here: unpickle what it finds (CVE-2025-69872), keep a
connection per thread across forks (a child then runs with no locks at all), drop rows to stay below
a size, sleep inside SQLite for up to 60 s, write a WAL.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import diskcache

from td_sharedcache import forks
from td_sharedcache.errors import (
    CacheDirectoryError,
    RowRefusedError,
    StoreBusyError,
    StoreDownError,
)
from td_sharedcache.event import Level, Reporter
from td_sharedcache.folder import ensure_private
from td_sharedcache.forks import GUARD
from td_sharedcache.locks import FileLocks
from td_sharedcache.policy import Clock
from td_sharedcache.row import NOTHING, Gap, Row
from td_sharedcache.seal import Seal
from td_sharedcache.slot import Slot

_T = TypeVar("_T")
_Inode = tuple[int, int]

_LOCK = "store"
_EPOCH = Slot("reset")
"""The gap that every slot without a row of its own has had since the last reset."""
_KEPT_FOR = 3600.0
"""Seconds a worthless row stays, so that nobody who looked at it finds it gone."""
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# An SQL error can only mean a foreign schema, since our statements do not vary.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_SHORT_READ = 522


class DiskStore:
    """The rows of one namespace in one folder.

    Reads and writes are short and under a kernel lock of their own, so SQLite never waits: a lock
    that is taken is a `StoreBusyError` at once. The one connection of the process is closed before
    every fork and opened again when it is next needed.
    """

    def __init__(self, directory: Path, seal: Seal, *, clock: Clock, reporter: Reporter) -> None:
        self._directory = directory
        self._folder = directory / seal.namespace
        self._path = self._folder / "cache.db"
        self._locks = FileLocks(self._folder / "locks")
        self._seal = seal
        self._clock = clock
        self._tell = reporter.tell
        self._untold: list[Callable[[], None]] = []
        self._cache: _OneConnectionCache | None = None
        self._opened: _Inode | None = None
        self._damaged: _Inode | None = None
        # An unsafe folder is the operator's to mend; any other trouble may pass.
        with suppress(OSError):
            self._prepare()
        forks.watch(self)

    def load(self, slot: Slot) -> Row:
        """Give the slot's row; what cannot be opened counts as a gap and is reported."""
        return self._run(lambda cache: self._read(cache, slot), exclusive=False)

    def replace(self, slot: Slot, expected: str, row: Row) -> bool:
        """Put a row in the place of the one with the id `expected`, if it is still there."""

        def swap(cache: _OneConnectionCache) -> bool:
            # Nobody can come between the two: the lock is exclusive.
            if self._read(cache, slot).id != expected:
                return False
            life = max(0.0, row.forget_at() - self._clock.wall()) + _KEPT_FOR
            cache.set(str(slot), self._seal.close(slot, row), expire=life)
            return True

        return self._run(swap, exclusive=True)

    def clear(self) -> None:
        """Drop every row; what was minted before cannot be installed any more."""
        epoch = Gap(id=secrets.token_hex(8), at=self._clock.wall(), until=0.0)

        def start_over(cache: _OneConnectionCache) -> None:
            with cache.transact():
                cache.clear()
                cache.set(str(_EPOCH), self._seal.close(_EPOCH, epoch))

        self._run(start_over, exclusive=True)

    @contextmanager
    def stripe(self, slot: Slot) -> Iterator[bool]:
        """Hold the lock under which a slot is minted, or say that somebody else does."""
        with ExitStack() as stack:
            with _translated():
                try:
                    held = stack.enter_context(self._locks.stripe(slot))
                except FileNotFoundError:
                    self._prepare()
                    held = stack.enter_context(self._locks.stripe(slot))
            yield held

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        with GUARD:
            if self._cache is not None:
                self._cache.close()

    def before_fork(self) -> None:
        """Close the connection: a child that inherits it would run without SQLite's locks."""
        self.close()

    def after_fork_in_child(self) -> None:
        """Forget the parent's unsaid events: it says them itself."""
        self._untold.clear()

    def _prepare(self) -> None:
        for folder in (self._directory, self._folder, self._folder / "locks"):
            ensure_private(folder)

    def _run(self, work: Callable[[_OneConnectionCache], _T], *, exclusive: bool) -> _T:
        try:
            with GUARD, _translated():
                try:
                    return self._attempt(work, exclusive=exclusive)
                except FileNotFoundError:
                    self._prepare()
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                return self._attempt(work, exclusive=True)
        finally:
            self._tell_untold()

    def _attempt(self, work: Callable[[_OneConnectionCache], _T], *, exclusive: bool) -> _T:
        stale = self._is_stale()
        with self._locks.hold(_LOCK, exclusive=exclusive or stale) as held:
            if not held or (not stale and self._is_stale()):
                raise StoreBusyError
            try:
                return work(self._open() if stale else self._current())
            except sqlite3.DatabaseError as error:
                if _is_damage(error):
                    # Remembered under the lock: it is this very file that is to be set aside.
                    self._damaged = self._inode()
                    self._drop()
                raise

    def _current(self) -> _OneConnectionCache:
        if self._cache is None:
            raise StoreBusyError

        return self._cache

    def _open(self) -> _OneConnectionCache:
        """Open the file, anew if it was damaged; the exclusive lock is held."""
        self._drop()
        reason = "the shared file was deleted or replaced" if self._opened else ""
        if self._damaged is not None and self._damaged == self._inode():
            self._set_aside()
            reason = "the shared file was damaged and has been set aside"
        self._damaged = None
        self._create()
        self._cache = _OneConnectionCache(self._folder)
        self._opened = self._inode()
        if reason:
            self._say("cache.degraded", reason=reason)
            self._say("cache.restored")

        return self._cache

    def _create(self) -> None:
        # SQLite would create the file with the umask's mode, and gives its journal the same one.
        # Never open and close a file that exists: that drops the SQLite locks of the process.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))

    def _set_aside(self) -> None:
        # The journal first: next to a new file it would be played back into it.
        with suppress(FileNotFoundError):
            os.unlink(f"{self._path}-journal")
        os.replace(self._path, f"{self._path}.damaged")

    def _is_stale(self) -> bool:
        return self._cache is None or self._opened is None or self._inode() != self._opened

    def _inode(self) -> _Inode | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None

        return found.st_dev, found.st_ino

    def _drop(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def _read(self, cache: _OneConnectionCache, slot: Slot) -> Row:
        try:
            text = cast("str | None", cache.get(str(slot)))
            if text is not None:
                return self._seal.open(slot, text)
        except RowRefusedError as error:
            self._say("credential.row_refused", slot=slot, reason=str(error))

        return NOTHING if slot == _EPOCH else self._read(cache, _EPOCH)

    def _say(self, name: str, **fields: Any) -> None:
        level: Level = "info" if name == "cache.restored" else "warning"
        self._untold.append(partial(self._tell, name, level, **fields))

    def _tell_untold(self) -> None:
        # Outside the guard, since a handler may take locks of its own.
        while self._untold:
            with suppress(IndexError):
                self._untold.pop(0)()


class _TextDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Text keys and text values inside the database; everything else is refused, unread."""

    def put(self, key: object) -> tuple[str, bool]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if type(key) is not str:
            raise TypeError(f"a key must be text, got {type(key).__name__}")

        return key, True

    def get(self, key: object, raw: object) -> str:
        if type(key) is not str or not raw:
            raise RowRefusedError("its key is not plain text")

        return key

    def store(self, value: object, read: object, key: object = None) -> tuple[Any, ...]:  # noqa: ARG002
        if type(value) is not str:
            raise TypeError(f"a value must be text, got {type(value).__name__}")

        return 0, diskcache.core.MODE_RAW, None, value

    def fetch(self, mode: object, filename: object, value: object, read: object) -> str:  # noqa: ARG002
        if mode != diskcache.core.MODE_RAW or type(value) is not str:
            raise RowRefusedError(f"it is not plain text (mode {mode})")

        return value


class _OneConnectionCache(diskcache.Cache):  # type: ignore[misc]  # diskcache ships no types
    """A diskcache with one connection for all threads, used under the guard."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "cache.db")
        self._only: sqlite3.Connection | None = None
        super().__init__(
            str(folder),
            timeout=0,
            disk=_TextDisk,
            statistics=0,
            # With no policy only rows past their life are removed, ten at most with each write.
            eviction_policy="none",
            cull_limit=10,
            size_limit=2**40,
            sqlite_journal_mode="truncate",
            # A mapped file that somebody truncates is a SIGBUS.
            sqlite_mmap_size=0,
            sqlite_cache_size=64,
            # No fsync on an event loop. After a power cut the worst is a file to set aside.
            sqlite_synchronous=0,
        )

    @property
    def _con(self) -> sqlite3.Connection:
        if self._only is None:
            self._only = self._connect()

        return self._only

    @property
    def _sql_retry(self) -> Any:
        # The original sleeps and tries again for a minute, on whatever loop this is.
        return self._sql

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        connection, self._only = self._only, None
        self._txn_id = None
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            # Find out now whether a stranger holds the file: diskcache would sleep on it.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            # Set here too, since the settings in the file are those of whoever opened it last.
            for pragma in ("journal_mode=truncate", "mmap_size=0", "synchronous=0"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
        except BaseException:
            connection.close()
            raise
        connection.text_factory = _decode

        return connection


def _decode(text: bytes) -> str:
    # A foreign row that is not UTF-8 must be refused by the seal, not fail the whole query.
    return text.decode(errors="replace")


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)

    return code & 0xFF in _DAMAGED or code == _SHORT_READ


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what SQLite, diskcache and the file system raise into the two answers there are."""
    try:
        yield
    except diskcache.Timeout as error:
        # diskcache hides every reason for not getting a transaction behind this one.
        raise _down_or_busy(error.__context__ or error) from error
    except (sqlite3.Error, OSError, CacheDirectoryError) as error:
        raise _down_or_busy(error) from error


def _down_or_busy(error: BaseException) -> StoreBusyError | StoreDownError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY:
        return StoreBusyError()

    return StoreDownError(str(error))
