"""
One writer's share of an appender: how its records are numbered, acked, flushed and ended.

Everything the async and the plain `def` writers have in common is here. Every method may be called
from any thread; none of them blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from td_sharedcache.slot import Slot
from td_worker.errors import ChatChunkTooLargeError, ChunkNotEncodableError, StreamClosedError
from td_worker.stream_store import HeaderRecord
from td_worker.streams.envelope import MAX_ENVELOPE, encode_envelope, new_nonce

if TYPE_CHECKING:
    from td_worker.streams.appender import Appender


class Lane:
    """
    One writer of one slot.

    The appender's lock guards every field; fields are read without it where a stale value is
    harmless.
    """

    __slots__ = (
        "__weakref__",
        "_appender",
        "_is_settled",
        "_nonce",
        "_numbers",
        "_waiters",
        "accepted",
        "acked",
        "closed",
        "closing",
        "credential_id",
        "dropped",
        "error",
        "finishing",
        "last_seq",
        "lost",
        "on_finish",
        "receipts",
        "settled",
        "stop_source",
    )

    def __init__(self, appender: Appender) -> None:
        self._appender = appender
        self._nonce = new_nonce()
        self._numbers = itertools.count()
        self._waiters: list[tuple[int, Future[None]]] = []
        self.accepted = 0
        self.acked = 0
        self._is_settled = False
        self.closed = False
        """Nothing more is accepted."""
        self.closing = False
        """Settles as soon as all is acked."""
        self.credential_id: str | None = None
        """The credential that the last ack came by."""
        self.dropped = False
        """Records of it were dropped: they will never be acked."""
        self.error: Exception | None = None
        self.finishing = False
        """The run is over: settles as soon as no source feeds it."""
        self.last_seq: int | None = None
        self.lost = 0
        self.on_finish: Callable[[], object] | None = None
        """Called when the run is over."""
        self.receipts: set[Future[int]] = set()
        """Of records with headers that are not acked yet."""
        self.settled: Future[None] = Future()
        self.stop_source: Callable[[], object] | None = None
        """Set while a source feeds this lane: how to stop it."""

    @property
    def slot(self) -> Slot:
        """What it writes to."""
        return self._appender.slot

    @property
    def last_event_id(self) -> str | None:
        """The sequence number of the last acked record as text, inclusive; None before any."""
        return None if self.last_seq is None else str(self.last_seq)

    @property
    def unacked(self) -> int:
        """Records accepted and not yet acked."""
        return self.accepted - self.acked

    # --- writing -------------------------------------------------------------------------------

    def offer(self, chunk: object) -> bytes | None:
        """
        Encode `chunk` and put it into the buffer.

        Returns:
            None when it was accepted; otherwise the buffer is full, and the envelope is for
            `retry` once `space` says so.

        Raises:
            ChatChunkTooLargeError, ChunkNotEncodableError: This writer has failed, it alone.
            StreamError: This writer takes nothing any more.
        """
        body = self.encode(chunk)

        return None if self._appender.push(self, body) else body

    def encode(self, chunk: object) -> bytes:
        """
        Return the envelope of `chunk`, for `retry`.

        Raises:
            ChatChunkTooLargeError, ChunkNotEncodableError: This writer has failed, it alone.
        """
        try:
            return encode_envelope(chunk, f"{self._nonce}-{next(self._numbers)}")
        except (ChatChunkTooLargeError, ChunkNotEncodableError) as error:
            self.fail(error)
            raise

    def retry(self, body: bytes) -> bool:
        """Put an envelope that found the buffer full into it; False when it is full again."""
        return self._appender.push(self, body)

    def space(self, body: bytes) -> Future[None]:
        """Return what is done as soon as it is worth calling `retry`."""
        return self._appender.space(self, body)

    def control(self, headers: Sequence[tuple[str, str]]) -> Future[int]:
        """
        Accept a control record: no body, these headers, behind all that this lane has accepted.

        It is sent at once, and never waits for room in the buffer. A record whose answer was lost
        is sent again, and a control record has no id by which a reader could hide the second one.

        Returns:
            Its sequence number, to come; a StreamError when it was given up or the lane aborted.

        Raises:
            StreamError: This writer takes nothing any more.
            ChatChunkTooLargeError: The headers are over the cap of a record.
            ValueError: A header has no name, which would make it a command, or is no Unicode.
        """
        record = HeaderRecord(headers=tuple((name, value) for name, value in headers))
        if not record.headers or not all(name for name, _ in record.headers):
            # Names only: one of the values may be a token.
            names = [name for name, _ in record.headers]
            raise ValueError(f"a control record needs headers, each with a name, got {names!r}")
        if record.metered > MAX_ENVELOPE:
            raise ChatChunkTooLargeError(record.metered, MAX_ENVELOPE, record.headers[0][1])

        return self._appender.push_headed(self, record)

    def trim(self, seq: int) -> Future[int]:
        """
        Accept a command that drops all records before number `seq`, in order as `control`.

        Returns:
            The command's own sequence number, to come.

        Raises:
            StreamError: This writer takes nothing any more.
            ValueError: The number is out of its bounds.
        """
        if not 0 <= seq < 2**64:
            raise ValueError(f"a stream is trimmed to a sequence number, got {seq}")
        record = HeaderRecord(headers=(("", "trim"),), body=seq.to_bytes(8, "big"))

        return self._appender.push_headed(self, record)

    def refusal(self) -> Exception:
        """Return what a write to this closed lane raises."""
        return self.error or StreamClosedError(
            f"stream {self._appender.slot}: this writer is closed; open a new one"
        )

    # --- acks and ends -------------------------------------------------------------------------

    def flush(self) -> Future[None]:
        """Return what is done when all that is accepted by now is acked, or fails with why not."""
        return self._appender.await_acks(self)

    def close(self) -> None:
        """Take nothing more and settle as soon as all is acked."""
        self.stop_source = None
        self._appender.close_lane(self)

    def fail(self, error: Exception) -> None:
        """
        Take nothing more because of `error`, which is this writer's own.

        What was accepted is still sent; then the slot is evicted, as the official SDK does on any
        rejection, and the lane settles. A chunk that a source has fed and that cannot be written
        counts as lost: nobody may ever look at the pipe that carried it.
        """
        fed, self.stop_source = self.stop_source is not None, None
        unwritable = isinstance(error, ChatChunkTooLargeError | ChunkNotEncodableError)
        self._appender.fail_lane(self, error, lost=int(fed and unwritable))

    def abort(self) -> None:
        """Drop what is not sent yet and settle now, quietly: the slot is kept."""
        self._appender.abort_lane(self, lost=False)
        self.stop_feeding()

    def finish(self) -> None:
        """Take nothing more, as soon as no source feeds it any more, and send the rest at once."""
        # This order: of two threads, here and in `end_feeding`, one sees what the other has set.
        self.finishing = True
        if self.on_finish is not None:
            self.on_finish()
        if self.stop_source is None:
            self.close()

    def end_feeding(self) -> None:
        """Note that no source feeds this lane any more, which its writer may still do."""
        self.stop_source = None
        if self.finishing:
            self.close()

    def give_up(self) -> None:
        """Drop what is not acked, count it as lost and settle now."""
        self._appender.abort_lane(self, lost=True)
        self.stop_feeding()

    def stop_feeding(self) -> None:
        """Stop the source that feeds this lane, if one does."""
        stop, self.stop_source = self.stop_source, None
        if stop is not None:
            stop()

    # --- for the appender, under its lock ------------------------------------------------------

    def add_waiter(self, waiter: Future[None]) -> None:
        """Have `waiter` resolved when everything accepted so far is acked."""
        self._waiters.append((self.accepted, waiter))

    def take_ack(self, count: int, last_seq: int, credential_id: str) -> list[Future[None]]:
        """Note that `count` more records are durable; return the waiters this satisfies."""
        self.acked += count
        self.last_seq = last_seq
        self.credential_id = credential_id
        done: list[Future[None]] = []
        if self._waiters:
            done = [waiter for target, waiter in self._waiters if target <= self.acked]
            self._waiters = [pair for pair in self._waiters if pair[0] > self.acked]
        if self.closing and self.acked >= self.accepted:
            done += self.take_settled()

        return done

    def in_a_hurry(self) -> bool:
        """Say whether somebody waits for an ack of this lane."""
        return bool(self._waiters or self.receipts) or (self.closing and self.acked < self.accepted)

    def take_waiters(self) -> list[Future[None]]:
        """Return all that wait for an ack and forget them."""
        waiters, self._waiters = self._waiters, []

        return [waiter for _, waiter in waiters]

    def take_receipt(self, receipt: Future[int]) -> bool:
        """Forget a receipt that is about to be resolved; False when somebody else has done it."""
        if receipt not in self.receipts:
            return False
        self.receipts.remove(receipt)

        return True

    def take_receipts(self) -> list[Future[int]]:
        """Return the receipts of all that is not acked and forget them."""
        receipts, self.receipts = list(self.receipts), set()

        return receipts

    def take_settled(self) -> list[Future[None]]:
        """Return `settled` to the one caller that gets to resolve it."""
        if self._is_settled:
            return []
        self._is_settled = True

        return [self.settled]
