"""What is accepted and not yet acked: batches that fill up, and the bound over all slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from td_worker.stream_store import Appended, HeaderRecord

if TYPE_CHECKING:
    from td_worker.streams.lane import Lane

RECORD_OVERHEAD: Final = 8
"""What S2 meters for a record without headers, on top of its body."""


class Batch:
    """Records of one append, in order: whose they are, and their envelopes."""

    __slots__ = ("bodies", "lanes", "receipts", "size")

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.bodies: list[Appended] = []
        self.receipts: dict[int, Future[int]] = {}
        """By a record's place in the batch: who wants to know its sequence number."""
        self.size = 0
        """Metered bytes."""

    def without(self, lane: Lane) -> Batch:
        """Return the batch less the records of `lane`."""
        rest = Batch()
        for place, (owner, body) in enumerate(zip(self.lanes, self.bodies, strict=True)):
            if owner is not lane:
                rest.add(owner, body, self.receipts.get(place))

        return rest

    def add(self, lane: Lane, body: Appended, receipt: Future[int] | None = None) -> None:
        """Append one record."""
        if receipt is not None:
            self.receipts[len(self.bodies)] = receipt
        self.lanes.append(lane)
        self.bodies.append(body)
        self.size += metered(body)


class Queue:
    """
    The batches of one slot that wait to be sent, the last of them still gathering.

    Not thread-safe by itself: the appender's lock is held around every call.
    """

    __slots__ = ("_batch_bytes", "_batch_records", "_gathering", "_sealed")

    def __init__(self, *, batch_records: int, batch_bytes: int) -> None:
        self._batch_records = batch_records
        self._batch_bytes = batch_bytes
        self._sealed: deque[Batch] = deque()
        self._gathering = Batch()

    def push(self, lane: Lane, body: bytes, size: int) -> bool:
        """Append a record of `size` metered bytes; True when a full batch is waiting."""
        gathering = self._gathering
        if gathering.size + size > self._batch_bytes and gathering.size:
            gathering = self._seal()
        gathering.lanes.append(lane)
        gathering.bodies.append(body)
        gathering.size += size
        if len(gathering.bodies) >= self._batch_records:
            self._seal()

        return bool(self._sealed)

    def push_headed(self, lane: Lane, record: HeaderRecord, receipt: Future[int]) -> None:
        """Append a record with headers; `receipt` is for its sequence number."""
        gathering = self._gathering
        if gathering.size + record.metered > self._batch_bytes and gathering.size:
            gathering = self._seal()
        gathering.add(lane, record, receipt)
        if len(gathering.bodies) >= self._batch_records:
            self._seal()

    def has_full(self) -> bool:
        """Say whether a full batch is waiting."""
        return bool(self._sealed)

    def has_any(self) -> bool:
        """Say whether any record is waiting."""
        return bool(self._sealed or self._gathering.size)

    def take(self) -> Batch:
        """Return the oldest batch, full or not; it must have any."""
        if self._sealed:
            return self._sealed.popleft()
        self._seal()

        return self._sealed.popleft()

    def take_all(self) -> list[Batch]:
        """Return every batch and forget them."""
        self._seal()
        batches = list(self._sealed)
        self._sealed.clear()

        return batches

    def discard(self, lane: Lane) -> int:
        """Drop the records of `lane`; return their metered bytes."""
        before = self._size()
        self._sealed = deque(rest for batch in self._sealed if (rest := batch.without(lane)).bodies)
        self._gathering = self._gathering.without(lane)

        return before - self._size()

    def _seal(self) -> Batch:
        self._sealed.append(self._gathering)
        self._gathering = Batch()

        return self._gathering

    def _size(self) -> int:
        return sum(batch.size for batch in self._sealed) + self._gathering.size


class Budget:
    """The bound over all slots of a process. Guarded by the lock that all appenders share."""

    __slots__ = ("bound", "used", "waiters")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.used = 0
        self.waiters: list[Future[None]] = []
        """Writers that wait for this bound, not for their slot's."""

    def take_waiters(self) -> list[Future[None]]:
        """Return all waiters and forget them."""
        waiters, self.waiters = self.waiters, []

        return waiters


def metered(record: Appended) -> int:
    """Return what S2 meters for a record."""
    if isinstance(record, HeaderRecord):
        return record.metered

    return len(record) + RECORD_OVERHEAD


def resolve(
    waiters: Iterable[Future[Any]], error: Exception | None = None, result: Any = None
) -> None:
    """Finish each waiter unless it was cancelled, which its owner may do at any moment."""
    for waiter in waiters:
        if not waiter.set_running_or_notify_cancel():
            continue
        if error is None:
            waiter.set_result(result)
        else:
            waiter.set_exception(error)
