"""Pipes, aborts and the end of a run."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from structlog.testing import capture_logs

from td_worker import streams
from td_worker.context import executing
from td_worker.errors import ChatChunkTooLargeError, StreamClosedError, StreamWriteError
from td_worker.streams import blocking
from td_worker.streams.policy import StreamLimits
from tests.integration.streams.conftest import RUN

HUGE = "x" * 1_100_000


async def count(to: int) -> AsyncIterator[int]:
    for n in range(to):
        yield n


class Endless:
    """An async source without end that says when it is read and when it is closed."""

    def __init__(self) -> None:
        self.read = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self) -> AsyncIterator[str]:
        try:
            yield "only one"
            self.read.set()
            await asyncio.Event().wait()
        finally:
            self.closed.set()


async def test_a_pipe_runs_by_itself_and_can_be_waited_for(platform, execution):
    """The handle is there at once; waiting gives the inclusive last event id, each time."""
    with executing(execution):
        handle = streams.pipe("answer", count(1500))
        assert handle.last_event_id is None
        assert await handle.wait() == "1499"
        assert await handle.wait() == "1499"

    assert platform.chunks(RUN, "answer") == list(range(1500))


@pytest.mark.parametrize("source", [[1, 2, 3], (n for n in (1, 2, 3)), range(1, 4)])
async def test_a_plain_iterable_is_a_source_too(platform, execution, source):
    """Lists, generators and ranges stream like async iterables, into the default stream."""
    with executing(execution):
        assert await streams.pipe(source).wait() == "2"

    assert platform.chunks(RUN) == [1, 2, 3]


@pytest.mark.conformance("LE2")
async def test_an_empty_source_writes_nothing(platform, execution):
    """LE2 for pipes: no record, None, no PUT."""
    with executing(execution):
        assert await streams.pipe([]).wait() is None

    assert platform.puts == {}


@pytest.mark.parametrize("source", ["text", b"bytes"])
async def test_text_is_no_source(platform, execution, source):
    """A lone string is a forgotten source or a chunk, never a stream of letters."""
    with executing(execution), pytest.raises(TypeError, match="wrap a single chunk"):
        streams.pipe("key", source)


async def test_a_source_that_was_cancelled_from_within_is_no_abort(platform, execution):
    """Nobody has asked for that end: `wait` says what is missing, and so does a merge's log."""

    async def source() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError("a task of its own was cancelled")

    with executing(execution), capture_logs() as logs:
        with pytest.raises(StreamClosedError, match="from within"):
            await streams.pipe("piped", source()).wait()
        async with streams.writer("merged") as writer:
            writer.merge(source())

    assert platform.chunks(RUN, "piped") == platform.chunks(RUN, "merged") == [1]
    assert "stream.source_failed" in [line["event"] for line in logs]


async def test_a_source_that_raises_rejects_the_wait_and_evicts_the_slot(platform, execution):
    """What was yielded is durable, the error is the source's own, the next write PUTs again."""

    async def break_down() -> AsyncIterator[int]:
        yield 1
        raise KeyError("model is gone")

    with executing(execution):
        with pytest.raises(KeyError, match="model is gone"):
            await streams.pipe("s", break_down()).wait()
        assert platform.chunks(RUN, "s") == [1]
        await streams.append("s", 2)

    assert platform.puts == {(RUN, "s"): 2}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_a_source_that_would_end_the_process_rejects_the_wait(platform, execution, error):
    """A `sys.exit()` in a source fails its pipe, and neither hangs `wait` nor leaves the loop."""

    def leave() -> Iterator[int]:
        yield 1
        raise error

    with executing(execution), pytest.raises(StreamClosedError, match=type(error).__name__):
        await streams.pipe("s", leave()).wait()

    assert platform.chunks(RUN, "s") == [1]


async def test_an_oversize_chunk_in_a_pipe_rejects_its_wait(platform, execution):
    """The pipe that carries it fails; its source is closed."""
    source = (chunk for chunk in ["fine", HUGE, "never"])
    with executing(execution), pytest.raises(ChatChunkTooLargeError):
        await streams.pipe(source).wait()

    assert platform.chunks(RUN) == ["fine"]
    assert next(source, None) is None


@pytest.mark.conformance("AB1")
async def test_an_abort_before_the_start_opens_nothing(platform, execution):
    """AB1: wait resolves without an id, the source is untouched, no request is made."""
    touched: list[int] = []

    def source() -> Iterator[int]:
        touched.append(1)
        yield 1

    with executing(execution):
        handle = streams.pipe("s", source())
        handle.abort()
        assert await handle.wait() is None

    assert touched == []
    assert platform.puts == {}


@pytest.mark.conformance("AB2")
async def test_an_abort_in_flight_resolves_quietly_and_keeps_the_slot(platform, execution):
    """AB2: wait resolves, the source is closed, the next write needs no new PUT."""
    source = Endless()
    with executing(execution):
        handle = streams.pipe("s", source())
        await source.read.wait()
        handle.abort()
        await handle.wait()
        await source.closed.wait()
        await streams.append("s", "after")

    assert platform.puts == {(RUN, "s"): 1}
    assert platform.chunks(RUN, "s")[-1] == "after"
    assert execution.opened.records_lost == 0


