"""
Realtime streams, for async tasks. Plain `def` tasks: `from td_worker.sync import streams`.

```python
from td_worker import streams

async with streams.writer("progress") as w:
    await w.write({"done": 1})

handle = streams.pipe("answer", model.stream(prompt))  # runs by itself
await streams.append("log", "one record, acked")
async for chunk in streams.read(run_id, "progress", timeout=1):
    ...
```

`target` says whose stream is meant: `self` (the default), `parent`, `root` (both fall back to the
run itself) or any run id. A stream key must not contain a slash. Every record is
`{"data": <chunk>, "id": ...}`, as the official SDK reads and writes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, overload

from td_worker.streams.arguments import (
    MISSING,
    check_source,
    open_feed,
    open_pipe,
    open_to_append,
    open_to_write,
)
from td_worker.streams.face import appended
from td_worker.streams.lane import Lane
from td_worker.streams.naming import DEFAULT_KEY, check_key
from td_worker.streams.reader import Feed, chunks_of
from td_worker.streams.writer import Source, StreamHandle, Writer, start_pipe

if TYPE_CHECKING:
    from td_worker.inputs import InputStream

__all__ = [
    "DefinedStream",
    "Source",
    "StreamHandle",
    "Writer",
    "append",
    "define",
    "input",
    "pipe",
    "read",
    "writer",
]


@dataclass(frozen=True, slots=True)
class DefinedStream:
    """
    The calls of this module bound to one stream key; made by `define`.

    ```python
    answers = streams.define("answers")
    await answers.pipe(model.stream(prompt)).wait()
    ```
    """

    id: str

    def pipe(
        self, source: Source, *, target: str | None = None, mirror: bool = False
    ) -> StreamHandle:
        """See `streams.pipe`."""
        return pipe(self.id, source, target=target, mirror=mirror)

    def writer(self, *, target: str | None = None) -> Writer:
        """See `streams.writer`."""
        return writer(self.id, target=target)

    async def append(self, value: object, *, target: str | None = None) -> int:
        """See `streams.append`."""
        # The official SDK's `append` of a defined stream is a pipe, and its guardrail says so.
        return await _append(*open_to_append(self.id, value, target, method="pipe"))

    def read(
        self, run_id: str, *, start_index: int | None = None, timeout: float | timedelta = 60
    ) -> AsyncGenerator[Any, None]:
        """See `streams.read`."""
        return read(run_id, self.id, start_index=start_index, timeout=timeout)


def input(id: str) -> InputStream:  # noqa: A001, A002  the official SDK's word
    """
    Return what clients send to a run under the id `id`; may be called at import time.

    ```python
    approvals = streams.input("approvals")

    async def publish(payload):
        decision = (await approvals.wait(timeout=3600)).unwrap()
    ```

    Raises:
        StreamKeyError: The id cannot name a stream.
    """
    from td_worker.inputs import InputStream  # which imports this package

    return InputStream(id)


def define(id: str) -> DefinedStream:  # noqa: A002  the official SDK's word
    """
    Return the stream calls bound to the key `id`; may be called at import time.

    ```python
    progress = streams.define("progress")
    await progress.append({"done": 1})
    ```

    Raises:
        StreamKeyError: The id cannot name a stream.
    """
    return DefinedStream(check_key(id))


@overload
def pipe(source: Source, /, *, target: str | None = None, mirror: bool = False) -> StreamHandle: ...
@overload
def pipe(
    key: str, source: Source, /, *, target: str | None = None, mirror: bool = False
) -> StreamHandle: ...


def pipe(
    first: Any, second: Any = MISSING, /, *, target: str | None = None, mirror: bool = False
) -> StreamHandle:
    """
    Stream all that `source` yields, from now on and by itself.

    Needs no await; the end of the run waits for it.

    ```python
    handle = streams.pipe("answer", model.stream(prompt))
    last_event_id = await handle.wait()
    ```

    Args:
        first: The stream's key, `default` when left out.
        second: An async iterable, or a plain one that does not block.
        target: Whose stream.
        mirror: Keep a copy of the chunks for `handle.stream`, which is then to be read.

    Returns:
        A handle to wait for the end or to abort.

    Raises:
        NotInTaskError: No task is running.
        StreamKeyError: The key or the target cannot name a stream.
        TypeError: The source is text.
    """
    lane, source = open_pipe(first, second, target, check=check_source)

    return start_pipe(lane, source, mirror=mirror)


def writer(key: str = DEFAULT_KEY, *, target: str | None = None) -> Writer:
    """
    Return a writer for one stream; use it with `async with`.

    ```python
    async with streams.writer("progress") as w:
        await w.write({"done": 1})
    ```

    Args:
        key: Which stream.
        target: Whose stream.

    Raises:
        NotInTaskError: No task is running.
        StreamKeyError: The key or the target cannot name a stream.
    """
    return Writer(open_to_write(key, target))


@overload
async def append(value: object, /, *, target: str | None = None) -> int: ...
@overload
async def append(key: str, value: object, /, *, target: str | None = None) -> int: ...


async def append(first: Any, second: Any = MISSING, /, *, target: str | None = None) -> int:
    """
    Write one record and wait until it is acked.

    ```python
    seq = await streams.append("log", {"text": "one record"})
    ```

    Args:
        first: The stream's key, `default` when left out.
        second: The chunk.
        target: Whose stream.

    Returns:
        The record's sequence number.

    Raises:
        NotInTaskError: No task is running.
        StreamError: The record was not taken, or was given up.
    """
    return await _append(*open_to_append(first, second, target))


def read(
    run_id: str,
    key: str = DEFAULT_KEY,
    *,
    start_index: int | None = None,
    timeout: float | timedelta = 60,
) -> AsyncGenerator[Any, None]:
    """
    Return the chunks of a run's stream, each once, in order, and follow it.

    Reconnects by itself. Control records and records that hold no envelope are left out. Wrap it
    into `contextlib.aclosing` to close its connection as soon as you stop early.

    ```python
    async for chunk in streams.read(run_id, "progress", timeout=1):
        print(chunk)
    ```

    Args:
        run_id: Whose stream; any run's.
        key: Which stream.
        start_index: The sequence number of the first record to return; None or 0 for all.
        timeout: Ends after so much silence: 1 to 600 seconds, or a timedelta.

    Raises:
        NotInTaskError: No task is running.
        StreamKeyError, ValueError: An argument is out of its bounds.
        StreamReadError: The control plane refuses, for example since it does not know the run.
    """
    return _each(open_feed(run_id, key, start_index=start_index, timeout=timeout))


async def _append(lane: Lane, value: object) -> int:
    async with Writer(lane) as one:
        await one.write(value)

    return appended(lane)


async def _each(feed: Feed) -> AsyncGenerator[Any, None]:
    try:
        while (parts := await asyncio.wrap_future(feed.next())) is not None:
            for chunk in chunks_of(parts):
                yield chunk
    finally:
        feed.close()
