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
from time import time
from typing import Any, TypeVar

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
from td_sharedcache.locks import STORE, USERS, FileLocks, Inode, KeptLock, inode_at
from td_sharedcache.namespaces import remove_dead_namespaces
from td_sharedcache.policy import Clock, Policy
from td_sharedcache.row import NOTHING, Gap, Row
from td_sharedcache.seal import Seal
from td_sharedcache.slot import Slot
from td_sharedcache.store import Stored

_T = TypeVar("_T")

_EPOCH = Slot("reset")
"""The gap that every slot without a row of its own has had since the last reset."""
_KEPT_FOR = 3600.0
"""Seconds a row stays that nobody reads. The file's own times are of the machine's clock."""
_TOUCHED_EVERY = 60.0
"""Seconds after which a row that is read is marked as used: a write a minute, not one a read."""
_CULLED = 100
"""How many rows at most one write removes: it must stay short."""
_REPAIRS = 3
"""What may be the matter before work can be done: no folder, not made, damaged."""
_TICK = 0.02
"""Seconds within which two writes may leave the same time on a file, with some to spare."""
_SWEPT_EVERY = 3600.0
"""Seconds between two looks for namespaces that are dead."""
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# Our statements do not vary, so an error in one of them means a foreign schema or a damaged page.
_DAMAGED = {
    *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR),
    *(sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH),
}
_SHORT_READ = 522