async def test_an_abort_drops_only_what_is_its_own(platform, execution):
    """Records of a neighbour that wait in the same buffer are sent all the same."""
    with executing(execution):
        async with streams.writer("s") as kept:
            with platform.holding_appends():
                await kept.write("kept 1")
                await asyncio.to_thread(platform.arrived.wait)
                dropped = streams.writer("s")
                await dropped.write("dropped")
                await kept.write("kept 2")
                dropped.abort()
        assert await dropped.wait() is None

    assert platform.chunks(RUN, "s") == ["kept 1", "kept 2"]


async def test_cancelling_who_waits_does_not_end_the_pipe(platform, execution):
    """The pipe belongs to the run, not to the caller that happened to wait for it."""
    gate = asyncio.Event()

    async def gated() -> AsyncIterator[int]:
        yield 1
        await gate.wait()
        yield 2

    with executing(execution):
        handle = streams.pipe(gated())
        waiting = asyncio.create_task(handle.wait())
        await asyncio.to_thread(platform.arrived.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.set()
        assert await handle.wait() == "1"

    assert platform.chunks(RUN) == [1, 2]


async def test_the_end_of_a_run_waits_for_what_nobody_awaited(platform, execution):
    """Pipes and unclosed writers are drained, and nothing counts as lost."""
    with executing(execution):
        streams.pipe("piped", count(2000))
        unclosed = streams.writer("written")
        await unclosed.write("x")
    with capture_logs() as logs:
        assert await execution.streams.drain(execution, 30) == 0

    assert platform.chunks(RUN, "piped") == list(range(2000))
    assert platform.chunks(RUN, "written") == ["x"]
    assert [line["event"] for line in logs if line["event"] == "stream.drained"] == [
        "stream.drained"
    ]
    assert len(execution.opened) == 0


@pytest.mark.conformance("WA1")
async def test_a_stream_that_does_not_drain_in_time_is_counted(platform, execution):
    """After the time-out accepted records are given up, counted and logged."""
    source = Endless()
    with executing(execution), platform.holding_appends():
        streams.pipe("s", source())
        w = streams.writer("t")
        for n in range(5):
            await w.write(n)
        await source.read.wait()
        with capture_logs() as logs:
            assert await execution.streams.drain(execution, 0.05) == 6
        await source.closed.wait()

    assert {"event": "stream.records_lost", "log_level": "error", "records": 6} in logs


@pytest.mark.conformance("WA2")
async def test_a_failed_stream_nobody_awaited_is_counted_and_not_raised(platform):
    """The run's end learns how many records were lost; no exception surfaces anywhere."""
    platform.spoil("append", status=503, times=10_000)
    limits = StreamLimits(retry_budget=0.2, retry_base=0.01)
    with platform.execution(run_id=RUN, limits=limits) as execution:
        handle = streams.pipe("s", count(7))
        assert await execution.streams.drain(execution, 30) == 7
        with pytest.raises(StreamWriteError):
            await handle.wait()
        platform.heal()


async def test_an_unwritable_chunk_in_a_pipe_counts_as_lost_and_is_logged(platform, execution):
    """Nobody may look at the handle: the end of the run and the log must tell."""
    with executing(execution), capture_logs() as logs:
        streams.pipe("s", ["fine", HUGE])
        assert await execution.streams.drain(execution, 30) == 1

    failed = [line for line in logs if line["event"] == "stream.writer_failed"]
    assert [line["slot"] for line in failed] == ["run/run_1/s"]
    assert "ChatChunkTooLargeError" in failed[0]["reason"]


async def test_a_source_that_stumbles_over_another_writer_ends_its_pipe(platform, execution):
    """A StreamClosedError of the source's own is an error like any other, not an abort."""
    with executing(execution):
        other = streams.writer("other")
        await other.wait()

        async def stumble() -> AsyncIterator[int]:
            yield 1
            await other.write(2)

        with pytest.raises(StreamClosedError, match="other"):
            await streams.pipe("s", stumble()).wait()


def test_a_pipe_of_a_plain_task_runs_in_its_own_thread(platform, execution):
    """The twin: handle at once, source read elsewhere, wait gives the last event id."""
    names: list[str] = []

    def source() -> Iterator[int]:
        for n in range(3):
            names.append(threading.current_thread().name)
            yield n

    with executing(execution):
        assert blocking.pipe("s", source()).wait() == "2"

    assert platform.chunks(RUN, "s") == [0, 1, 2]
    assert set(names) == {"td-stream-pipe"}


def test_a_pipe_of_a_plain_task_raises_its_sources_error(platform, execution):
    """The twin of a source that breaks down."""

    def break_down() -> Iterator[int]:
        yield 1
        raise KeyError("model is gone")

    with executing(execution), pytest.raises(KeyError):
        blocking.pipe(break_down()).wait()


@pytest.mark.conformance("AB2")
def test_a_pipe_of_a_plain_task_can_be_aborted(platform, execution):
    """The twin of AB2: the thread notices at its next chunk and closes the source."""
    first, closed = threading.Event(), threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
                first.set()
                time.sleep(0)
        finally:
            closed.set()

    with executing(execution):
        handle = blocking.pipe(endless())
        first.wait()
        handle.abort()
        handle.wait()
        closed.wait()

    assert execution.opened.records_lost == 0


def test_a_plain_task_cannot_pipe_an_async_source(platform, execution):
    """The error says what to write instead."""
    with executing(execution), pytest.raises(TypeError, match="async def"):
        blocking.pipe(count(3))  # type: ignore[call-overload]
