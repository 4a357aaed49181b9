"""Signals of a client's wish to stop, as a loop of one's own gets them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from td_worker.chat.mailbox import LastTurn, Mailbox
from td_worker.chat.stop import StopSignal
from td_worker.tail import Record


class _Incoming:
    """The `in` of a chat whose clients ask to stop."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Record] = asyncio.Queue()
        self._count = 0

    async def last_turn(self) -> LastTurn | None:
        return None

    async def records(self, after: int | None) -> AsyncIterator[Record]:
        assert after is None
        while True:
            yield await self.sent.get()

    async def give_back(self, records: list[Record]) -> None:
        assert records == []

    async def access_token(self, ttl: float) -> str | None:
        raise AssertionError(f"nobody asks for a token of {ttl} s")

    def stop(self, message: str) -> None:
        data = {"kind": "stop", "message": message}
        self.sent.put_nowait(Record(seq_num=self._count, data=data, timestamp=0))
        self._count += 1


@contextlib.asynccontextmanager
async def _watched(*signals: StopSignal) -> AsyncIterator[tuple[_Incoming, Mailbox]]:
    incoming = _Incoming()
    mailbox = Mailbox(incoming, chat_id="c")
    for signal in signals:
        await mailbox.watch_stops(signal)
    yield incoming, mailbox
    await mailbox.close()


async def test_a_signal_hears_each_stop_after_its_reset():
    """It is set with what the client said, listens anew after `reset`, and is set again."""
    signal = StopSignal()
    async with _watched(signal) as (incoming, _):
        incoming.stop("enough")
        await asyncio.wrap_future(signal.future())
        assert signal.message == "enough"

        signal.reset()
        assert not signal
        incoming.stop("again")
        await asyncio.wrap_future(signal.future())
        assert signal.message == "again"


async def test_a_signal_that_is_cleaned_up_hears_nothing_more():
    """No stop sets it, none of its callbacks is called, and the chat keeps nothing of it."""
    unwatched: list[str] = []
    called: list[str] = []
    signal, other = StopSignal(unwatch=lambda: unwatched.append("once")), StopSignal()
    async with _watched(signal, other) as (incoming, mailbox):
        signal.on_stop(lambda: called.append("stopped"))
        signal.cleanup()
        signal.cleanup()
        incoming.stop("enough")
        await asyncio.wrap_future(other.future())
        assert not signal

        await mailbox.ignore_stops(signal)
        await mailbox.ignore_stops(signal)
        assert mailbox._signals == [other]

    assert (unwatched, called) == (["once"], [])


async def test_a_cleanup_keeps_what_was_heard():
    """A loop that ends by a stop still finds out why."""
    signal = StopSignal(unwatch=lambda: None)
    signal.set("enough")
    signal.cleanup()

    assert (signal.is_set(), signal.message) == (True, "enough")


def test_the_signal_of_a_turn_is_not_cleaned_up():
    """Its turn must hear of a stop, whatever the handler does with it."""
    signal = StopSignal()
    signal.cleanup()
    signal.set()

    assert signal.is_set()


async def test_a_callback_that_raises_holds_up_nobody():
    """It is logged; the callbacks after it are called, and the chat is listened to further."""
    called: list[str] = []

    def fail() -> None:
        raise ValueError("no")

    signal = StopSignal()
    async with _watched(signal) as (incoming, _):
        signal.on_stop(fail)
        signal.on_stop(lambda: called.append("stopped"))
        with structlog.testing.capture_logs() as logs:
            incoming.stop("enough")
            await asyncio.wrap_future(signal.future())
            signal.reset()
            incoming.stop("again")
            await asyncio.wrap_future(signal.future())

    assert called == ["stopped"]
    assert [(line["event"], line["source"]) for line in logs] == [("input.handler_failed", "stop")]
