"""Blocking writes of whole lines, on a thread, from a bounded queue: the log sink's way out.

Stdout may be a pipe nobody reads or a stopped terminal; then a write waits. Making the descriptor
non-blocking would make it so for everybody who shares it: the user's shell and every other program
on that terminal. Polling before small writes is not enough either, for another process may fill the
pipe in between. So a thread does blocking writes. The log sink never forks, so a thread is safe
there; no other process may use this module.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["LineWriter"]

_QUEUE_BYTES: Final = 8 * 1024 * 1024
_WRITE_BYTES: Final = 64 * 1024
#: Seconds without any progress after which a stalled descriptor is left alone at the end.
_STALL_TIMEOUT: Final = 5.0


class LineWriter:
    """Writes queued lines on a thread of its own.

    `put` never waits. What does not fit into the queue is counted, and said by the line that
    `render_dropped` gives, in the place where the lines are missing. A descriptor that is gone
    (EPIPE) takes all further lines, so that nobody who logs notices.

    Args:
        fd: Where to write; its flags are left as they are.
        render_dropped: Gives the line that says how many were dropped.
        queue_bytes: Room for lines that wait to be written.
        stall_timeout: Seconds without progress after which `close` gives up.
    """

    def __init__(
        self,
        fd: int,
        render_dropped: Callable[[int], bytes],
        *,
        queue_bytes: int = _QUEUE_BYTES,
        stall_timeout: float = _STALL_TIMEOUT,
    ) -> None:
        self._queue_bytes = queue_bytes
        self._stall_timeout = stall_timeout
        self._fd = fd
        self._render_dropped = render_dropped
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._written = 0
        self._closing = False
        self._broken = False
        self._changed = threading.Condition()
        # A daemon: at the end the process leaves by os._exit, even from under a write that waits.
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Queue one line, or count it as dropped."""
        with self._changed:
            if self._broken:
                return
            if self._size + len(line) > self._queue_bytes:
                self._dropped += 1
                return
            self._note_dropped()
            self._append(line)
            self._changed.notify()

    def close(self) -> bool:
        """Wait until all is written, as long as there is progress.

        Returns:
            Whether every queued line came out.
        """
        with self._changed:
            self._closing = True
            self._note_dropped()
            self._changed.notify()
        while self._thread.is_alive():
            before = self._written
            self._thread.join(self._stall_timeout)
            if self._thread.is_alive() and self._written == before:
                return False

        return not self._broken

    def _note_dropped(self) -> None:
        if self._dropped:
            self._append(self._render_dropped(self._dropped))
            self._dropped = 0

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)

    def _write_all(self) -> None:
        try:
            while chunk := self._take():
                self._write(chunk)
        except OSError:
            # The reader is gone, or the disk is full: nothing more can come out.
            with self._changed:
                self._broken = True
                self._lines.clear()
                self._size = 0

    def _take(self) -> bytes:
        """Wait for lines and give some of them, whole; nothing at the end."""
        with self._changed:
            while not self._lines and not self._closing:
                self._changed.wait()
            taken: list[bytes] = []
            size = 0
            while self._lines and size < _WRITE_BYTES:
                taken.append(self._lines.popleft())
                size += len(taken[-1])
            self._size -= size
            if self._size < self._queue_bytes // 2:
                self._note_dropped()

        return b"".join(taken)

    def _write(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            try:
                count = os.write(self._fd, rest)
            except BlockingIOError:
                # Somebody else made the shared descriptor non-blocking; wait as if it were not.
                self._wait_writable()
                continue
            self._written += count
            rest = rest[count:]

    def _wait_writable(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        poller.poll()
