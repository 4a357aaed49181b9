from __future__ import annotations

from concurrent.futures import Future
from typing import cast

from td_worker.streams.buffer import RECORD_OVERHEAD, Queue, resolve
from td_worker.streams.lane import Lane

A, B = cast("Lane", "lane a"), cast("Lane", "lane b")


def fill(queue: Queue, *records: tuple[Lane, bytes]) -> list[bool]:
    return [queue.push(lane, body, len(body) + RECORD_OVERHEAD) for lane, body in records]


def test_a_batch_is_full_at_its_number_of_records():
    """The record that fills a batch says so, and order is kept over batches."""
    queue = Queue(batch_records=2, batch_bytes=1000)

    assert fill(queue, (A, b"1"), (A, b"2"), (A, b"3")) == [False, True, True]
    assert [queue.take().bodies, queue.take().bodies] == [[b"1", b"2"], [b"3"]]
    assert not queue.has_any()


def test_a_batch_never_exceeds_its_bytes():
    """A record that would not fit starts the next batch; metered bytes count 8 a record."""
    queue = Queue(batch_records=100, batch_bytes=40)

    assert fill(queue, (A, b"x" * 12), (A, b"y" * 12), (A, b"z")) == [False, False, True]
    first = queue.take()
    assert (first.size, first.bodies) == (40, [b"x" * 12, b"y" * 12])


def test_a_record_larger_than_a_batch_goes_alone():
    """Whatever the bound, an empty batch takes a record, so nothing waits for ever."""
    queue = Queue(batch_records=100, batch_bytes=10)
    fill(queue, (A, b"x" * 50), (A, b"y"))

    assert [queue.take().bodies, queue.take().bodies] == [[b"x" * 50], [b"y"]]


def test_discarding_a_lane_leaves_the_others_in_order():
    """The records of one lane go, their bytes are counted, all others stay where they are."""
    queue = Queue(batch_records=2, batch_bytes=1000)
    fill(queue, (A, b"1"), (B, b"2"), (A, b"3"), (A, b"4"), (B, b"5"))

    assert queue.discard(A) == 3 * (1 + RECORD_OVERHEAD)
    assert [body for batch in queue.take_all() for body in batch.bodies] == [b"2", b"5"]
    assert not queue.has_any()


def test_resolving_skips_waiters_that_were_cancelled():
    """A caller that stopped waiting does not disturb those that still wait."""
    cancelled: Future[None] = Future()
    cancelled.cancel()
    waiting: Future[None] = Future()
    resolve([cancelled, waiting])

    assert waiting.result(timeout=0) is None
