"""Subscriptions: a stream as server-sent events, from the client's cursor onwards."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Final

from td_runtime.gateway.exchange import Exchange, text_reply
from td_runtime.gateway.platform.answers import RefusalError
from td_runtime.gateway.platform.read_session import Place, ReadSession
from td_runtime.gateway.platform.reading import ReadLimit
from td_runtime.gateway.platform.streams import Streams

WAIT_S_DEFAULT: Final = 60
WAIT_S_MAX: Final = 600


class Subscriptions:
    """Sends streams to whoever may read them."""

    def __init__(self, streams: Streams, *, stopping: asyncio.Event) -> None:
        self._streams = streams
        self._stopping = stopping

    async def send(
        self,
        exchange: Exchange,
        stream: str,
        wait_s: int,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Answer with the stream until nothing came for ``wait_s`` seconds."""
        # A reader may come before the first writer; the stream then begins with it.
        tail = await self._streams.tail_or_create(stream)
        session = ReadSession(
            self._streams,
            exchange,
            stream,
            Place(_start(exchange, tail.seq_num), ReadLimit(), wait_s),
            format_="raw",
            stopping=self._stopping,
        )
        await session.run((("X-Stream-Version", "v2"), *headers))


def parse_cursor(text: str) -> int:
    """The sequence number to go on from after a ``Last-Event-ID``.

    The digits before any ``-`` name the last record seen; whatever does not parse starts over,
    as upstream does.
    """
    digits = text.split("-", 1)[0]
    return int(digits) + 1 if re.fullmatch(r"[0-9]{1,18}", digits) else 0


def parse_wait(exchange: Exchange) -> int:
    """Seconds to wait at the tail.

    Raises:
        RefusalError: 400, in upstream's words.
    """
    text = exchange.headers.get("timeout-seconds")
    if text is None:
        return WAIT_S_DEFAULT
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
        raise RefusalError(text_reply(400, "Invalid timeout seconds"))
    seconds = int(text)
    if seconds < 1:
        raise RefusalError(text_reply(400, "Timeout seconds must be greater than 0"))
    if seconds > WAIT_S_MAX:
        raise RefusalError(text_reply(400, "Timeout seconds must be less than 600"))

    return seconds


def _start(exchange: Exchange, tail: int) -> int:
    cursor = exchange.headers.get("last-event-id")
    if cursor is None and exchange.headers.get("x-trigger-stream-start") == "latest":
        return tail

    return min(parse_cursor(cursor or ""), tail)
