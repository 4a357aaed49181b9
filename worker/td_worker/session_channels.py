"""A session as an async task uses it: its channels, and what goes out and comes in by them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from td_worker.control_plane import MAIN_CHANNEL
from td_worker.inputs import Input
from td_worker.session_calls import (
    ChannelSide,
    Control,
    check_channel,
    check_session_id,
    control_headers,
    sort_parts,
)
from td_worker.streams.arguments import check_source
from td_worker.streams.face import appended
from td_worker.streams.reader import Feed
from td_worker.streams.writer import Source, StreamHandle, Writer, start_pipe
from td_worker.tail import Record

__all__ = ["SessionChannel", "SessionHandle", "SessionIn", "SessionOut"]


class SessionOut:
    """
    What a session's client sees: written by runs, read by anybody.

    ```python
    out = sessions.open("order-17").out
    async with out.writer() as w:
        await w.write({"type": "text", "text": "Hello"})
    await out.write_control("turn-complete")
    ```
    """

    def __init__(self, side: ChannelSide) -> None:
        self._side = side

    def pipe(self, source: Source, *, mirror: bool = False) -> StreamHandle:
        """
        Stream all that `source` yields, from now on and by itself; see `streams.pipe`.

        Raises:
            NotInTaskError: No task is running.
            TypeError: The source is text.
        """
        check_source(source, what="session.out.pipe")

        return start_pipe(self._side.open(), source, mirror=mirror)

    def writer(self) -> Writer:
        """
        Return a writer; use it with `async with`.

        Raises:
            NotInTaskError: No task is running.
        """
        return Writer(self._side.open())

    async def append(self, value: object) -> int:
        """
        Write one record and wait until it is acked.

        Returns:
            The record's sequence number.

        Raises:
            StreamError: The record was not taken, or was given up.
        """
        lane = self._side.open()
        async with Writer(lane) as one:
            await one.write(value)

        return appended(lane)

    async def write_control(
        self, subtype: str, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> int:
        """
        Write a control record, behind everything this process has written here before.

        Args:
            subtype: For example `turn-complete`.
            headers: Further headers of the record.

        Returns:
            Its sequence number.

        Raises:
            StreamError: The record was not taken, or was given up.
        """
        written = self._side.write_control(control_headers(subtype, headers))

        return await asyncio.wrap_future(written)

    async def trim_to(self, seq_num: int) -> int:
        """
        Drop all records before this number, in order with what is written.

        Returns:
            The command's own sequence number.

        Raises:
            StreamError: The command was not taken, or was given up.
        """
        return await asyncio.wrap_future(self._side.trim_to(seq_num))

    async def reset(self) -> None:
        """Drop the credential at hand: the next write mints another."""
        await asyncio.wrap_future(self._side.forget())

    def read(
        self,
        *,
        timeout: float | timedelta = 60,
        last_event_id: str | int | None = None,
        on_control: Callable[[Control], object] | None = None,
        on_part: Callable[[Record], object] | None = None,
        peek_settled: bool = False,
    ) -> AsyncGenerator[Any, None]:
        """
        Return what was written, each record once, in order, and follow it.

        Reconnects by itself. Wrap it into `contextlib.aclosing` to close its connection as soon as
        you stop early.

        Args:
            timeout: Ends after so much silence: 1 to 600 seconds, or a timedelta.
            last_event_id: Begin behind this sequence number; None for the beginning.
            on_control: Called with each control record, which the iterator leaves out.
            on_part: Called with each record before its data is returned.
            peek_settled: End at once when the last turn is complete.

        Raises:
            NotInTaskError: No task is running.
            ValueError: An argument is out of its bounds.
            SessionReadError: The control plane refuses.
        """
        feed = self._side.follow(
            last_event_id=last_event_id, timeout=timeout, peek_settled=peek_settled
        )

        return _each(feed, on_control, on_part)

    async def records(self, *, after: str | int | None = None) -> list[Record | Control]:
        """
        Return what is there by now, control records included, without following it.

        Args:
            after: Begin behind this sequence number; None for the beginning.

        Raises:
            SessionReadError: The control plane refuses.
        """
        return await asyncio.wrap_future(self._side.records(after))


class SessionIn(Input):
    """
    What a session's client sends: read by runs, written by anybody.

    ```python
    session = sessions.open("order-17")
    message = (await session.in_.wait(timeout=3600)).unwrap()
    ```
    """

    def __init__(self, side: ChannelSide) -> None:
        super().__init__(side)
        self._side = side

    async def send(self, value: Any) -> int | None:
        """
        Append one record, once: tries that are repeated are stored once.

        Args:
            value: Text is sent as it is, and read as the JSON it may be; anything else is its JSON.

        Returns:
            Its sequence number; None when an earlier try had stored it.

        Raises:
            SessionClosedError: The session is over.
            ControlPlaneError: It was not taken.
        """
        return await asyncio.wrap_future(self._side.send(value))

    async def records(self, *, after: str | int | None = None) -> list[Record | Control]:
        """Return what is there by now; see `SessionOut.records`."""
        return await asyncio.wrap_future(self._side.records(after))


class SessionChannel:
    """
    A named channel of a session, beside its own; made by `SessionHandle.channel`.

    ```python
    logs = sessions.open("order-17").channel("logs")
    await logs.out.append("the order was found")
    ```
    """

    def __init__(self, session_id: str, name: str) -> None:
        self.name = name
        self.out = SessionOut(ChannelSide(session_id, name, "out"))
        self.in_ = SessionIn(ChannelSide(session_id, name, "in"))


class SessionHandle:
    """
    A session to write to and to read from; made by `sessions.open`, without a request.

    ```python
    session = sessions.open("order-17")
    await session.out.append({"text": f"this is {session.id}"})
    ```

    Attributes:
        id: As it was opened by.
        out: What the session's client sees.
        in_: What the session's client sends.
    """

    def __init__(self, session_id: str) -> None:
        self.id = check_session_id(session_id)
        self.out = SessionOut(ChannelSide(session_id, MAIN_CHANNEL, "out"))
        self.in_ = SessionIn(ChannelSide(session_id, MAIN_CHANNEL, "in"))

    def __repr__(self) -> str:
        return f"SessionHandle({self.id!r})"

    def channel(self, name: str) -> SessionChannel:
        """
        Return a channel beside the session's own, for example for logs; it needs no creating.

        Args:
            name: 1 to 128 letters, digits, '.', '_' or '-'; not "main".

        Raises:
            SessionIdError: The name cannot name a channel.
        """
        return SessionChannel(self.id, check_channel(name))


async def _each(
    feed: Feed,
    on_control: Callable[[Control], object] | None,
    on_part: Callable[[Record], object] | None,
) -> AsyncGenerator[Any, None]:
    try:
        while (parts := await asyncio.wrap_future(feed.next())) is not None:
            for data in sort_parts(parts, on_control=on_control, on_part=on_part):
                yield data
    finally:
        feed.close()
