"""Writers and appends against a platform in memory, over real HTTP."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from td_sharedcache import Slot
from td_worker import streams
from td_worker.context import Execution, executing
from td_worker.errors import (
    ChatChunkTooLargeError,
    ChunkNotEncodableError,
    NotInTaskError,
    StreamClosedError,
    StreamKeyError,
)
from td_worker.streams import blocking
from td_worker.streams.policy import StreamLimits
from td_worker.testing import FakePlatform
from tests.integration.streams.conftest import END, RUN, read_all_async, read_to_end

SLOT = Slot.run(RUN, "k")
HUGE = "x" * 1_100_000


async def until(condition: Callable[[], object]) -> None:
    """Give the loop turns until `condition` holds; the test's own time-out ends a wait in vain."""
    while not condition():
        await asyncio.sleep(0.001)


async def test_a_hot_loop_arrives_once_in_order_with_one_put(platform, execution):
    """Every chunk of a hot loop is stored once, in order, for one PUT and few appends."""
    with executing(execution):
        async with streams.writer("hot") as w:
            for n in range(5000):
                await w.write(n)

    assert platform.chunks(RUN, "hot") == list(range(5000))
    assert len(platform.records(RUN, "hot")) == 5000
    assert platform.puts == {(RUN, "hot"): 1}
    assert w.last_event_id == "4999"


async def test_writers_of_one_slot_interleave_and_keep_their_own_order(platform, execution):
    """Eight writers share a slot: one PUT, every chunk once, each writer's order kept."""

    async def write(name: int) -> None:
        async with streams.writer("shared") as w:
            for n in range(700):
                await w.write([name, n])

    with executing(execution):
        await asyncio.gather(*[write(name) for name in range(8)])

    chunks = platform.chunks(RUN, "shared")
    assert len(chunks) == 8 * 700
    for name in range(8):
        assert [n for who, n in chunks if who == name] == list(range(700))
    assert platform.puts == {(RUN, "shared"): 1}


def test_threads_and_a_loop_share_one_appender(platform, execution):
    """Plain threads and async code write one slot at once; nothing is lost or reordered."""

    def write(name: int) -> None:
        with blocking.writer("shared") as w:
            for n in range(500):
                w.write([name, n])

    async def write_async() -> None:
        async with streams.writer("shared") as w:
            for n in range(500):
                await w.write([9, n])

    with executing(execution):
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(write, name))
            for name in range(3)
        ]
        for thread in threads:
            thread.start()
        asyncio.run(write_async())
        for thread in threads:
            thread.join()

    chunks = platform.chunks(RUN, "shared")
    for name in (0, 1, 2, 9):
        assert [n for who, n in chunks if who == name] == list(range(500))
    assert platform.puts == {(RUN, "shared"): 1}


