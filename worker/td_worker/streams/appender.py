"""
The one appender of a slot in a process: a buffer that all threads fill and one loop empties.

A write costs its caller the encoding of the chunk and a push under a small lock. The runtime loop
is woken only when the appender is idle, or gathering and a batch has become full, so a hot loop
pays no loop hop a chunk. One batch is in flight; the next gathers meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from concurrent.futures import Future
from enum import Enum, auto
from threading import Lock
from typing import TYPE_CHECKING

import structlog

from td_sharedcache.errors import CacheError
from td_sharedcache.slot import Slot
from td_worker.errors import StreamClosedError, StreamError, StreamWriteError, TdWorkerError
from td_worker.http import say
from td_worker.stream_store import Ack, HeaderRecord
from td_worker.streams.buffer import RECORD_OVERHEAD, Batch, Budget, Queue, resolve
from td_worker.streams.delivery import Delivery
from td_worker.streams.lane import Lane
from td_worker.streams.policy import StreamLimits, linger

if TYPE_CHECKING:
    from td_worker.streams.client import StreamClient

log = structlog.get_logger()


_EXPECTED = (TdWorkerError, CacheError)


class _State(Enum):
    IDLE = auto()
    """Nothing is buffered, and no asyncio task runs: the next record starts one."""
    GATHERING = auto()
    """A batch waits for the flush interval, for its last record or for somebody in a hurry."""
    BUSY = auto()
    """A batch is in flight: whatever comes is seen when it is acked."""


_IDLE, _GATHERING, _BUSY = _State
"""Looked up for every chunk: a global costs half of what an attribute of the enum does."""


class Appender:
    """
    All writers of one slot in this process.

    It has no task while it is idle, and only lanes and that task refer to it: forgotten slots cost
    nothing.
    """

    def __init__(
        self,
        slot: Slot,
        *,
        client: StreamClient,
        delivery: Delivery,
        budget: Budget,
        lock: Lock,
        limits: StreamLimits,
    ) -> None:
        self.slot = slot
        self._client = client
        self._delivery = delivery
        self._budget = budget
        self._lock = lock
        self._slot_bytes = limits.slot_bytes
        self._queue = Queue(batch_records=limits.batch_records, batch_bytes=limits.batch_bytes)
        self._in_flight: Batch | None = None
        self._used = 0
        self._waiters: list[Future[None]] = []
        self._hurried: set[Lane] = set()
        self._state = _IDLE
        self._stirred = asyncio.Event()
        self._sent_at = float("-inf")

    # --- any thread ----------------------------------------------------------------------------

    def push(self, lane: Lane, body: bytes) -> bool:
        """
        Accept one record of `lane`; False when the buffer is full.

        Raises:
            StreamError: The lane takes nothing any more.
        """
        size = len(body) + RECORD_OVERHEAD
        budget = self._budget
        with self._lock:
            if lane.closed:
                raise lane.refusal()
            if (self._used and self._used + size > self._slot_bytes) or (
                budget.used and budget.used + size > budget.bound
            ):
                return False
            has_full = self._queue.push(lane, body, size)
            self._used += size
            budget.used += size
            lane.accepted += 1
            if self._state is _BUSY:
                return True
            stirs = has_full or self._state is _IDLE

        if stirs:
            self._stir()
        return True

    def push_headed(self, lane: Lane, record: HeaderRecord) -> Future[int]:
        """
        Accept a record with headers, buffer full or not; it is small, and sent at once.

        Returns:
            Its sequence number, to come; or why it was given up.

        Raises:
            StreamError: The lane takes nothing any more.
        """
        receipt: Future[int] = Future()
        with self._lock:
            if lane.closed:
                raise lane.refusal()
            self._queue.push_headed(lane, record, receipt)
            self._used += record.metered
            self._budget.used += record.metered
            lane.accepted += 1
            lane.receipts.add(receipt)
            self._hurried.add(lane)
        self._stir()

        return receipt

    def space(self, lane: Lane, body: bytes) -> Future[None]:
        """Return what is done when `body` may fit."""
        size = len(body) + RECORD_OVERHEAD
        waiter: Future[None] = Future()
        with self._lock:
            if lane.closed:
                waiter.set_result(None)
            elif self._used and self._used + size > self._slot_bytes:
                self._waiters.append(waiter)
            elif self._budget.used and self._budget.used + size > self._budget.bound:
                self._budget.waiters.append(waiter)
            else:
                waiter.set_result(None)

        return waiter

    def await_acks(self, lane: Lane) -> Future[None]:
        """Return what is done when all that `lane` has accepted is acked, or fails with why not."""
        waiter: Future[None] = Future()
        with self._lock:
            if lane.acked >= lane.accepted or (lane.dropped and lane.error is None):
                waiter.set_result(None)
                return waiter
            if lane.dropped:
                waiter.set_exception(lane.refusal())
                return waiter
            lane.add_waiter(waiter)
            self._hurried.add(lane)
        self._stir()

        return waiter

    def close_lane(self, lane: Lane) -> None:
        """Have `lane` settle as soon as all of it is acked."""
        with self._lock:
            lane.closed = True
            if lane.error is not None or lane.dropped:
                return  # settles by itself, once its slot is evicted
            lane.closing = True
            done = [] if lane.in_a_hurry() else lane.take_settled()
            if not done:
                self._hurried.add(lane)
        resolve(done)
        self._stir()

    def fail_lane(self, lane: Lane, error: Exception, *, lost: int) -> None:
        """End `lane` alone, because of its own `error`, once what it has accepted is acked."""
        with self._lock:
            if lane.closed:
                return
            lane.closed = True
            lane.error = error
            lane.lost += lost
        log.warning("stream.writer_failed", slot=self.slot, reason=say(error))
        with contextlib.suppress(StreamClosedError):  # then nothing can be evicted any more
            self._client.submit(self._retire(lane))
            return
        self._settle(lane)

    def abort_lane(self, lane: Lane, *, lost: bool) -> None:
        """Drop what `lane` has in the buffer and settle it; a batch in flight stays in flight."""
        with self._lock:
            lane.closed = True
            settled = lane.take_settled()
            if not settled:
                return
            lane.dropped = True
            lane.lost += lane.unacked if lost else 0
            self._hurried.discard(lane)
            receipts = lane.take_receipts()
            done = lane.take_waiters() + settled + self._release(self._queue.discard(lane))
        resolve(receipts, lane.refusal())
        resolve(done)

    # --- runtime loop --------------------------------------------------------------------------

    async def _run(self) -> None:
        """Send batches until nothing is left."""
        try:
            while (batch := await self._next()) is not None:
                await self._deliver(batch)
        except BaseException as error:
            # Cancelled, or a bug: an appender that stayed busy without a task would hang its
            # writers for ever.
            stopping = StreamClosedError("the worker is stopping")
            self._reject(self._drop_all(error if isinstance(error, Exception) else stopping))
            with self._lock:
                self._state = _IDLE
            raise

    async def _next(self) -> Batch | None:
        """Return the next batch, after it has gathered; None, and be idle, when nothing is left."""
        if delay := self._linger():
            await self._gather(delay)
        with self._lock:
            if not self._queue.has_any():
                self._state = _IDLE
                return None
            self._state = _BUSY
            self._in_flight = self._queue.take()
        self._sent_at = time.monotonic()

        return self._in_flight

    def _linger(self) -> float:
        """Return the seconds that the next batch is to gather, and say that it does."""
        with self._lock:
            if not self._queue.has_any() or self._queue.has_full() or self._hurried:
                return 0.0
            delay = linger(
                since_sent=time.monotonic() - self._sent_at,
                flush_interval=self._delivery.flush_interval,
            )
            if delay:
                self._stirred.clear()
                self._state = _GATHERING

        return delay

    async def _gather(self, delay: float) -> None:
        try:
            async with asyncio.timeout(delay):
                await self._stirred.wait()
        except TimeoutError:
            return

    async def _deliver(self, batch: Batch) -> None:
        try:
            ack = await self._delivery.send(batch.bodies)
        except Exception as error:  # noqa: BLE001  writers must hear of it, the appender must go on
            await self._give_up(error)
        else:
            self._take_ack(batch, ack)

    def _take_ack(self, batch: Batch, ack: Ack) -> None:
        # A thousand records in two passes at C speed: how many a lane has, and where its last is.
        counts = Counter(batch.lanes)
        last = dict(zip(batch.lanes, range(ack.start, ack.end), strict=True))
        credential = self._delivery.credential
        credential_id = credential.id if credential is not None else ""
        with self._lock:
            self._in_flight = None
            done = self._release(batch.size)
            # Of a lane that was aborted meanwhile nobody waits any more.
            receipts = {
                place: receipt
                for place, receipt in batch.receipts.items()
                if batch.lanes[place].take_receipt(receipt)
            }
            for lane, seq in last.items():
                done += lane.take_ack(counts[lane], seq, credential_id)
                if not lane.in_a_hurry():
                    self._hurried.discard(lane)
        for place, receipt in receipts.items():
            resolve([receipt], result=ack.start + place)
        resolve(done)

    async def _give_up(self, cause: Exception) -> None:
        """Fail every lane with records not acked, evict the slot, and be ready for more."""
        failed = self._drop_all(cause)
        log.error(
            "stream.write_failed",
            slot=self.slot,
            writers=len(failed),
            records=sum(lane.unacked for lane in failed),
            reason=_say(cause),
            exc_info=None if isinstance(cause, _EXPECTED) else cause,
        )
        credential = self._delivery.credential
        if credential is not None:
            await self._evict(credential.id, reason="records were given up")
        # Only now: who sees the rejection and writes again must not get the evicted credential.
        self._reject(failed)

    def _drop_all(self, cause: Exception) -> list[Lane]:
        """Empty the buffer; return the lanes that had something in it, each with its error."""
        with self._lock:
            batches = self._queue.take_all()
            if self._in_flight is not None:
                batches.append(self._in_flight)
                self._in_flight = None
            waiters = self._release(sum(batch.size for batch in batches))
            lanes = {lane for batch in batches for lane in batch.lanes if not lane.dropped}
            for lane in lanes:
                self._drop(lane, cause)
        resolve(waiters)

        return list(lanes)

    def _drop(self, lane: Lane, cause: Exception) -> None:
        lane.closed = lane.dropped = True
        lane.lost += lane.unacked
        if lane.error is None:
            lane.error = StreamWriteError(
                self.slot, acked=lane.acked, unacked=lane.unacked, reason=_say(cause)
            )
            lane.error.__cause__ = cause
        self._hurried.discard(lane)

    def _reject(self, lanes: list[Lane]) -> None:
        for lane in lanes:
            with self._lock:
                waiters, receipts = lane.take_waiters(), lane.take_receipts()
            resolve(waiters, lane.error)
            resolve(receipts, lane.error)
            self._settle(lane)
            lane.stop_feeding()

    async def _retire(self, lane: Lane) -> None:
        """Settle a lane that failed by itself: acks first, then the eviction, then the news."""
        with contextlib.suppress(StreamError):
            await asyncio.wrap_future(self.await_acks(lane))
        credential_id = lane.credential_id or self._client.credential_id(self.slot)
        if credential_id is not None:
            await self._evict(credential_id, reason=f"a writer failed: {type(lane.error).__name__}")
        self._settle(lane)

    async def _evict(self, credential_id: str, *, reason: str) -> None:
        try:
            await self._client.evict(self.slot, credential_id, reason=reason)
        except CacheError as error:
            log.warning("stream.eviction_failed", slot=self.slot, reason=str(error))

    # --- both ----------------------------------------------------------------------------------

    def _settle(self, lane: Lane) -> None:
        with self._lock:
            settled = lane.take_settled()
        resolve(settled)

    def _stir(self) -> None:
        """Have the next batch sent now, unless one is in flight or nothing is there."""
        with self._lock:
            if self._state is _BUSY or not self._queue.has_any():
                return
            was_idle = self._state is _IDLE
            self._state = _BUSY
        try:
            self._client.call(self._start if was_idle else self._stirred.set)
        except StreamClosedError as error:
            self._reject(self._drop_all(error))

    def _start(self) -> None:
        self._client.spawn(self._run(), name=f"append {self.slot}")

    def _release(self, size: int) -> list[Future[None]]:
        """Under the lock: free `size` bytes; return the writers that may try again."""
        self._used -= size
        self._budget.used -= size
        done = self._budget.take_waiters()
        # Not at the first free byte: a writer that is woken for every batch writes tiny gulps.
        if self._used <= self._slot_bytes // 2:
            done += self._waiters
            self._waiters = []

        return done


def _say(cause: Exception) -> str:
    # Our own errors are whole sentences; a bug's text means nothing without its kind.
    return str(cause) if isinstance(cause, _EXPECTED) else say(cause)
