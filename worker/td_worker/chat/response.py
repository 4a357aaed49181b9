"""
The one long-lived writer of a chat: every chunk of an execution goes through it, in order.

A write costs its caller what a write to a stream costs, and returns a handle at once. Nothing is
sent by the caller, and nobody's loop is ever blocked. What finds the buffer full waits in order in
an overflow of its own, which is bounded as well: above it a chunk is refused, loudly.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any, Final

import msgspec
import structlog

from td_worker.errors import ChatBufferFullError, StreamClosedError, StreamError, StreamWriteError
from td_worker.opened import OpenedStreams
from td_worker.streams.arguments import TURN
from td_worker.streams.envelope import chunk_type
from td_worker.streams.lane import Lane

log = structlog.get_logger()

OVERFLOW_BYTES: Final = 10 * 1024 * 1024
"""What may wait for room in the buffer of the slot, which holds as much again."""


class WriteHandle(msgspec.Struct, eq=False):
    """
    What became of one chunk; made by `chat.response.write`. Need not be kept.

    ```python
    chat.response.write({"type": "data-step", "data": 1})  # sent in order, soon
    await chat.response.write({"type": "data-step", "data": 2})  # accepted: waits if it must
    await chat.response.write({"type": "data-step", "data": 3}).wait()  # acked
    ```
    """

    # A struct, since one is made for every chunk: that costs half of what `__init__` does.
    _writer: ResponseWriter
    _lane: Lane | None = None
    _target: int = 0
    _accepted: Future[None] | None = None
    """There once the chunk has had to wait for room."""
    _error: Exception | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._writer!r}>"

    @property
    def error(self) -> Exception | None:
        """Why the chunk will not be stored, None as far as is known. Looking counts as handling."""
        self._writer.forgive(self)
        if self._error is None and self._lane is not None and self._target > self._lane.acked:
            return self._lane.error if self._lane.dropped else None

        return self._error

    async def wait(self) -> None:
        """
        Wait until the chunk is acked, and with it all that was written before.

        Raises:
            StreamError: It was refused, or given up.
        """
        await self
        await asyncio.shield(asyncio.wrap_future(self.acked()))

    def __await__(self) -> Generator[Any, None, WriteHandle]:
        """Wait until the chunk is accepted into the buffer, which it is unless that is full."""
        if self._accepted is not None:
            yield from asyncio.wait({asyncio.wrap_future(self._accepted)}).__await__()
        elif self._target % TURN == 0:
            # A write that finds space does not suspend: without this, an `asyncio.sleep(0)`, a hot
            # loop would starve everybody else on the loop, and could not be cancelled.
            yield
        if self._error is not None:
            self.raise_refusal()

        return self

    # --- for the plain `def` twin --------------------------------------------------------------

    def block(self) -> None:
        """
        Block until the chunk is accepted.

        Raises:
            StreamError: It was refused.
        """
        if self._accepted is not None:
            self._accepted.result()
        self.raise_refusal()

    def acked(self) -> Future[None]:
        """Return what is done once the chunk is acked; for a chunk that was accepted."""
        done: Future[None] = Future()
        if self._lane is None or self._lane.acked >= self._target:
            done.set_result(None)
            return done

        return self._lane.flush()

    def raise_refusal(self) -> None:
        """Raise why the chunk was refused, if it was."""
        if self._error is not None:
            self._writer.forgive(self)
            raise self._error

    # --- for the writer, under its lock --------------------------------------------------------

    def note_accepted(self, lane: Lane) -> None:
        """The chunk is in the buffer of `lane`."""
        self._lane = lane
        self._target = lane.accepted
        if self._accepted is not None:
            self._accepted.set_result(None)

    def note_refused(self, error: Exception) -> None:
        """The chunk will not be stored."""
        self._error = error
        if self._accepted is not None:
            self._accepted.set_result(None)

    def note_waiting(self) -> None:
        """The chunk waits for room in the buffer."""
        self._accepted = Future()


class _Overflow:
    """What waits for room in the buffer; to the end of the run, a stream that is still open."""

    def __init__(self, drop: Callable[[_Overflow], int | None]) -> None:
        self.settled: Future[None] = Future()
        self.lost = 0
        self.waiting: deque[tuple[bytes, WriteHandle]] = deque()
        self.size = 0
        self._drop = drop

    def finish(self) -> None:
        """Nothing is to be done: it flows off by itself."""

    def give_up(self) -> None:
        """Drop what waits and count it as lost."""
        dropped = self._drop(self)
        if dropped is not None:  # otherwise whoever moved the last one into the buffer settles it
            self.lost += dropped
            self.settled.set_result(None)


class ResponseWriter:
    """
    Everything that one execution writes to its chat. Every method may be called from any thread.

    Args:
        open_lane: Opens a writer's lane into the session's `out`.
        opened: What is drained at the end of the run.
        chat_id: Named in the log.
        overflow_bytes: How much may wait for room in the buffer.
    """

    def __init__(
        self,
        open_lane: Callable[[], Lane],
        opened: OpenedStreams,
        *,
        chat_id: str,
        overflow_bytes: int = OVERFLOW_BYTES,
    ) -> None:
        self._open_lane = open_lane
        self._opened = opened
        self._chat_id = chat_id
        self._overflow_bytes = overflow_bytes
        self._lane: Lane | None = None
        self._overflow: _Overflow | None = None
        self._failures: dict[int, tuple[WriteHandle | Lane, Exception]] = {}
        self._ended = False
        self._lock = Lock()

    def write(self, chunk: object) -> WriteHandle:
        """Accept one chunk behind all earlier ones; what goes wrong is logged and on the handle."""
        lane = self._lane
        if lane is None or lane.closed or self._overflow is not None or self._ended:
            return self._write_carefully(chunk)
        # Without the lock: a thread that comes here has nothing in the overflow, and the lane
        # keeps the order of what it accepts.
        try:
            body = lane.offer(chunk)
        except StreamError as error:
            handle = WriteHandle(self)
            with self._lock:
                self._refuse(handle, chunk, error)
            return handle
        if body is None:
            return WriteHandle(self, lane, lane.accepted)

        return self._flow_over(chunk, body)

    def _write_carefully(self, chunk: object) -> WriteHandle:
        """Accept a chunk where there is no lane, or something waits before it."""
        handle = WriteHandle(self)
        with self._lock:
            flows_over = self._overflow is None
            try:
                self._put(chunk, handle)
            except StreamError as error:
                self._refuse(handle, chunk, error)
            flows_over = flows_over and self._overflow is not None
        if flows_over:
            self._refill()

        return handle

    def _flow_over(self, chunk: object, body: bytes) -> WriteHandle:
        """Keep a chunk that has found the buffer full."""
        handle = WriteHandle(self)
        with self._lock:
            is_first = self._overflow is None
            try:
                self._wait_for_room(body, handle)
            except StreamError as error:
                self._refuse(handle, chunk, error)
        if is_first:
            self._refill()

        return handle

    def control(self, subtype: str, headers: Sequence[tuple[str, str]]) -> Future[int]:
        """
        Write a control record behind all that is accepted; what waits in the overflow is not.

        Raises:
            StreamError: Nothing can be written.
        """
        with self._lock:
            return self._current().control([("trigger-control", subtype), *headers])

    def trim(self, seq: int) -> Future[int]:
        """
        Drop all records before number `seq`.

        Raises:
            StreamError: Nothing can be written.
        """
        with self._lock:
            return self._current().trim(seq)

    def overflow(self) -> Future[None] | None:
        """Return what is done once nothing waits for room any more; None when nothing does."""
        with self._lock:
            return None if self._overflow is None else self._overflow.settled

    def flush(self) -> Future[None] | None:
        """Return what is done when all that is accepted is acked, or fails with why not."""
        with self._lock:
            return None if self._lane is None else self._lane.flush()

    def take_failure(self) -> Exception | None:
        """Return the first failure that nobody has looked at, and forget all."""
        with self._lock:
            self._note_loss()
            failures, self._failures = self._failures, {}

        return next((error for _, error in failures.values()), None)

    def forgive(self, handle: WriteHandle) -> None:
        """Somebody has looked at this handle's failure: it is theirs now."""
        if self._failures:
            with self._lock:
                self._failures.pop(id(handle), None)

    def end(self) -> None:
        """Take nothing more; what is accepted is still sent."""
        with self._lock:
            self._ended = True
            if self._overflow is None:
                self._close()

    # --- under the lock ------------------------------------------------------------------------

    def _put(self, chunk: object, handle: WriteHandle) -> None:
        if self._ended:
            raise StreamClosedError(f"chat {self._chat_id!r}: its run has ended")
        lane = self._current()
        if self._overflow is not None:
            self._wait_for_room(lane.encode(chunk), handle)
        elif (body := lane.offer(chunk)) is None:
            handle.note_accepted(lane)
        else:
            self._wait_for_room(body, handle)

    def _current(self) -> Lane:
        """Return the lane to write to: a new one when the last has failed."""
        if self._lane is None or self._lane.closed:
            self._note_loss()
            self._lane = self._open_lane()
            self._hold()

        return self._lane

    def _hold(self) -> None:
        """Keep the end of the run from closing the lane while something waits for room in it."""
        if self._lane is not None:
            self._lane.stop_source = None if self._overflow is None else _nothing

    def _close(self) -> None:
        if self._lane is not None:
            self._lane.close()

    def _note_loss(self) -> None:
        """Keep the failure of a lane that lost records, so that it comes up at the turn's end."""
        lane = self._lane
        if lane is not None and isinstance(lane.error, StreamWriteError):
            self._failures[id(lane)] = (lane, lane.error)
            self._lane = None

    def _refuse(self, handle: WriteHandle, chunk: object, error: Exception) -> None:
        handle.note_refused(error)
        self._failures[id(handle)] = (handle, error)
        log.error(
            "chat.write_failed",
            chat_id=self._chat_id,
            chunk_type=chunk_type(chunk),
            reason=str(error),
        )

    # --- what waits for room -------------------------------------------------------------------

    def _wait_for_room(self, body: bytes, handle: WriteHandle) -> None:
        overflow = self._overflow
        if overflow is None:
            overflow = self._overflow = _Overflow(self._drop)
            self._opened.add(overflow)
            self._hold()
        if overflow.waiting and overflow.size + len(body) > self._overflow_bytes:
            raise ChatBufferFullError(self._chat_id, overflow.size)
        overflow.size += len(body)
        handle.note_waiting()
        overflow.waiting.append((body, handle))

    def _refill(self, _room: Future[None] | None = None) -> None:
        """Move what waits into the buffer, as far as there is room, and come back when there is."""
        while True:
            with self._lock:
                overflow = self._overflow
                if overflow is None:
                    return
                room = self._move(overflow)
                if room is None:
                    self._overflow = None
                    self._hold()
                    if self._ended:
                        self._close()
            if room is None:
                overflow.settled.set_result(None)
                return
            if not room.done():
                room.add_done_callback(self._refill)
                return

    def _move(self, overflow: _Overflow) -> Future[None] | None:
        """Return when to come back; None when nothing is left."""
        while overflow.waiting:
            body, handle = overflow.waiting[0]
            try:
                lane = self._current()
                if not lane.retry(body):
                    return lane.space(body)
            except StreamError as error:
                overflow.lost += 1
                self._refuse(handle, None, error)
            else:
                handle.note_accepted(lane)
            overflow.waiting.popleft()
            overflow.size -= len(body)

        return None

    def _drop(self, overflow: _Overflow) -> int | None:
        """Give up what waits; return how much that was, None when nobody waits there any more."""
        error = StreamClosedError("the run's time was over before the chunk was accepted")
        with self._lock:
            if self._overflow is not overflow:
                return None
            self._overflow = None
            for _, handle in overflow.waiting:
                self._refuse(handle, None, error)

        return len(overflow.waiting)


def _nothing() -> None:
    """Stops no source: there is none."""
