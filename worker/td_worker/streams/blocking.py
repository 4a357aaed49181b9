"""
Realtime streams, for plain `def` tasks: `from td_worker.sync import streams`.

The same names and meanings as `td_worker.streams`, without asyncio:

```python
from td_worker.sync import streams

with streams.writer("progress") as w:
    w.write({"done": 1})

handle = streams.pipe("answer", model.stream(prompt))   # runs in a thread of its own
seq = streams.append("log", "one record, acked")
for chunk in streams.read(run_id, "progress"):
    ...
```

Everything blocks the calling thread alone: the work is done on the worker's runtime loop.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, overload

from td_worker.context import refuse_on_event_loop
from td_worker.errors import StreamClosedError
from td_worker.streams.arguments import (
    MISSING,
    check_read,
    check_source,
    current_execution,
    open_lane,
    split_key,
)
from td_worker.streams.guardrail import warn_in_chat_agent
from td_worker.streams.lane import Lane
from td_worker.streams.naming import DEFAULT_KEY, check_key
from td_worker.streams.reader import Feed, chunks_of

__all__ = ["DefinedStream", "StreamHandle", "Writer", "append", "define", "pipe", "read", "writer"]


class Writer:
    """
    Writes chunks to one stream, in order; made by `streams.writer`.

    Leaving its `with` block waits until everything is acked and raises what went wrong. When the
    block itself raises, what was accepted is still flushed, and the block's own error goes on.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    @property
    def last_event_id(self) -> str | None:
        """The sequence number of the last acked record, inclusive; None before any."""
        return self._lane.last_event_id

    def write(self, chunk: object) -> None:
        """
        Accept one chunk into the buffer; blocks while the buffer is full.

        Raises:
            ChatChunkTooLargeError: The chunk is over the cap of a record; this writer has failed.
            ChunkNotEncodableError: JSON cannot express it; this writer has failed.
            StreamWriteError: Records of this writer were given up.
            StreamClosedError: The writer was closed.
        """
        body = self._lane.offer(chunk)
        if body is not None:
            self._wait_for_space(body)

    def flush(self) -> None:
        """
        Wait until everything accepted so far is acked.

        Raises:
            StreamWriteError: Records of this writer were given up.
        """
        self._lane.flush().result()

    def wait(self) -> str | None:
        """
        Close the writer and wait until everything is acked.

        Returns:
            The sequence number of the last record, inclusive; None when nothing was written.

        Raises:
            StreamError: What this writer failed of.
        """
        self._lane.close()

        return _wait_settled(self._lane)

    def abort(self) -> None:
        """Drop what is not sent yet; `wait` then returns quietly."""
        self._lane.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _tb: TracebackType | None,
    ) -> None:
        self._lane.close()
        if error is None:
            _wait_settled(self._lane)
        elif isinstance(error, Exception):
            self._lane.settled.result()

    def _wait_for_space(self, body: bytes) -> None:
        while True:
            self._lane.space(body).result()
            if self._lane.retry(body):
                return


