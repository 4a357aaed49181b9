"""Sources merged into a writer, by tasks and by threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from structlog.testing import capture_logs

from td_worker import streams
from td_worker.context import executing
from td_worker.errors import ChatChunkTooLargeError, StreamClosedError
from td_worker.streams import blocking
from tests.integration.streams.conftest import RUN

HUGE = "x" * 1_100_000


async def count(name: str, to: int) -> AsyncIterator[list[object]]:
    for n in range(to):
        yield [name, n]
        await asyncio.sleep(0)


class Open:
    """An async source that stays open until it is told, or stopped."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self) -> AsyncIterator[str]:
        try:
            yield "first"
            self.begun.set()
            await self.go_on.wait()
            yield "last"
        finally:
            self.closed.set()


def of(platform, name: str) -> list[object]:
    """Return what one source wrote, in the order of the stream."""
    return [chunk[1] for chunk in platform.chunks(RUN) if chunk[0] == name]


async def test_a_writer_closes_when_block_and_sources_have_ended(platform, execution):
    """Two merged sources and the block interleave, each in its order, and all is acked."""
    with executing(execution):
        async with streams.writer() as w:
            w.merge(count("a", 300))
            w.merge([["plain", n] for n in range(300)])
            for n in range(300):
                await w.write(["block", n])

    assert w.last_event_id == "899"
    for name in ("a", "plain", "block"):
        assert of(platform, name) == list(range(300))
    assert platform.puts == {(RUN, "default"): 1}


async def test_the_block_ends_before_its_sources(platform, execution):
    """`wait` stays until the last source has ended, and what it then writes is stored."""
    source = Open()
    with executing(execution):
        w = streams.writer()
        w.merge(source())
        waiting = asyncio.create_task(w.wait())
        await source.begun.wait()
        assert not waiting.done()
        source.go_on.set()
        assert await waiting == "1"
        with pytest.raises(StreamClosedError):
            w.merge([1])

    assert platform.chunks(RUN) == ["first", "last"]


async def test_a_sources_error_is_logged_and_the_stream_closes_normally(platform, execution):
    """Upstream's rule: nobody sees the error of a merged source but the log."""

    async def broken() -> AsyncIterator[str]:
        yield "before"
        raise ZeroDivisionError("a bug")

    with executing(execution), capture_logs() as logs:
        async with streams.writer() as w:
            w.merge(broken())
            w.merge(["other"])

    assert sorted(platform.chunks(RUN)) == ["before", "other"]
    (line,) = [line for line in logs if line["event"] == "stream.source_failed"]
    assert isinstance(line["exc_info"], ZeroDivisionError)


async def test_a_block_that_raises_stops_its_sources(platform, execution):
    """The block's error goes on, the source is closed, what was accepted is stored."""
    source = Open()

    async def block() -> None:
        async with streams.writer() as w:
            w.merge(source())
            await source.begun.wait()
            raise KeyError

    with executing(execution):
        with pytest.raises(KeyError):
            await block()
        await source.closed.wait()

    assert platform.chunks(RUN) == ["first"]


async def test_a_merged_chunk_that_is_too_large_fails_the_writer(platform, execution):
    """Oversize is no error of the source: the writer fails, as if it had written it."""
    with executing(execution), capture_logs() as logs:
        with pytest.raises(ChatChunkTooLargeError):
            async with streams.writer() as w:
                w.merge(["small", HUGE, "never"])
        assert await streams.append("next") == 1

    assert platform.chunks(RUN) == ["small", "next"]
    assert platform.puts == {(RUN, "default"): 2}
    assert not [line for line in logs if line["event"] == "stream.source_failed"]


async def test_a_failed_writer_stops_sources_that_say_nothing(platform, execution):
    """After an oversize write `wait` does not hang on a quiet source: it is closed."""
    source = Open()
    with executing(execution):
        w = streams.writer()
        w.merge(source())
        await source.begun.wait()
        with pytest.raises(ChatChunkTooLargeError):
            await w.write(HUGE)
        with pytest.raises(ChatChunkTooLargeError):
            await w.wait()
    assert source.closed.is_set()


async def test_one_source_that_fails_the_writer_stops_the_others(platform, execution):
    """A merged chunk that is too large ends the quiet source beside it, too."""
    source = Open()
    with executing(execution):
        w = streams.writer()
        w.merge(source())
        await source.begun.wait()
        w.merge([HUGE])
        with pytest.raises(ChatChunkTooLargeError):
            await w.wait()
    assert source.closed.is_set()


async def test_an_abort_stops_the_sources(platform, execution):
    """An aborted writer's source is closed and `wait` returns quietly."""
    source = Open()
    with executing(execution):
        w = streams.writer()
        w.merge(source())
        await source.begun.wait()
        w.abort()
        await source.closed.wait()
        await w.wait()


async def test_the_end_of_a_run_waits_for_merged_sources(platform):
    """A writer that nobody closed is drained: its source ends first, then it closes by itself."""
    source = Open()
    with platform.client() as client, platform.execution(run_id=RUN) as execution:
        w = streams.writer()
        w.merge(source())
        await source.begun.wait()
        draining = client.submit(client.drain(execution, 60))
        source.go_on.set()
        assert await asyncio.wrap_future(draining) == 0

    assert platform.chunks(RUN) == ["first", "last"]


def test_threads_merge_alike(platform, execution):
    """The twin: a thread for each source, the block waits for them, errors are logged."""

    def broken() -> Iterator[object]:
        yield ["broken", 0]
        raise ZeroDivisionError

    with capture_logs() as logs:
        with blocking.writer() as w:
            w.merge(["a", n] for n in range(500))
            w.merge(["b", n] for n in range(500))
            w.merge(broken())
        assert w.last_event_id == "1000"

    assert of(platform, "a") == of(platform, "b") == list(range(500))
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "stream.source_failed"
    ]


def test_a_plain_block_that_raises_ends_its_threads(platform, execution):
    """A thread's next write is refused, its source is closed, and nothing is logged of it."""
    closed, begun = threading.Event(), threading.Event()

    def endless() -> Iterator[int]:
        try:
            n = 0
            while True:
                yield (n := n + 1)
                begun.set()
        finally:
            closed.set()

    def block(w: blocking.Writer) -> None:
        with w:
            w.merge(endless())
            begun.wait()
            raise KeyError

    with capture_logs() as logs:
        w = blocking.writer()
        with pytest.raises(KeyError):
            block(w)
        closed.wait()
        w._merging().ended().result()  # its thread has said all it has to say

    assert not [line for line in logs if line["event"] == "stream.source_failed"]


@pytest.mark.parametrize("source", ["text", b"bytes"])
def test_text_is_no_source(execution, source):
    """A lone string would be merged letter by letter."""
    with blocking.writer() as w, pytest.raises(TypeError, match="wrap a single chunk"):
        w.merge(source)
