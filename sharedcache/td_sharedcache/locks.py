"""Kernel locks on files that are never deleted.

The kernel frees the lock of a process that dies, at once and whatever it died of. Nothing here
waits: a lock is there or it is not, and the caller decides how to pass the time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from td_sharedcache import forks
from td_sharedcache.forks import GUARD

STRIPES = 256
STORE = "store"
"""Held for one read or write of the rows."""
USERS = "users"
"""Held shared by every process that has the rows open, so that nobody removes them."""

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


def _lock(fd: int, path: str, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False

    # Somebody may have deleted the folder since the open: a lock on an unlinked file excludes
    # nobody who comes later.
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)

    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)