class StreamHandle:
    """A pipe under way; made by `streams.pipe`. It runs on whether or not anybody waits for it."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    @property
    def last_event_id(self) -> str | None:
        """The sequence number of the last acked record, inclusive; None before any."""
        return self._lane.last_event_id

    def wait(self) -> str | None:
        """
        Wait until the source has ended and every record is acked.

        Returns:
            The sequence number of the last record, inclusive; None when there was none. An aborted
            pipe returns quietly too.

        Raises:
            Exception: What the source raised.
            StreamError: What the stream failed of.
        """
        return _wait_settled(self._lane)

    def abort(self) -> None:
        """Take nothing more from the source and drop what is not sent yet."""
        self._lane.abort()


@dataclass(frozen=True, slots=True)
class DefinedStream:
    """The calls of this module bound to one stream key; made by `define`."""

    id: str

    def pipe(self, source: Iterable[Any], *, target: str | None = None) -> StreamHandle:
        """See `streams.pipe`."""
        return pipe(self.id, source, target=target)

    def writer(self, *, target: str | None = None) -> Writer:
        """See `streams.writer`."""
        return writer(self.id, target=target)

    def append(self, value: object, *, target: str | None = None) -> int:
        """See `streams.append`."""
        warn_in_chat_agent("pipe")  # upstream's `append` of a defined stream is a pipe

        return append(self.id, value, target=target)

    def read(
        self, run_id: str, *, start_index: int | None = None, timeout: float | timedelta = 60
    ) -> Generator[Any, None, None]:
        """See `streams.read`."""
        return read(run_id, self.id, start_index=start_index, timeout=timeout)


def define(id: str) -> DefinedStream:  # noqa: A002  the official SDK's word
    """
    Return the stream calls bound to the key `id`; may be called at import time.

    Raises:
        StreamKeyError: The id cannot name a stream.
    """
    return DefinedStream(check_key(id))


@overload
def pipe(source: Iterable[Any], /, *, target: str | None = None) -> StreamHandle: ...
@overload
def pipe(key: str, source: Iterable[Any], /, *, target: str | None = None) -> StreamHandle: ...


def pipe(first: Any, second: Any = MISSING, /, *, target: str | None = None) -> StreamHandle:
    """
    Stream all that `source` yields, in a thread of its own, from now on and by itself.

    Needs no waiting; the end of the run waits for it.

    Args:
        first: The stream's key, `default` when left out.
        second: A plain iterable.
        target: Whose stream.

    Returns:
        A handle to wait for the end or to abort.

    Raises:
        NotInTaskError: No task is running.
        StreamKeyError: The key or the target cannot name a stream.
        TypeError: The source is async, or text.
    """
    warn_in_chat_agent("pipe")
    key, source = split_key(first, second, what="streams.pipe")
    check_source(source, what="streams.pipe")
    if not isinstance(source, Iterable):
        raise TypeError(
            f"streams.pipe: a plain `def` task pipes plain iterables, got {type(source).__name__}; "
            "for an async source write an `async def` task"
        )

    return _start_pipe(open_lane(key, target), source)


def writer(key: str = DEFAULT_KEY, *, target: str | None = None) -> Writer:
    """
    Return a writer for one stream; use it with `with`.

    Raises:
        NotInTaskError: No task is running.
        BlockingCallError: An event loop runs in this thread: use `td_worker.streams` there.
        StreamKeyError: The key or the target cannot name a stream.
    """
    refuse_on_event_loop("streams.writer")

    warn_in_chat_agent("writer")

    return Writer(open_lane(key, target))


@overload
def append(value: object, /, *, target: str | None = None) -> int: ...
@overload
def append(key: str, value: object, /, *, target: str | None = None) -> int: ...


def append(first: Any, second: Any = MISSING, /, *, target: str | None = None) -> int:
    """
    Write one record and wait until it is acked.

    Args:
        first: The stream's key, `default` when left out.
        second: The chunk.
        target: Whose stream.

    Returns:
        The record's sequence number.

    Raises:
        NotInTaskError: No task is running.
        BlockingCallError: An event loop runs in this thread: use `td_worker.streams` there.
        StreamError: The record was not taken, or was given up.
    """
    refuse_on_event_loop("streams.append")
    warn_in_chat_agent("append")
    key, value = split_key(first, second, what="streams.append")
    lane = open_lane(key, target)
    with Writer(lane) as one:
        one.write(value)
    if lane.last_seq is None:
        raise lane.refusal()

    return lane.last_seq


def read(
    run_id: str,
    key: str = DEFAULT_KEY,
    *,
    start_index: int | None = None,
    timeout: float | timedelta = 60,
) -> Generator[Any, None, None]:
    """
    Return the chunks of a run's stream, each once, in order, and follow it.

    Reconnects by itself. Control records and records that hold no envelope are left out. Wrap it
    into `contextlib.closing` to close its connection as soon as you stop early.

    Args:
        run_id: Whose stream; any run's.
        key: Which stream.
        start_index: The sequence number of the first record to return; None or 0 for all.
        timeout: Ends after so much silence: 1 to 600 seconds, or a timedelta.

    Raises:
        NotInTaskError: No task is running.
        BlockingCallError: An event loop runs in this thread: use `td_worker.streams` there.
        StreamKeyError, ValueError: An argument is out of its bounds.
        StreamReadError: The control plane refuses, for example since it does not know the run.
    """
    refuse_on_event_loop("streams.read")
    warn_in_chat_agent("read")
    asked = check_read(run_id, key, start_index=start_index, timeout=timeout)
    feed = current_execution().streams.read(
        asked.run_id, asked.key, last_event_id=asked.last_event_id, timeout_s=asked.timeout_s
    )

    return _each(feed)


def _each(feed: Feed) -> Generator[Any, None, None]:
    try:
        while (parts := feed.next().result()) is not None:
            yield from chunks_of(parts)
    finally:
        feed.close()


def _start_pipe(lane: Lane, source: Iterable[Any]) -> StreamHandle:
    # Marks the lane as fed; the pump itself notices an abort by its next write.
    lane.stop_source = lambda: None
    context = contextvars.copy_context()
    threading.Thread(
        target=context.run, args=(_pump, lane, source), name="td-stream-pipe", daemon=True
    ).start()

    return StreamHandle(lane)


def _pump(lane: Lane, source: Iterable[Any]) -> None:
    """Write all that `source` yields, then end `lane` as the source ended."""
    if lane.closed:
        return  # aborted before the start: the source stays untouched
    writer = Writer(lane)
    try:
        _write_all(writer, source)
    except BaseException as error:  # noqa: BLE001  a thread has nobody to raise to; `wait` does
        # Does nothing to a lane that was aborted or has failed before.
        lane.fail(error if isinstance(error, Exception) else StreamClosedError(repr(error)))
    else:
        lane.close()


def _write_all(writer: Writer, source: Iterable[Any]) -> None:
    try:
        for chunk in source:
            writer.write(chunk)
    finally:
        if (close := getattr(source, "close", None)) is not None:
            close()


def _wait_settled(lane: Lane) -> str | None:
    lane.settled.result()
    if lane.error is not None:
        raise lane.error

    return lane.last_event_id
