"""Where lines go: to the log sink without ever waiting, or straight to a descriptor."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, Protocol

from td_runtime.logs.ring import LineRing

__all__ = ["DirectSender", "KeepingSender", "Sender", "SinkSender", "make_sender"]


#: Bytes of lines that are sent together; longer messages find room in the socket less easily.
_TOGETHER: Final = 16 * 1024


class Sender(Protocol):
    """Takes whole lines."""

    def send(self, line: bytes) -> None:
        """Send one line. Never raises."""

    def together(self) -> AbstractContextManager[None]:
        """Send what this thread sends in the block with as few system calls as there may be."""
        ...

    def close(self, timeout: float) -> None:
        """Say what is still unsaid, for at most *timeout* seconds. The descriptor stays open."""


class _Gathered(threading.local):
    """What one thread has not sent yet; None while it sends each line at once."""

    lines: list[bytes] | None = None
    size = 0


class SinkSender:
    """Sends each line as one message over the log sink's socket.

    What does not fit at once is dropped and counted; the count goes out before the next line that
    fits. There is no lock: a lock held by another thread during a fork would stay locked in the
    child. When several threads drop at the very same instant the count may be short by a few.

    Args:
        fd: The socket, owned by the caller, shared with other processes and never closed here.
        render_dropped: Gives the line that says how many were dropped.
    """

    def __init__(self, fd: int, render_dropped: Callable[[int], bytes]) -> None:
        # Set for every process that shares this socket, and each of them must not wait. No socket
        # object is made: a forked child closes descriptors by number, and an object that closes
        # "its" number later would close somebody else's.
        os.set_blocking(fd, False)
        self._fd = fd
        self._render_dropped = render_dropped
        self._gathered = _Gathered()
        self.dropped = 0

    def send(self, line: bytes) -> None:
        """Send one line or count it as dropped."""
        gathered = self._gathered.lines
        if gathered is None:
            self._send([line])
            return
        gathered.append(line)
        self._gathered.size += len(line)
        if self._gathered.size >= _TOGETHER:
            self._send_gathered(gathered)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Send what this thread sends in the block as few messages of whole lines."""
        if self._gathered.lines is not None:
            yield
            return
        gathered = self._gathered.lines = []
        try:
            yield
        finally:
            self._gathered.lines = None
            self._send_gathered(gathered)

    def _send_gathered(self, lines: list[bytes]) -> None:
        if lines:
            self._send(lines)
            lines.clear()
        self._gathered.size = 0

    def _send(self, lines: list[bytes]) -> None:
        if self.dropped and not self._tell_dropped():
            self.dropped += len(lines)
            return
        if not self._try(b"".join(lines)):
            self.dropped += len(lines)

    def close(self, timeout: float) -> None:
        """Wait until the count of dropped lines could be said, at most *timeout* seconds."""
        if self.dropped:
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            poller.poll(timeout * 1000)
            self._tell_dropped()

    def _tell_dropped(self) -> bool:
        count = self.dropped
        if not self._try(self._render_dropped(count)):
            return False
        self.dropped -= count

        return True

    def _try(self, line: bytes) -> bool:
        try:
            os.write(self._fd, line)
        except OSError:
            # Full (EAGAIN, ENOBUFS), or the sink is gone (EPIPE, ECONNRESET, ENOTCONN).
            return False

        return True


class DirectSender:
    """Writes lines to a descriptor that is not a log sink's: stderr, a file, a terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def send(self, line: bytes) -> None:
        """Write the whole line; a reader that went away takes it along."""
        rest = memoryview(line)
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def together(self) -> AbstractContextManager[None]:
        """Each line is written at once."""
        return contextlib.nullcontext()

    def close(self, timeout: float) -> None:
        """Nothing is ever left unsaid."""


class KeepingSender:
    """Sends lines on, and keeps the last ones where they outlive this process."""

    def __init__(self, sender: Sender, ring: LineRing) -> None:
        self._sender = sender
        self._ring = ring

    def send(self, line: bytes) -> None:
        """Keep one line and send it."""
        self._ring.put(line)
        self._sender.send(line)

    def together(self) -> AbstractContextManager[None]:
        """Lines are kept at once, and sent together."""
        return self._sender.together()

    def close(self, timeout: float) -> None:
        """Say what is still unsaid."""
        self._sender.close(timeout)


def make_sender(fd: int | None, render_dropped: Callable[[int], bytes]) -> Sender:
    """Choose by what the descriptor is; None is stderr."""
    if fd is None:
        return DirectSender(2)
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        return SinkSender(fd, render_dropped)

    return DirectSender(fd)
