"""
Realtime streams, for plain `def` tasks: `from td_worker.sync import streams`.

The same names and meanings as `td_worker.streams`, whose docstrings say the rest, without asyncio:

```python
from td_worker.sync import streams

with streams.writer("progress") as w:
    w.merge(model.stream(prompt))  # runs in a thread of its own
    w.write({"done": 1})

handle = streams.pipe("answer", model.stream(prompt))  # so does this
seq = streams.append("log", "one record, acked")
for chunk in streams.read(run_id, "progress", timeout=1):
    ...
```

Everything blocks the calling thread alone: the work is done on the worker's runtime loop. On an
event loop every call that would block raises BlockingCallError.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from td_worker.errors import StreamClosedError
from td_worker.streams.arguments import (
    MISSING,
    check_plain_source,
    open_feed,
    open_pipe,
    open_to_append,
    open_to_write,
)
from td_worker.streams.face import HandleFace, WriterFace, appended, result_of
from td_worker.streams.lane import Lane
from td_worker.streams.mirror import Mirror
from td_worker.streams.naming import DEFAULT_KEY, check_key
from td_worker.streams.reader import Feed, chunks_of

if TYPE_CHECKING:
    from td_worker.blocking_inputs import InputStream

__all__ = [
    "DefinedStream",
    "StreamHandle",
    "Writer",
    "append",
    "define",
    "input",
    "pipe",
    "read",
    "writer",
]

Write = Callable[[object], None]


class Writer(WriterFace):
    """
    See `td_worker.streams.Writer`; use it with `with`.

    ```python
    with streams.writer("progress") as w:
        w.write({"step": 1})
        w.flush()
    ```
    """

    def write(self, chunk: object) -> None:
        """Accept one chunk into the buffer; blocks while the buffer is full."""
        body = self._lane.offer(chunk)
        if body is not None:
            self._wait_for_space(body)

    def merge(self, source: Iterable[Any]) -> None:
        """Write all that a plain iterable yields, too, in a thread of its own."""
        check_plain_source(source, what="writer.merge")
        # A thread cannot be stopped from outside: it ends by its next write.
        end = self._merging().begin(_nothing)
        _start(_merge, self._lane, source, end)

    def flush(self) -> None:
        """Wait until everything accepted so far is acked."""
        self._lane.flush().result()

    def wait(self) -> str | None:
        """Wait for merged sources, close and wait until all is acked; return the last event id."""
        if self._merges is not None:
            self._merges.ended().result()
        self._lane.close()

        return _wait_settled(self._lane)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _tb: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
            return
        self._lane.close()
        if isinstance(error, Exception):
            self._lane.settled.result()

    def _wait_for_space(self, body: bytes) -> None:
        while True:
            self._lane.space(body).result()
            if self._lane.retry(body):
                return


class StreamHandle(HandleFace):
    """
    See `td_worker.streams.StreamHandle`.

    ```python
    handle = streams.pipe("answer", model.stream(prompt))
    last_event_id = handle.wait()
    ```
    """

    @property
    def stream(self) -> Generator[Any, None, None]:
        """The chunks of a pipe with `mirror=True`, for one reader, once."""
        return _read_mirror(self._mirrored(), self._lane)

    def wait(self) -> str | None:
        """Wait until the source has ended and all is acked; return the last event id."""
        return _wait_settled(self._lane)


@dataclass(frozen=True, slots=True)
class DefinedStream:
    """
    The calls of this module bound to one stream key; made by `define`.

    ```python
    progress = streams.define("progress")
    progress.append({"step": 1})
    ```
    """

    id: str

    def pipe(
        self, source: Iterable[Any], *, target: str | None = None, mirror: bool = False
    ) -> StreamHandle:
        """See `streams.pipe`."""
        return pipe(self.id, source, target=target, mirror=mirror)

    def writer(self, *, target: str | None = None) -> Writer:
        """See `streams.writer`."""
        return writer(self.id, target=target)

    def append(self, value: object, *, target: str | None = None) -> int:
        """See `streams.append`."""
        # The official SDK's `append` of a defined stream is a pipe, and its guardrail says so.
        return _append(*open_to_append(self.id, value, target, method="pipe", blocks=True))

    def read(
        self, run_id: str, *, start_index: int | None = None, timeout: float | timedelta = 60
    ) -> Generator[Any, None, None]:
        """See `streams.read`."""
        return read(run_id, self.id, start_index=start_index, timeout=timeout)


def input(id: str) -> InputStream:  # noqa: A001, A002  the official SDK's word
    """
    See `td_worker.streams.input`.

    ```python
    approvals = streams.input("approvals")
    decision = approvals.once(timeout=30).unwrap()
    ```
    """
    from td_worker.blocking_inputs import InputStream  # which imports this package

    return InputStream(id)


def define(id: str) -> DefinedStream:  # noqa: A002  the official SDK's word
    """
    See `td_worker.streams.define`.

    ```python
    progress = streams.define("progress")
    with progress.writer(target="root") as w:
        w.write({"step": 1})
    ```
    """
    return DefinedStream(check_key(id))


@overload
def pipe(
    source: Iterable[Any], /, *, target: str | None = None, mirror: bool = False
) -> StreamHandle: ...
@overload
def pipe(
    key: str, source: Iterable[Any], /, *, target: str | None = None, mirror: bool = False
) -> StreamHandle: ...


def pipe(
    first: Any, second: Any = MISSING, /, *, target: str | None = None, mirror: bool = False
) -> StreamHandle:
    """
    See `td_worker.streams.pipe`; a plain iterable, streamed in a thread of its own.

    ```python
    with_a_key = streams.pipe("answer", model.stream(prompt))
    without = streams.pipe(model.stream(prompt), mirror=True)
    tokens = list(without.stream)
    ```
    """
    lane, source = open_pipe(first, second, target, check=check_plain_source)

    return start_pipe(lane, source, mirror=mirror)


def writer(key: str = DEFAULT_KEY, *, target: str | None = None) -> Writer:
    """
    See `td_worker.streams.writer`; use it with `with`.

    ```python
    with streams.writer("progress") as w:
        for step in range(3):
            w.write({"step": step})
    ```
    """
    return Writer(open_to_write(key, target, blocks=True))


@overload
def append(value: object, /, *, target: str | None = None) -> int: ...
@overload
def append(key: str, value: object, /, *, target: str | None = None) -> int: ...


def append(first: Any, second: Any = MISSING, /, *, target: str | None = None) -> int:
    """
    See `td_worker.streams.append`; blocks until the record is acked.

    ```python
    seq = streams.append("log", {"text": "one record, acked"})
    ```
    """
    return _append(*open_to_append(first, second, target, blocks=True))


def read(
    run_id: str,
    key: str = DEFAULT_KEY,
    *,
    start_index: int | None = None,
    timeout: float | timedelta = 60,
) -> Generator[Any, None, None]:
    """
    See `td_worker.streams.read`; wrap it into `contextlib.closing` to stop early.

    ```python
    streams.append("log", "something to read")
    for chunk in streams.read(run_id, "log", timeout=1):
        print(chunk)
    ```
    """
    return _each(open_feed(run_id, key, start_index=start_index, timeout=timeout, blocks=True))


def start_pipe(lane: Lane, source: Iterable[Any], *, mirror: bool = False) -> StreamHandle:
    """Feed `lane` from `source` in a thread of its own."""
    copy = Mirror() if mirror else None
    # Marks the lane as fed; the pump itself notices an abort by its next write.
    lane.stop_source = _nothing if copy is None else copy.close
    lane.on_finish = None if copy is None else copy.close
    _start(_pump, lane, source, copy)

    return StreamHandle(lane, copy)


def _append(lane: Lane, value: object) -> int:
    with Writer(lane) as one:
        one.write(value)

    return appended(lane)


def _each(feed: Feed) -> Generator[Any, None, None]:
    try:
        while (parts := feed.next().result()) is not None:
            yield from chunks_of(parts)
    finally:
        feed.close()


def _start(work: Callable[..., None], *arguments: Any) -> None:
    context = contextvars.copy_context()
    threading.Thread(
        target=context.run, args=(work, *arguments), name="td-stream-pipe", daemon=True
    ).start()


def _pump(lane: Lane, source: Iterable[Any], mirror: Mirror | None) -> None:
    """Write all that `source` yields, then end `lane` as the source ended."""
    if lane.closed:
        return  # aborted before the start: the source stays untouched
    write = Writer(lane).write
    if (error := _feed(write if mirror is None else _mirroring(write, mirror), source)) is None:
        lane.close()
    else:
        lane.fail(error)  # does nothing to a lane that was aborted or has failed before
    if mirror is not None:
        mirror.end(lane.error)


def _merge(lane: Lane, source: Iterable[Any], end: Callable[[Exception | None], None]) -> None:
    end(_feed(Writer(lane).write, source))


def _mirroring(write: Write, mirror: Mirror) -> Write:
    def write_and_mirror(chunk: object) -> None:
        write(chunk)
        if (room := mirror.put(chunk)) is not None:
            room.result()

    return write_and_mirror


def _read_mirror(mirror: Mirror, lane: Lane) -> Generator[Any, None, None]:
    is_stored = False
    try:
        while (news := mirror.news()) is not None:
            news.result()
            chunks = mirror.take()
            if chunks and not is_stored:
                lane.flush().result()
                is_stored = True
            yield from chunks
    finally:
        mirror.close()


def _feed(write: Write, source: Iterable[Any]) -> Exception | None:
    """Write all that `source` yields; return what went wrong. Raises nothing: it is a thread's."""
    try:
        try:
            for chunk in source:
                write(chunk)
        finally:
            if (close := getattr(source, "close", None)) is not None:
                close()
    except Exception as error:  # noqa: BLE001  a thread has nobody to raise to; `wait` does
        return error
    except BaseException as error:  # noqa: BLE001  the same
        return StreamClosedError(repr(error))

    return None


def _wait_settled(lane: Lane) -> str | None:
    lane.settled.result()

    return result_of(lane)


def _nothing() -> None:
    """Stand for what a thread cannot be told."""
