"""One guard that makes the whole package safe to fork at any moment.

Whoever is in the middle of something that a child must not inherit half done (an open SQLite
connection, a lock file between open and book-keeping) holds `GUARD`. A fork waits for it, so in the
child nothing is ever half done. It is held for microseconds, never while waiting for another
process, and never while calling a handler.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet

# Re-entrant: a signal handler that forks while its own thread holds the guard must not hang.
GUARD = threading.RLock()


class Forkable(Protocol):
    """Something that a child must not share with its parent."""

    def before_fork(self) -> None:
        """Let go of what must not be inherited."""

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent."""


_forkables: WeakSet[Forkable] = WeakSet()


def watch(forkable: Forkable) -> None:
    """Call the object's hooks around every fork, for as long as it lives."""
    with GUARD:
        _forkables.add(forkable)


def _before() -> None:
    GUARD.acquire()
    for forkable in list(_forkables):
        forkable.before_fork()


def _after_in_parent() -> None:
    GUARD.release()


def _after_in_child() -> None:
    # The forking thread is the child's only one and still owns the guard.
    for forkable in list(_forkables):
        forkable.after_fork_in_child()
    GUARD.release()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
