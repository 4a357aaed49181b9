"""The tails of one execution, by what they read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from td_worker.tail import Tail


class Tails:
    """The tails of one execution by what they read; for any thread."""

    def __init__(self) -> None:
        self._tails: dict[str, Tail] = {}
        self._lock = Lock()
        self._interrupted = False
        self._closed = False

    def get(self, name: str, make: Callable[[], Tail]) -> Tail:
        """Return the tail of `name`, made by the first that asks."""
        with self._lock:
            tail = self._tails.get(name)
            if tail is None:
                tail = self._tails[name] = make()
                if self._interrupted:
                    tail.fail_waiters(_interruption())
                if self._closed:
                    tail.close()

        return tail

    def interrupt(self) -> None:
        """Have everybody who waits raise `CancelledError`: the attempt is to end."""
        with self._lock:
            self._interrupted = True
            tails = list(self._tails.values())
        for tail in tails:
            tail.fail_waiters(_interruption())

    def close(self) -> None:
        """Stop reading: the execution has ended."""
        with self._lock:
            self._closed = True
            tails = list(self._tails.values())
        for tail in tails:
            tail.close()


def _interruption() -> BaseException:
    return asyncio.CancelledError("the attempt is to end")
