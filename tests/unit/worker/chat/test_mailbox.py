"""What several callers that wait for a chat's next message get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future

import pytest

from td_worker.chat.mailbox import LastTurn, Mailbox
from td_worker.chat.payload import ChatPayload
from td_worker.errors import SessionReadError
from td_worker.tail import Record


class _Incoming:
    """The `in` of a chat to which a test sends."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Record] = asyncio.Queue()
        self.given_back: list[Record] = []

    async def give_back(self, records: list[Record]) -> None:
        self.given_back += records

    async def last_turn(self) -> LastTurn | None:
        return None

    async def records(self, after: int | None) -> AsyncIterator[Record]:
        assert after is None
        while True:
            yield await self.sent.get()

    async def access_token(self, ttl: float) -> str | None:
        assert ttl > 0
        return None

    def send(self, seq: int) -> None:
        payload = {"trigger": "submit-message", "messageId": str(seq)}
        data = {"kind": "message", "payload": payload}
        self.sent.put_nowait(Record(seq_num=seq, data=data, timestamp=seq))


async def test_who_gets_no_message_waits_on():
    """Of two that wait, the one that the first message does not go to waits for the second."""
    incoming = _Incoming()
    mailbox = Mailbox(incoming, chat_id="c")
    waiting = {asyncio.create_task(mailbox.once(None)) for _ in range(2)}
    incoming.send(0)
    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    incoming.send(1)
    done |= (await asyncio.wait(waiting))[0]
    found = [task.result() for task in done]
    await mailbox.close()

    assert {pending.seq for pending in found if pending is not None} == {0, 1}


async def test_a_wait_of_no_time_takes_what_is_there():
    """A message that has arrived is taken however short the time-out; without one there is none."""
    incoming = _Incoming()
    mailbox = Mailbox(incoming, chat_id="c")
    assert await mailbox.once(0) is None
    arrived = asyncio.Event()
    await mailbox.observe(lambda _: _refuse(arrived))
    incoming.send(0)
    await arrived.wait()
    while not mailbox.waits():
        await asyncio.sleep(0)
    found = await mailbox.once(0)
    await mailbox.close()

    assert found is not None
    assert found.seq == 0


class _Failing(_Incoming):
    """An `in` that cannot be read on the first three times; notes behind what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int | None] = []

    async def records(self, after: int | None) -> AsyncIterator[Record]:
        self.asked.append(after)
        if len(self.asked) == 1:
            yield await self.sent.get()
        if len(self.asked) <= 3:
            raise SessionReadError("session/c/main/in", status=None, reason="gone")
        while True:
            yield await self.sent.get()


async def test_a_failure_is_of_those_who_wait_and_the_next_call_tries_again():
    """Whoever waits when `in` fails hears of it; a later call reads on behind what came before."""
    incoming = _Failing()
    mailbox = Mailbox(incoming, chat_id="c")
    incoming.send(0)
    first = await mailbox.once(None)
    for _ in range(2):
        with pytest.raises(SessionReadError):
            await mailbox.once(None)
    incoming.send(1)
    second = await mailbox.once(None)
    await mailbox.close()

    assert [found.seq for found in (first, second) if found is not None] == [0, 1]
    assert incoming.asked == [None, 0, 0, 0]


async def test_a_chat_that_was_left_is_not_read_again():
    """After its end a mailbox listens no more, whatever had failed before, and nobody waits."""
    incoming = _Failing()
    mailbox = Mailbox(incoming, chat_id="c")
    incoming.send(0)
    assert await mailbox.once(None) is not None
    with pytest.raises(SessionReadError):
        await mailbox.once(None)
    await mailbox.close()
    asked = len(incoming.asked)
    with pytest.raises(asyncio.CancelledError):
        await mailbox.once(None)

    assert len(incoming.asked) == asked


async def test_a_chat_that_was_left_is_not_read_at_all():
    """Who asks for the first time behind its end is told so; no listening is left behind."""
    incoming = _Failing()
    mailbox = Mailbox(incoming, chat_id="c")
    await mailbox.close()
    with pytest.raises(asyncio.CancelledError):
        await mailbox.once(None)

    assert incoming.asked == []


def _refuse(arrived: asyncio.Event) -> Future[bool]:
    arrived.set()
    answer: Future[bool] = Future()
    answer.set_result(False)

    return answer


async def test_a_new_observer_sees_what_comes_while_he_looks():
    """A message that comes while an observer is shown those that wait is shown to him as well."""
    incoming = _Incoming()
    mailbox = Mailbox(incoming, chat_id="c")
    assert await mailbox.once(0) is None
    incoming.send(0)
    while not mailbox.waits():
        await asyncio.sleep(0)
    shown: asyncio.Queue[tuple[str | None, Future[bool]]] = asyncio.Queue()

    def note(payload: ChatPayload) -> Future[bool]:
        answer: Future[bool] = Future()
        shown.put_nowait((payload.message_id, answer))
        return answer

    observing = asyncio.create_task(mailbox.observe(note))
    numbers: list[str | None] = []
    async with asyncio.timeout(60):
        for seq in range(1, 3):
            number, answer = await shown.get()
            numbers.append(number)
            incoming.send(seq)
            for _ in range(10):  # it is read before the observer has answered
                await asyncio.sleep(0)
            answer.set_result(False)
        await observing
        numbers.append((await shown.get())[0])
    await mailbox.close()

    assert numbers == ["0", "1", "2"]


async def test_what_nobody_took_is_given_back():
    """At its end a mailbox gives back what waits, and what is being offered."""
    incoming = _Incoming()
    mailbox = Mailbox(incoming, chat_id="c")
    offered = asyncio.Event()

    def refuse_the_first(payload: ChatPayload) -> Future[bool]:
        return _refuse(asyncio.Event()) if payload.message_id == "1" else _hesitate(offered)

    incoming.send(0)
    assert await mailbox.once(None) is not None
    await mailbox.observe(refuse_the_first)
    incoming.send(1)
    incoming.send(2)
    await offered.wait()
    await mailbox.close()

    assert [(record.seq_num, record.timestamp) for record in incoming.given_back] == [
        (1, 1),
        (2, 2),
    ]
    assert not mailbox.waits()


def _hesitate(offered: asyncio.Event) -> Future[bool]:
    offered.set()

    return Future()
