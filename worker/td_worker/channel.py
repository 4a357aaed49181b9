"""A socket that carries typed messages, on an asyncio loop, without transports or tasks.

Why not asyncio's streams: the supervisor forks while its loop runs and must know every descriptor
it owns; and when a worker dies, what the worker had still sent has to be read to the end *before*
its runs are given to others (:meth:`Channel.drain`), which a transport cannot be asked for.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

from td_worker.messages import MAX_FRAME, FrameTooLargeError, decode_frames, encode_frame

__all__ = ["Channel"]

T = TypeVar("T")

_CHUNK: Final = 256 * 1024
_OPTIONAL_BACKLOG: Final = 1024 * 1024
"""Unsent bytes beyond which an optional message is dropped (a notice to a stuck worker)."""


class Channel(Generic[T]):
    """One end of a stream socket, owned by one loop.

    The channel owns *sock* from construction on and closes it when the peer is gone, when a frame
    cannot be decoded, or in :meth:`close`. Callbacks run on the loop.

    Args:
        sock: A connected stream socket; it is made non-blocking.
        decoder: What turns a body into a message.
        on_message: Called with each message, in order.
        on_closed: Called once, with the reason when the peer broke the protocol.
        limit: Bytes a frame may have.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        decoder: "msgspec.msgpack.Decoder[T]",
        on_message: Callable[[T], None],
        on_closed: Callable[[Exception | None], None],
        loop: asyncio.AbstractEventLoop,
        limit: int = MAX_FRAME,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = decoder
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = loop
        self._limit = limit
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._writing = False
        self._flush_waiters: list[asyncio.Future[None]] = []
        self.closed = False
        loop.add_reader(sock.fileno(), self._readable)

    def fileno(self) -> int:
        """The descriptor, for the list of what a forked child has to close."""
        return self._sock.fileno()

    def send(self, message: msgspec.Struct) -> None:
        """Send *message*, now or as soon as the peer takes it. Loop thread only."""
        self.send_frame(encode_frame(message))

    def send_frame(self, frame: bytes) -> None:
        """Send a message that was encoded elsewhere. Loop thread only."""
        if self.closed:
            return
        self._outgoing += frame
        if not self._writing:
            self._writable()

    def try_send_frame(self, frame: bytes) -> bool:
        """Send an encoded message unless the peer is far behind; say whether it was sent."""
        if self.closed or len(self._outgoing) > _OPTIONAL_BACKLOG:
            return False
        self.send_frame(frame)

        return True

    def drain(self) -> None:
        """Read and dispatch what the peer had sent, without waiting. For a peer that died."""
        while not self.closed and self._read_once():
            pass

    async def flushed(self) -> None:
        """Return when everything sent has been handed to the kernel, or the channel is closed."""
        if not self._outgoing or self.closed:
            return
        waiter = self._loop.create_future()
        self._flush_waiters.append(waiter)
        await waiter

    def close(self) -> None:
        """Close the socket; ``on_closed`` is called. Idempotent."""
        self._close(None)

    def _readable(self) -> None:
        self._read_once()

    def _read_once(self) -> bool:
        try:
            data = self._sock.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            # A peer killed with unread data shows up as ECONNRESET: it is as gone as at EOF.
            data = b""
        if not data:
            self._close(None)
            return False
        self._incoming += data
        self._dispatch()

        return True

    def _dispatch(self) -> None:
        try:
            messages = [
                self._decoder.decode(body)
                for body in decode_frames(self._incoming, limit=self._limit)
            ]
        except (msgspec.MsgspecError, FrameTooLargeError) as error:
            self._close(error)
            return
        for message in messages:
            if self.closed:
                return
            self._on_message(message)

    def _writable(self) -> None:
        try:
            while self._outgoing:
                sent = self._sock.send(memoryview(self._outgoing)[:_CHUNK])
                del self._outgoing[:sent]
        except (BlockingIOError, InterruptedError):
            self._watch_writable()
            return
        except OSError:
            # The reader sees the same end with everything the peer had sent before it.
            self._outgoing.clear()
        self._unwatch_writable()
        self._release_flush_waiters()

    def _watch_writable(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _unwatch_writable(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())

    def _release_flush_waiters(self) -> None:
        waiters, self._flush_waiters = self._flush_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _close(self, reason: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        fileno = self._sock.fileno()
        self._loop.remove_reader(fileno)
        self._loop.remove_writer(fileno)
        with contextlib.suppress(OSError):
            self._sock.close()
        self._release_flush_waiters()
        # Let go of the owner: owner and channel would only be freed by the garbage collector.
        on_closed, self._on_closed, self._on_message = self._on_closed, _ignore, _ignore
        on_closed(reason)


def _ignore(_: object) -> None:
    """Nothing is heard after the end."""