async def test_a_hot_loop_lets_others_have_their_turn(platform, execution):
    """Writes that find space suspend now and then, so that another task of the loop makes way."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    with executing(execution):
        other = asyncio.create_task(count())
        async with streams.writer() as w:
            for n in range(2000):
                await w.write(n)
            seen = turns
        other.cancel()

    assert seen >= 5


async def test_a_write_returns_before_the_ack_and_a_flush_after_it(platform, execution):
    """Accepted is not yet durable: the store holds nothing until flush has returned."""
    with executing(execution):
        async with streams.writer() as w:
            with platform.holding_appends():
                await w.write("a")
                await asyncio.to_thread(platform.arrived.wait)
                assert platform.records(RUN) == []
                assert w.last_event_id is None
            await w.flush()
            assert platform.chunks(RUN) == ["a"]
            assert w.last_event_id == "0"


async def test_one_batch_is_in_flight_and_the_next_gathers(platform, execution):
    """What is written during an append goes out in full batches of 1000 after it."""
    with executing(execution):
        async with streams.writer() as w:
            with platform.holding_appends():
                await w.write("first")
                await asyncio.to_thread(platform.arrived.wait)
                for n in range(2500):
                    await w.write(n)

    assert platform.appends == 4
    assert platform.chunks(RUN) == ["first", *range(2500)]


async def test_a_batch_waits_for_the_interval_unless_somebody_waits_for_it(platform, execution):
    """After the first send the flush interval, here an hour, holds; a flush sends both at once."""
    platform.flush_interval_ms = 3_600_000
    with executing(execution):
        async with streams.writer() as w:
            await w.write("a")
            await w.flush()
            await w.write("b")
            await w.write("c")
            await w.flush()

    assert platform.chunks(RUN) == ["a", "b", "c"]
    assert platform.appends == 2


async def test_a_full_batch_does_not_wait_for_the_interval(platform, execution):
    """A thousand records go out at once, even where the interval would hold them for an hour."""
    platform.flush_interval_ms = 3_600_000
    with executing(execution):
        w = streams.writer()
        await w.write("a")
        await w.flush()
        for n in range(1000):
            await w.write(n)
        await until(lambda: len(platform.records(RUN)) == 1001)
        w.abort()


@pytest.mark.conformance("LE1")
async def test_last_event_id_is_inclusive(platform, execution):
    """LE1: after records 0..2 it is "2", and a read from the next index finds what follows."""
    with executing(execution):
        async with streams.writer() as w:
            for chunk in "abc":
                await w.write(chunk)
        assert w.last_event_id == "2"
        assert await streams.append("d") == 3
        found = await read_all_async(start_index=int(w.last_event_id) + 1)

    assert found == ["d"]


@pytest.mark.conformance("LE2")
async def test_a_writer_that_wrote_nothing_has_no_last_event_id(platform, execution):
    """LE2: no record, no id, and no PUT either."""
    with executing(execution):
        async with streams.writer() as w:
            pass
        assert await streams.writer().wait() is None

    assert w.last_event_id is None
    assert platform.puts == {}


async def test_append_returns_the_acked_records_sequence_number(platform, execution):
    """An awaited append is durable, and its number is that of its record."""
    with executing(execution):
        assert [await streams.append("log", n) for n in range(3)] == [0, 1, 2]
        assert await streams.append("in the default stream") == 0

    assert platform.chunks(RUN, "log") == [0, 1, 2]
    assert platform.chunks(RUN) == ["in the default stream"]


async def test_a_defined_stream_is_bound_to_its_key(platform, execution):
    """The calls of `define` write and read the defined key."""
    progress = streams.define("progress")
    with executing(execution):
        async with progress.writer() as w:
            await w.write(1)
        await progress.append(2)
        await progress.pipe([3, 4]).wait()
        await progress.append(END)
        found = await read_to_end(progress.read(RUN))

    assert found == platform.chunks(RUN, "progress")[:-1] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("target", "run_id"),
    [
        (None, "run_c"),
        ("self", "run_c"),
        ("parent", "run_p"),
        ("root", "run_r"),
        ("run_x", "run_x"),
    ],
)
def test_a_target_is_another_runs_stream(platform, target, run_id):
    """Family targets and run ids decide whose stream is written."""
    with platform.execution(run_id="run_c", parent_id="run_p", root_id="run_r"):
        assert blocking.append("k", "x", target=target) == 0

    assert platform.chunks(run_id, "k") == ["x"]


@pytest.mark.parametrize("key", ["a b", "größe/".rstrip("/"), "100%", "a?b#c", "a:b&c", "日本"])
async def test_any_key_without_a_slash_reaches_its_stream(platform, execution, key):
    """Keys are percent-encoded everywhere on the way."""
    with executing(execution):
        await streams.append(key, key)

    assert platform.chunks(RUN, key) == [key]


def _fail_in_a_block(key: str, chunk: object) -> None:
    with blocking.writer(key) as w:
        w.write(chunk)
        raise ZeroDivisionError


def test_the_plain_twins_do_the_same(platform, execution):
    """Writer, flush, wait, append, pipe, define and read without asyncio, in any thread."""
    defined = blocking.define("twin")
    with executing(execution):
        w = blocking.writer("twin")
        w.write(0)
        w.flush()
        assert w.last_event_id == "0"
        w.write(1)
        assert w.wait() == "1"
        assert blocking.append("twin", 2) == 2
        assert defined.append(3) == 3
        assert defined.pipe([4]).wait() == "4"
        with defined.writer() as bound:
            bound.write(5)
        found = list(itertools.islice(defined.read(RUN), 6))
        with pytest.raises(ZeroDivisionError):
            _fail_in_a_block("failing", "kept")

    assert found == platform.chunks(RUN, "twin") == [0, 1, 2, 3, 4, 5]
    assert platform.chunks(RUN, "failing") == ["kept"]


def test_an_append_that_is_refused_has_evicted_its_slot(platform, execution):
    """Once the caller sees the oversize error the next append PUTs again, in both halves."""
    with executing(execution):
        blocking.append("s", 1)
        with pytest.raises(ChatChunkTooLargeError):
            blocking.append("s", HUGE)
        blocking.append("s", 2)

    assert platform.puts == {(RUN, "s"): 2}


def test_a_stopping_worker_refuses_new_streams_and_fails_late_writes(platform):
    """After the client is closed nothing hangs: open, write and wait say that it stops."""
    with platform.client() as client:
        lane = client.open(SLOT)
        client.submit(client.close()).result()
        lane.offer("late")
        lane.close()
        assert lane.settled.result(timeout=5) is None
        assert lane.lost == 1
        with pytest.raises(StreamClosedError, match="stopping"):
            client.open(SLOT)

    assert "stopping" in str(lane.error)


async def test_bad_keys_and_calls_outside_a_task_are_refused_at_the_call(platform, execution):
    """The mistake is raised where it is made, not in some background task."""
    with executing(execution), pytest.raises(StreamKeyError, match="slash"):
        streams.writer("a/b")
    with pytest.raises(NotInTaskError, match="while a task runs"):
        contextvars.Context().run(streams.writer)


async def test_an_oversize_chunk_fails_its_writer_alone(platform, execution):
    """One writer fails with what it accepted durable; its neighbour on the slot goes on."""
    with executing(execution):
        async with streams.writer("s") as good:
            await good.write("good 1")
            bad = streams.writer("s")
            await bad.write("bad 1")
            with pytest.raises(ChatChunkTooLargeError) as caught:
                await bad.write({"type": "blob", "x": HUGE})
            with pytest.raises(ChatChunkTooLargeError):
                await bad.write("too late")
            await good.write("good 2")
            with pytest.raises(ChatChunkTooLargeError):
                await bad.wait()

    assert caught.value.chunk_type == "blob"
    assert sorted(platform.chunks(RUN, "s")) == ["bad 1", "good 1", "good 2"]


async def test_a_failed_writer_evicts_its_slot(platform, execution):
    """As upstream: once the oversize writer's rejection is seen, the next write PUTs again."""
    with executing(execution):
        with pytest.raises(ChatChunkTooLargeError):
            await _write_in_a_block("s", "small", HUGE)
        assert platform.puts == {(RUN, "s"): 1}
        await streams.append("s", "next")

    assert platform.puts == {(RUN, "s"): 2}
    assert platform.chunks(RUN, "s") == ["small", "next"]


