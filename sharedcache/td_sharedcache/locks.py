"""Kernel locks on files that are never deleted.

The kernel frees the lock of a process that dies, at once and whatever it died of. Nothing here
waits: a lock is there or it is not, and the caller decides how to pass the time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from td_sharedcache import forks
from td_sharedcache.forks import GUARD

STRIPES = 256
STORE = "store"
"""Held for one read or write of the rows."""
USERS = "users"
"""Held shared by every process that has the rows open, so that nobody removes them."""

Inode = tuple[int, int]
"""Device and number: what tells a file from another one under the same name."""

_PROCESSES = Path("/proc")
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class _Held:
    """One held lock; an object, since a descriptor's number is reused after a close."""

    __slots__ = ("fd", "pid")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pid = os.getpid()


class FileLocks:
    """The lock files of one folder: 256 stripes for slots, and named ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._held: set[_Held] = set()
        forks.watch(self)

    @contextmanager
    def stripe(self, slot: str) -> Iterator[bool]:
        """Hold the lock of a slot, or say that somebody else does.

        Slots share stripes, so having waited for one proves nothing: look again. Never ask for a
        second slot while holding one; two processes doing that in opposite order wait for ever.
        """
        number = hashlib.blake2b(slot.encode(), digest_size=1).digest()[0] % STRIPES
        with self.hold(f"{number:02x}") as held:
            yield held

    @contextmanager
    def hold(self, name: str, *, exclusive: bool = True) -> Iterator[bool]:
        """Hold a named lock for the length of the block, if it is free.

        Yields:
            Whether it is held. It is lost only with the process.

        Raises:
            OSError: The lock file cannot be opened.
        """
        lock = self._take(f"{self._folder}/{name}", fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                self._release(lock)

    @contextmanager
    def hold_all(self) -> Iterator[bool]:
        """Hold every lock there is for the length of the block, if nobody holds or uses any."""
        with ExitStack() as stack:
            # The one that a living process holds comes first: finding it taken costs one file.
            names = (USERS, STORE, *(f"{number:02x}" for number in range(STRIPES)))
            yield all(stack.enter_context(self.hold(name)) for name in names)

    def before_fork(self) -> None:
        """Keep everything: the parent goes on holding what it holds."""

    def after_fork_in_child(self) -> None:
        """Close inherited descriptors.

        Left open they would keep the parent's locks alive after the parent has died; unlocked, they
        would free the parent's locks under its feet.
        """
        for lock in self._held:
            os.close(lock.fd)
        self._held = set()

    def _take(self, path: str, operation: int) -> _Held | None:
        # The guard keeps a fork from catching a descriptor that is locked but not in the books yet.
        with GUARD:
            fd = os.open(path, _FLAGS, 0o600)
            locked = False
            try:
                locked = _lock(fd, path, operation)
            finally:
                if not locked:
                    os.close(fd)
            if not locked:
                return None
            lock = _Held(fd)
            self._held.add(lock)

        return lock

    def _release(self, lock: _Held) -> None:
        with GUARD:
            # A generator that was suspended across a fork ends here in the child too, where the
            # descriptor was closed.
            if lock not in self._held:
                return
            self._held.remove(lock)
            # Unlock before closing: a child that was cloned behind Python's back may have a copy.
            # Not in a child whose hooks have not come to us yet: it is its parent's lock.
            if lock.pid == os.getpid():
                fcntl.flock(lock.fd, fcntl.LOCK_UN)
            os.close(lock.fd)


class KeptLock:
    """One lock file that stays open between two holds, which saves half of what a hold costs.

    For locks that are only ever held under the guard, so that no fork comes in between.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._inode: Inode | None = None
        self._close: Callable[[], object] = bool
        forks.watch(self)

    def take(self, *, exclusive: bool) -> bool:
        """Take the lock if it is free; the guard is held.

        Raises:
            OSError: The lock file cannot be opened.
        """
        # Twice: the file that is open may be one that was deleted since.
        for _ in range(2):
            if self._fd < 0:
                self._open()
            if not _try(self._fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH):
                return False
            if self._inode == inode_at(self._path):
                return True
            self.close()

        return False

    def release(self) -> None:
        """Free the lock; nothing is left to free in a child of whoever held it."""
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which frees the lock; the next take opens it again."""
        self._fd = -1
        self._close()

    def idle_holders(self) -> frozenset[int] | None:
        """Give the processes that hold the lock at this moment, and are asleep or stopped.

        Returns:
            None if the kernel shows nobody who holds it.
        """
        try:
            inode = os.stat(self._path).st_ino
            with open("/proc/locks", encoding="ascii") as lines:
                # "1: FLOCK  ADVISORY  READ 4711 08:01:131 0 EOF". The device is left out: some
                # file systems show another one to programs.
                found = [line.split() for line in lines if f":{inode} " in line]
        except OSError:
            return None
        holders = [int(fields[4]) for fields in found if fields[1] == "FLOCK"]

        return frozenset(pid for pid in holders if not _is_at_work(pid)) if holders else None

    def before_fork(self) -> None:
        """Keep the file: nobody holds the lock now."""

    def after_fork_in_child(self) -> None:
        """Close the parent's file: whoever locks that one locks for both."""
        self.close()

    def _open(self) -> None:
        self._fd = os.open(self._path, _FLAGS, 0o600)
        # Called once, by `close` or when nobody has this lock any more.
        self._close = weakref.finalize(self, os.close, self._fd)
        self._inode = _inode_of(os.fstat(self._fd))


def _is_at_work(pid: int) -> bool:
    """Tell whether a thread of a process is seen to run, to want to, or to wait for a disk.

    One that hides (`hidepid`), has gone or has no number here is not seen at work.
    """
    try:
        return any(
            # The state follows the name, which is in brackets and may hold any character.
            path.read_text(errors="replace").rpartition(")")[2].split()[0] in {"R", "D"}
            for path in _PROCESSES.joinpath(str(pid), "task").glob("*/stat")
        )
    except OSError:
        return False


def inode_at(path: str) -> Inode | None:
    """Tell which file a path leads to, None if there is none."""
    try:
        return _inode_of(os.stat(path))
    except FileNotFoundError:
        return None


def _inode_of(found: os.stat_result) -> Inode:
    return found.st_dev, found.st_ino


def _lock(fd: int, path: str, operation: int) -> bool:
    # Somebody may have deleted the folder since the open: a lock on an unlinked file excludes
    # nobody who comes later.
    return _try(fd, operation) and inode_at(path) == _inode_of(os.fstat(fd))


def _try(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False

    return True