class DiskStore:
    """The rows of one namespace in one folder.

    Reads and writes are short and under a kernel lock of their own, so SQLite never waits: a lock
    that is taken is a `StoreBusyError` at once. The one connection of the process is closed before
    every fork and opened again when it is next needed.
    """

    def __init__(
        self,
        directory: Path,
        seal: Seal,
        *,
        clock: Clock,
        reporter: Reporter,
        policy: Policy | None = None,
    ) -> None:
        self._directory = directory
        self._folder = directory / seal.namespace
        self._path = f"{self._folder}/cache.db"
        self._locks = FileLocks(self._folder / "locks")
        self._lock = KeptLock(f"{self._folder}/locks/{STORE}")
        self._seal = seal
        self._clock = clock
        self._policy = policy or Policy()
        self._tell = reporter.tell
        self._untold: list[Callable[[], None]] = []
        self._cache: _OneConnectionCache | None = None
        self._opened: Inode | None = None
        self._damaged: Inode | None = None
        self._incomplete: Inode | None = None
        self._in_use = ExitStack()
        self._swept_at = 0.0
        # An unsafe folder is the operator's to mend; any other trouble may pass.
        with suppress(OSError):
            self._prepare()
        forks.watch(self)
        # Now, and not in the middle of the first call: it takes a millisecond.
        with suppress(StoreBusyError, StoreDownError):
            self._run(lambda _: None, exclusive=False)
        self._sweep()

    def load(self, slot: Slot) -> Row:
        """Give the slot's row; what cannot be opened counts as a gap and is reported."""
        row, used_at = self._run(lambda cache: self._read(cache, slot), exclusive=False)
        if used_at is not None and time() - used_at > _TOUCHED_EVERY:
            # Whoever comes next tries again, if this is not the moment.
            with suppress(StoreBusyError, StoreDownError):
                self._run(lambda cache: cache.touch(str(slot), _KEPT_FOR), exclusive=True)

        return row

    def rows(self) -> list[Stored]:
        """Give every row that opens, and when it was used."""
        found = self._run(lambda cache: cache.texts(), exclusive=False)

        # Deciphered outside the lock: a thousand rows take some 20 ms.
        return [stored for entry in found if (stored := self._opened_row(*entry)) is not None]

    def replace(self, slot: Slot, expected: str, row: Row) -> bool:
        """Put a row in the place of the one with the id `expected`, if it is still there."""

        def swap(cache: _OneConnectionCache) -> bool:
            # Nobody can come between the two: the lock is exclusive.
            if self._read(cache, slot)[0].id != expected:
                return False
            cache.set(str(slot), self._seal.close(slot, row), expire=_KEPT_FOR)
            return True

        try:
            return self._run(swap, exclusive=True)
        finally:
            self._sweep()

    def clear(self) -> None:
        """Drop every row; what was minted before cannot be installed any more."""
        epoch = Gap(id=secrets.token_hex(8), at=self._clock.wall(), until=0.0)

        def start_over(cache: _OneConnectionCache) -> None:
            with cache.transact():
                cache.clear()
                cache.set(str(_EPOCH), self._seal.close(_EPOCH, epoch))

        self._run(start_over, exclusive=True)

    def stamp(self) -> object:
        """Give a value that stays equal for as long as no row has changed.

        While the file is so young that another write might not show, no two values are equal.
        """
        try:
            found = os.stat(self._path)
        except OSError:
            return object()

        return object() if time() - found.st_mtime < _TICK else (found.st_ino, found.st_mtime_ns)

    def idle_holders(self) -> frozenset[int] | None:
        """Give the processes that keep the store to themselves asleep, None if it is unknown."""
        return self._lock.idle_holders()

    @contextmanager
    def stripe(self, slot: Slot) -> Iterator[bool]:
        """Hold the lock under which a slot is minted, or say that somebody else does."""
        with ExitStack() as stack:
            try:
                held = self._enter_stripe(stack, slot)
            except _TROUBLE as error:
                raise _down_or_busy(error) from error
            yield held

    def _enter_stripe(self, stack: ExitStack, slot: Slot) -> bool:
        with suppress(FileNotFoundError):
            return stack.enter_context(self._locks.stripe(slot))
        self._prepare()

        return stack.enter_context(self._locks.stripe(slot))

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with GUARD:
            self._drop()
            self._opened = None
            self._lock.close()
            self._in_use.close()

    def before_fork(self) -> None:
        """Close the connection: a child that inherits it would run without SQLite's locks."""
        if self._cache is not None:
            self._cache.close()

    def after_fork_in_child(self) -> None:
        """Open the file anew, and forget the parent's unsaid events: it says them itself."""
        self._untold.clear()
        self._cache = self._opened = None
        self._in_use = ExitStack()

    def _sweep(self) -> None:
        now = time()
        if now - self._swept_at >= _SWEPT_EVERY:
            self._swept_at = now
            remove_dead_namespaces(self._directory, mine=self._folder.name, now=now)

    def _prepare(self) -> None:
        for folder in (self._directory, self._folder, self._folder / "locks"):
            ensure_private(folder)

    def _run(self, work: Callable[[_OneConnectionCache], _T], *, exclusive: bool) -> _T:
        try:
            with GUARD:
                return self._repair_and_attempt(work, exclusive=exclusive)
        except _TROUBLE as error:
            raise _down_or_busy(error) from error
        finally:
            self._tell_untold()

    def _repair_and_attempt(
        self, work: Callable[[_OneConnectionCache], _T], *, exclusive: bool
    ) -> _T:
        exclusive = exclusive or self._must_make()
        for _ in range(_REPAIRS):
            try:
                return self._attempt(work, exclusive=exclusive)
            except _NotOpenError:
                self._incomplete = inode_at(self._path)
            except FileNotFoundError:
                self._prepare()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
            exclusive = True

        return self._attempt(work, exclusive=True)

    def _must_make(self) -> bool:
        """Tell whether a look under the shared lock is in vain, as far as one can see without it.

        Many who all look again and again would keep each other from the exclusive one.
        """
        if self._cache is not None:
            return False
        found = inode_at(self._path)

        return found is None or found in (self._damaged, self._incomplete)

    def _attempt(self, work: Callable[[_OneConnectionCache], _T], *, exclusive: bool) -> _T:
        if not self._lock.take(exclusive=exclusive):
            raise StoreBusyError
        try:
            return work(self._usable(may_create=exclusive))
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                # Remembered under the lock: it is this very file that is to be set aside.
                self._damaged = inode_at(self._path)
                self._drop()
            raise
        finally:
            self._lock.release()

    def _usable(self, *, may_create: bool) -> _OneConnectionCache:
        found = inode_at(self._path)
        if self._cache is not None and self._opened == found:
            return self._cache

        return self._open(found, may_create=may_create)

    def _open(self, found: Inode | None, *, may_create: bool) -> _OneConnectionCache:
        """Open the file; under the exclusive lock also make it, anew if it was damaged."""
        self._drop()
        is_damaged = found is not None and found == self._damaged
        if not may_create and (found is None or is_damaged):
            raise _NotOpenError
        reason = "the shared file was deleted or replaced" if self._opened else ""
        if is_damaged:
            self._set_aside()
            reason = "the shared file was damaged and has been set aside"
        self._damaged = None
        self._hold_in_use()
        self._cache = self._opened_cache(may_create=may_create)
        self._opened = inode_at(self._path)
        if reason:
            self._say("cache.degraded", reason=reason)
            self._say("cache.restored")

        return self._cache

    def _opened_cache(self, *, may_create: bool) -> _OneConnectionCache:
        if may_create:
            self._create()
        cache = _OneConnectionCache(self._folder, most=self._policy.l2_slots)
        try:
            cache.open(may_create=may_create)
        except BaseException:
            cache.close()
            raise

        return cache

    def _hold_in_use(self) -> None:
        # Anew each time: after a deletion the lock that is held is one on a file that is gone.
        self._in_use.close()
        if not self._in_use.enter_context(self._locks.hold(USERS, exclusive=False)):
            raise StoreBusyError

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

    def _drop(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def _read(self, cache: _OneConnectionCache, slot: Slot) -> tuple[Row, float | None]:
        """Give the slot's row and when it was used; None if that need not be known."""
        try:
            text, used_at = cache.text(slot)
            if text is not None:
                return self._seal.open(slot, text), used_at
        except RowRefusedError as error:
            self._say("credential.row_refused", slot=slot, reason=str(error))
        if slot == _EPOCH:
            return NOTHING, None

        return self._read(cache, _EPOCH)[0], None

    def _opened_row(self, key: str, text: str, used_at: float | None) -> Stored | None:
        if used_at is None:
            return None
        try:
            return Stored(Slot(key), self._seal.open(key, text), used_at)
        except RowRefusedError:
            return None

    def _say(self, name: str, **fields: Any) -> None:
        level: Level = "info" if name == "cache.restored" else "warning"
        self._untold.append(partial(self._tell, name, level, **fields))

    def _tell_untold(self) -> None:
        # Outside the guard, since a handler may take locks of its own.
        while self._untold:
            with suppress(IndexError):
                self._untold.pop(0)()


class _NotOpenError(Exception):
    """The file must be made or mended first, under the lock that excludes everybody."""


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
    """A diskcache with one connection for all threads, used under the guard.

    Args:
        folder: Where the file is.
        most: Rows beyond which a write removes those that were used longest ago.
    """

    def __init__(self, folder: Path, *, most: int) -> None:
        # Not diskcache's, which writes each of its settings whenever it opens a file: processes
        # that start together would do so one after the other.
        self._directory = str(folder)
        self._path = f"{folder}/cache.db"
        self._most = most
        self._timeout = 0
        self._txn_id = None
        self._disk = _TextDisk(self._directory)
        self._only: sqlite3.Connection | None = None
        self._is_making = False

    def open(self, *, may_create: bool) -> None:
        """Take the file as it is if it is complete; if not, have diskcache make what is missing.

        Raises:
            _NotOpenError: It is not complete, and this is not the moment to write.
        """
        settings = self._settings()
        if settings is None:
            if not may_create:
                raise _NotOpenError
            self._make()
            return

        for name in _ALL_SETTINGS:
            setattr(self, name, settings[name])

    def _make(self) -> None:
        # One transaction for what diskcache writes in some forty, while others wait for the lock.
        # It also tells now whether a stranger holds the file: diskcache would sleep on it.
        connection = self._con
        # Of all settings the one that a transaction cannot change.
        connection.execute("PRAGMA auto_vacuum=1")
        connection.execute("BEGIN IMMEDIATE")
        self._is_making = True
        try:
            with connection:
                super().__init__(self._directory, timeout=0, disk=_TextDisk, **_SETTINGS)
        finally:
            self._is_making = False

    def _settings(self) -> dict[str, Any] | None:
        """Give diskcache's settings, or None if they or the tables are not all as they must be."""
        names = {name for (name,) in self._con.execute("SELECT name FROM sqlite_master")}
        if not names >= _TABLES:
            return None
        found = dict(self._con.execute("SELECT key, value FROM Settings").fetchall())
        is_complete = found.keys() >= _ALL_SETTINGS and found.items() >= _SETTINGS.items()

        return found if is_complete else None

    def text(self, slot: str) -> tuple[str | None, float | None]:
        """Give a row's text and when it was used, None for what there is not.

        The columns are read here, and not by diskcache's `get`, which costs twice as much.

        Raises:
            RowRefusedError: It is not plain text.
        """
        rows = self._con.execute(_SELECT, (slot, time())).fetchall()
        if not rows:
            return None, None
        mode, value, expires_at = rows[0]

        return self._disk.fetch(mode, None, value, False), _used_at(expires_at)

    def texts(self) -> list[tuple[str, str, float | None]]:
        """Give key, text and time of use of all rows that are plain text."""
        return [
            (key, value, _used_at(expires_at))
            for key, mode, value, expires_at in self._sql(_SELECT_ALL, (time(),))
            if type(key) is str and mode == diskcache.core.MODE_RAW and type(value) is str
        ]

    def _cull(self, now: float, sql: Any, cleanup: Any, limit: int | None = None) -> None:
        """Remove what diskcache would, and keep the file bounded; inside its transaction."""
        super()._cull(now, sql, cleanup, limit)
        if self._excess(sql) > 0:
            # Rows from a time that has not come: the clock was set back. They would stay longest.
            sql(_DELETE_FUTURE, (now + 2 * _KEPT_FOR, _CULLED))
            sql(_DELETE_UNUSED, (max(0, min(self._excess(sql), _CULLED)),))

    def _excess(self, sql: Any) -> int:
        # Triggers keep this count up to date; counting the rows would take a millisecond.
        ((count,),) = sql("SELECT value FROM Settings WHERE key = 'count'").fetchall()

        return count - self._most if isinstance(count, int) else 0

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
        if self._is_making:
            # Diskcache's constructor ends like this, before anything is committed.
            return
        connection, self._only = self._only, None
        self._txn_id = None
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            # The file's settings are those of whoever wrote them; these are what counts.
            for name, value in _SETTINGS.items():
                if name.startswith("sqlite_"):
                    connection.execute(f"PRAGMA {name[7:]}={value}").fetchall()
        except BaseException:
            connection.close()
            raise
        connection.text_factory = _decode

        return connection


_SETTINGS: dict[str, Any] = {
    "statistics": 0,
    # With no policy only rows past their life are removed, and see `_cull`.
    "eviction_policy": "none",
    "cull_limit": _CULLED,
    "size_limit": 2**40,
    "sqlite_journal_mode": "truncate",
    # A mapped file that somebody truncates is a SIGBUS.
    "sqlite_mmap_size": 0,
    "sqlite_cache_size": 64,
    # No fsync on an event loop. After a power cut the worst is a file to set aside.
    "sqlite_synchronous": 0,
}
_ALL_SETTINGS = diskcache.core.DEFAULT_SETTINGS.keys() | diskcache.core.METADATA.keys()
_TABLES = {
    *("Settings", "Cache", "Cache_key_raw", "Cache_expire_time"),
    *("Settings_count_insert", "Settings_count_delete"),
    *("Settings_size_insert", "Settings_size_update", "Settings_size_delete"),
}
"""What diskcache makes in a new file, triggers and indexes included."""
_SELECT = (
    "SELECT mode, value, expire_time FROM Cache"
    " WHERE key = ? AND raw = 1 AND (expire_time IS NULL OR expire_time > ?)"
)
_SELECT_ALL = (
    "SELECT key, mode, value, expire_time FROM Cache"
    " WHERE raw = 1 AND (expire_time IS NULL OR expire_time > ?)"
)
_DELETE_UNUSED = (
    "DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache"
    " WHERE expire_time IS NOT NULL ORDER BY expire_time LIMIT ?)"
)
_DELETE_FUTURE = (
    "DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache WHERE expire_time > ? LIMIT ?)"
)


def _used_at(expires_at: Any) -> float | None:
    return expires_at - _KEPT_FOR if isinstance(expires_at, float) else None


def _decode(text: bytes) -> str:
    # A foreign row that is not UTF-8 must be refused by the seal, not fail the whole query.
    return text.decode(errors="replace")


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)

    return code & 0xFF in _DAMAGED or code == _SHORT_READ


_TROUBLE = (sqlite3.Error, OSError, CacheDirectoryError, diskcache.Timeout)


def _down_or_busy(error: BaseException) -> StoreBusyError | StoreDownError:
    """Turn what SQLite, diskcache and the file system raise into the two answers there are."""
    if isinstance(error, diskcache.Timeout) and error.__context__ is not None:
        # diskcache hides every reason for not getting a transaction behind this one.
        error = error.__context__
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY:
        return StoreBusyError()

    return StoreDownError(str(error))