async def _write_in_a_block(key: str, *chunks: object) -> None:
    async with streams.writer(key) as w:
        for chunk in chunks:
            await w.write(chunk)


async def test_a_chunk_that_is_no_data_fails_its_writer(platform, execution):
    """What JSON cannot say is raised at the write and by the writer's end."""
    with executing(execution):
        w = streams.writer()
        with pytest.raises(ChunkNotEncodableError, match="object"):
            await w.write(object())
        with pytest.raises(ChunkNotEncodableError):
            await w.wait()


async def test_a_chunk_of_exactly_the_cap_is_stored(platform, execution):
    """The largest record passes through, alone in its batch."""
    room = 1_047_552 - len('{"data":"","id":"123456789012-0"}')
    with executing(execution):
        await streams.append("x" * room)

    assert len(platform.records(RUN)[0].body.encode()) == 1_047_552


async def test_a_body_full_of_quotes_is_sent_whole(platform, execution):
    """Escaping may double a batch on the wire; it arrives all the same."""
    chunk = '"\\' * 150_000
    with executing(execution):
        async with streams.writer() as w:
            for _ in range(3):
                await w.write(chunk)

    assert platform.chunks(RUN) == [chunk] * 3


async def test_leaving_by_an_error_flushes_what_was_accepted(platform, execution):
    """The block's own error goes on, and its chunks are durable by then."""

    async def fail() -> None:
        async with streams.writer() as w:
            await w.write("kept")
            raise ZeroDivisionError

    with executing(execution), pytest.raises(ZeroDivisionError):
        await fail()

    assert platform.chunks(RUN) == ["kept"]


