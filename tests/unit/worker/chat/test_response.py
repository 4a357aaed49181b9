"""The one writer of a chat: order, handles, and what happens when its buffers are full."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from td_sharedcache import Slot
from td_worker.chat.response import ResponseWriter
from td_worker.context import Execution
from td_worker.errors import (
    ChatBufferFullError,
    ChatChunkTooLargeError,
    ChunkNotEncodableError,
    StreamClosedError,
)
from td_worker.streams.policy import StreamLimits
from td_worker.testing import FakePlatform, run_platform

SLOT = Slot.session("c", "main", "out")
SMALL = StreamLimits(slot_bytes=2000)


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with run_platform() as platform:
        yield platform


@contextmanager
def _writing(
    platform: FakePlatform, *, limits: StreamLimits | None = None, overflow: int = 10_000_000
) -> Iterator[tuple[ResponseWriter, Execution]]:
    """Yield a writer; it is ended, and drained, when the block is left."""
    with platform.execution(limits=limits) as execution:
        writer = ResponseWriter(
            lambda: execution.streams.open(SLOT, execution.opened),
            execution.opened,
            chat_id="c",
            overflow_bytes=overflow,
        )
        yield writer, execution
        writer.end()


def test_chunks_are_stored_in_order_by_one_put(platform: FakePlatform):
    """Chunks that nobody awaits are drained at the end of the run, in order, with one PUT."""
    with _writing(platform) as (writer, execution):
        for number in range(3000):
            writer.write(number)

    assert platform.sessions.chunks("c") == list(range(3000))
    assert sum(platform.puts.values()) == 1
    assert execution.opened.records_lost == 0


async def test_waiting_for_a_handle_waits_for_the_ack(platform: FakePlatform):
    """`wait` returns when the chunk, and all before it, can be read."""
    with _writing(platform) as (writer, _):
        writer.write("a")
        await writer.write("b").wait()

        assert platform.sessions.chunks("c") == ["a", "b"]


def test_more_than_the_buffer_takes_waits_in_order(platform: FakePlatform):
    """What finds the buffer full overflows, and is stored behind what was written before it."""
    with _writing(platform, limits=SMALL) as (writer, execution):
        with platform.holding_appends():
            handles = [writer.write([number, "x" * 100]) for number in range(200)]
            assert writer.overflow() is not None
        assert all(handle.error is None for handle in handles)

    assert [chunk[0] for chunk in platform.sessions.chunks("c")] == list(range(200))
    assert execution.opened.records_lost == 0


async def test_awaiting_a_handle_waits_for_room(platform: FakePlatform):
    """A hot loop that awaits its handles holds no more than the buffer, and loses nothing."""
    with _writing(platform, limits=SMALL, overflow=500) as (writer, _):
        for number in range(300):
            await writer.write([number, "x" * 100])

    assert [chunk[0] for chunk in platform.sessions.chunks("c")] == list(range(300))


async def test_above_both_bounds_a_chunk_is_refused_loudly(platform: FakePlatform):
    """A loop that never awaits is refused in the end; what was accepted is stored all the same."""
    with _writing(platform, limits=SMALL, overflow=3000) as (writer, _):
        with platform.holding_appends():
            handles = [writer.write([number, "x" * 100]) for number in range(200)]
            refused = [handle for handle in handles if handle.error is not None]
            assert refused
            with pytest.raises(ChatBufferFullError, match=r"await chat\.response\.write"):
                await refused[0]
        accepted = len(handles) - len(refused)

    assert [chunk[0] for chunk in platform.sessions.chunks("c")] == list(range(accepted))


async def test_an_oversize_chunk_fails_alone(platform: FakePlatform):
    """Its handle has the error, its neighbours are stored, and the next write mints anew."""
    with _writing(platform) as (writer, _):
        await writer.write("before").wait()
        refused = writer.write("x" * 2_000_000)
        await writer.write("after").wait()
        await writer.write("later").wait()
        with pytest.raises(ChatChunkTooLargeError):
            await refused

    assert platform.sessions.chunks("c") == ["before", "after", "later"]
    assert sum(platform.puts.values()) == 2


def test_an_oversize_chunk_in_the_overflow_loses_no_neighbour(platform: FakePlatform):
    """What waits for room when a writer fails goes on by another."""
    with _writing(platform, limits=SMALL) as (writer, _), platform.holding_appends():
        for number in range(50):
            writer.write([number, "x" * 100])
        assert isinstance(writer.write("x" * 2_000_000).error, ChatChunkTooLargeError)
        writer.write([50, ""])

    assert [chunk[0] for chunk in platform.sessions.chunks("c")] == list(range(51))


async def test_a_failure_that_somebody_looks_at_is_theirs(platform: FakePlatform):
    """A failure comes up at the end of the turn unless it was awaited or looked at."""
    with _writing(platform) as (writer, _):
        writer.write(object())
        assert isinstance(writer.take_failure(), ChunkNotEncodableError)
        assert writer.take_failure() is None

        assert isinstance(writer.write(object()).error, ChunkNotEncodableError)
        with pytest.raises(ChunkNotEncodableError):
            await writer.write(object())
        assert writer.take_failure() is None


async def test_a_hot_loop_lets_others_have_their_turn(platform: FakePlatform):
    """Somebody else's task gets on while a loop writes."""
    with _writing(platform) as (writer, _):
        other = asyncio.create_task(asyncio.sleep(0))
        for number in range(1000):
            await writer.write(number)
        assert other.done()


def test_nothing_is_written_after_the_end(platform: FakePlatform):
    """A write after the chat was left is refused, and says so."""
    with _writing(platform) as (writer, _):
        writer.end()

        assert isinstance(writer.write("late").error, StreamClosedError)
