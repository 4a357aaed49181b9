"""A session as a plain `def` task uses it; see `td_worker.session_channels`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import timedelta
from typing import Any

from td_worker.blocking_inputs import Input
from td_worker.context import refuse_on_event_loop
from td_worker.control_plane import MAIN_CHANNEL
from td_worker.session_calls import (
    ChannelSide,
    Control,
    check_channel,
    check_session_id,
    control_headers,
    sort_parts,
)
from td_worker.streams.arguments import check_plain_source
from td_worker.streams.blocking import StreamHandle, Writer, start_pipe
from td_worker.streams.face import appended
from td_worker.streams.reader import Feed
from td_worker.tail import Record

__all__ = ["SessionChannel", "SessionHandle", "SessionIn", "SessionOut"]


class SessionOut:
    """
    See `td_worker.sessions.SessionOut`.

    ```python
    out = sessions.open("order-17").out
    with out.writer() as w:
        w.write({"type": "text", "text": "Hello"})
    out.write_control("turn-complete")
    ```
    """

    def __init__(self, side: ChannelSide) -> None:
        self._side = side

    def pipe(self, source: Iterable[Any], *, mirror: bool = False) -> StreamHandle:
        """Stream all that `source` yields, in a thread of its own; see the async twin."""
        check_plain_source(source, what="session.out.pipe")

        return start_pipe(self._side.open(), source, mirror=mirror)

    def writer(self) -> Writer:
        """Return a writer; use it with `with`."""
        refuse_on_event_loop("session.out.writer")

        return Writer(self._side.open())

    def append(self, value: object) -> int:
        """Write one record, wait until it is acked and return its number; see the async twin."""
        refuse_on_event_loop("session.out.append")
        lane = self._side.open()
        with Writer(lane) as one:
            one.write(value)

        return appended(lane)

    def write_control(
        self, subtype: str, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> int:
        """Write a control record and return its number; see the async twin."""
        refuse_on_event_loop("session.out.write_control")

        return self._side.write_control(control_headers(subtype, headers)).result()

    def trim_to(self, seq_num: int) -> int:
        """Drop all records before this number; see the async twin."""
        refuse_on_event_loop("session.out.trim_to")

        return self._side.trim_to(seq_num).result()

    def reset(self) -> None:
        """Drop the credential at hand: the next write mints another."""
        refuse_on_event_loop("session.out.reset")
        self._side.forget().result()

    def read(
        self,
        *,
        timeout: float | timedelta = 60,
        last_event_id: str | int | None = None,
        on_control: Callable[[Control], object] | None = None,
        on_part: Callable[[Record], object] | None = None,
        peek_settled: bool = False,
    ) -> Generator[Any, None, None]:
        """Return what was written; wrap it into `contextlib.closing` to stop early."""
        refuse_on_event_loop("session.out.read")
        feed = self._side.follow(
            last_event_id=last_event_id, timeout=timeout, peek_settled=peek_settled
        )

        return _each(feed, on_control, on_part)

    def records(self, *, after: str | int | None = None) -> list[Record | Control]:
        """Return what is there by now, without following it."""
        refuse_on_event_loop("session.out.records")

        return self._side.records(after).result()


class SessionIn(Input):
    """
    See `td_worker.sessions.SessionIn`.

    ```python
    in_ = sessions.open("order-17").in_
    in_.send({"text": "hi"})
    message = in_.wait(timeout=3600).unwrap()
    ```
    """

    def __init__(self, side: ChannelSide) -> None:
        super().__init__(side)
        self._side = side

    def send(self, value: Any) -> int | None:
        """Append one record, once, and return its number; see the async twin."""
        refuse_on_event_loop("session.in_.send")

        return self._side.send(value).result()

    def records(self, *, after: str | int | None = None) -> list[Record | Control]:
        """Return what is there by now, without following it."""
        refuse_on_event_loop("session.in_.records")

        return self._side.records(after).result()


class SessionChannel:
    """
    A named channel of a session, beside its own; made by `SessionHandle.channel`.

    ```python
    logs = sessions.open("order-17").channel("logs")
    logs.out.append({"line": "connected"})
    ```
    """

    def __init__(self, session_id: str, name: str) -> None:
        self.name = name
        self.out = SessionOut(ChannelSide(session_id, name, "out"))
        self.in_ = SessionIn(ChannelSide(session_id, name, "in"))


class SessionHandle:
    """
    See `td_worker.sessions.SessionHandle`.

    ```python
    session = sessions.open("order-17")
    question = session.in_.once(timeout=30).output
    session.out.append({"answer": question})
    ```
    """

    def __init__(self, session_id: str) -> None:
        self.id = check_session_id(session_id)
        self.out = SessionOut(ChannelSide(session_id, MAIN_CHANNEL, "out"))
        self.in_ = SessionIn(ChannelSide(session_id, MAIN_CHANNEL, "in"))

    def __repr__(self) -> str:
        return f"SessionHandle({self.id!r})"

    def channel(self, name: str) -> SessionChannel:
        """Return a channel beside the session's own; see the async twin."""
        return SessionChannel(self.id, check_channel(name))


def _each(
    feed: Feed,
    on_control: Callable[[Control], object] | None,
    on_part: Callable[[Record], object] | None,
) -> Generator[Any, None, None]:
    try:
        while (parts := feed.next().result()) is not None:
            yield from sort_parts(parts, on_control=on_control, on_part=on_part)
    finally:
        feed.close()