async def test_a_closed_writer_takes_nothing_more(platform, execution):
    """A write after the end is an error, unlike upstream, where it vanishes."""
    with executing(execution):
        async with streams.writer() as w:
            await w.write(1)
        with pytest.raises(StreamClosedError, match="closed"):
            await w.write(2)

    assert platform.chunks(RUN) == [1]


@pytest.mark.parametrize(
    "limits",
    [StreamLimits(slot_bytes=20_000), StreamLimits(process_bytes=20_000)],
    ids=["slot", "process"],
)
async def test_a_full_buffer_makes_async_writers_wait(platform, limits):
    """While the store is silent no more than the bound is accepted; then all of it arrives."""
    with platform.execution(run_id=RUN, limits=limits):
        async with streams.writer() as w:
            with platform.holding_appends():
                writing = asyncio.create_task(_write(w, 2000))
                lane: Any = w._lane
                await until(lambda: _waiting(lane))
                assert 0 < lane.accepted < 2000
                assert lane._appender._budget.used <= 20_000
            await writing

    assert platform.chunks(RUN) == list(range(2000))


async def _write(w: streams.Writer, count: int) -> None:
    for n in range(count):
        await w.write(n)


def _waiting(lane: Any) -> bool:
    return bool(lane._appender._waiters or lane._appender._budget.waiters)


def test_a_full_buffer_makes_threads_wait(platform):
    """A plain writer blocks its thread at the bound, and goes on when there is space again."""
    with platform.execution(run_id=RUN, limits=StreamLimits(slot_bytes=20_000)):
        w = blocking.writer()
        lane: Any = w._lane
        with platform.holding_appends():
            thread = threading.Thread(target=_write_blocking, args=(w, 2000))
            thread.start()
            asyncio.run(until(lambda: _waiting(lane)))
            assert 0 < lane.accepted < 2000
        thread.join()
        w.wait()

    assert platform.chunks(RUN) == list(range(2000))


def _write_blocking(w: blocking.Writer, count: int) -> None:
    for n in range(count):
        w.write(n)


async def test_a_writer_that_waits_for_space_can_be_cancelled(platform):
    """Cancelling a write that waits ends it; the other writers of the slot go on."""
    with platform.execution(run_id=RUN, limits=StreamLimits(slot_bytes=5_000)):
        w = streams.writer()
        with platform.holding_appends():
            writing = asyncio.create_task(_write(w, 2000))
            await until(lambda: _waiting(w._lane))
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
        await w.wait()
        await streams.append("after")

    chunks = platform.chunks(RUN)
    assert chunks[-1] == "after"
    assert chunks[:-1] == list(range(len(chunks) - 1))


def test_idle_slots_cost_nothing(platform: FakePlatform, execution: Execution):
    """An appender is gone with its last writer: fifty slots leave none behind, nor a lane."""
    gc.disable()
    try:
        with executing(execution):
            for n in range(50):
                blocking.append(f"key-{n}", n)
        asyncio.run(until(lambda: len(execution.streams._appenders) == 0))
    finally:
        gc.enable()

    assert len(execution.opened) == 0
