"""What a run receives, from sessions and input streams, against a control plane in memory."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from td_worker import sessions, streams
from td_worker.context import Execution, Unsupervised
from td_worker.errors import (
    InputTimeoutError,
    SessionClosedError,
    SessionReadError,
    WaitpointTimeoutError,
)
from td_worker.inputs import Input
from td_worker.testing import FakePlatform


class Supervisor(Unsupervised):
    """A messenger that notes when the run waits."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.suspensions = threading.Semaphore(0)

    def suspended(self, run_id: str, attempt: int) -> None:
        """Note it."""
        self.said.append(f"suspended {run_id} {attempt}")
        self.suspensions.release()

    def resumed(self, run_id: str, attempt: int) -> None:
        """Note it."""
        self.said.append(f"resumed {run_id} {attempt}")

    async def until_suspended(self) -> None:
        """Return when a wait has freed the run's place."""
        await asyncio.to_thread(self.suspensions.acquire)


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture(autouse=True)
def execution(platform: FakePlatform, supervisor: Supervisor) -> Iterator[Execution]:
    """The test is the code of `run_1`."""
    with platform.execution(run_id="run_1", messenger=supervisor) as execution:
        yield execution


class Arrivals:
    """A handler that notes what comes."""

    def __init__(self, *taken: Any) -> None:
        self.seen: list[Any] = []
        self._taken = taken
        self._grown = asyncio.Condition()

    def __call__(self, data: Any) -> bool:
        """Note it; say whether it is one of those to take."""
        self.seen.append(data)
        self._told = asyncio.get_running_loop().create_task(self._tell())
        return data in self._taken

    async def _tell(self) -> None:
        async with self._grown:
            self._grown.notify_all()

    async def until(self, count: int) -> list[Any]:
        """Return what came, as soon as there are that many."""
        async with self._grown:
            await self._grown.wait_for(lambda: len(self.seen) >= count)
        return self.seen


async def test_what_is_there_is_taken_in_order(platform: FakePlatform, supervisor: Supervisor):
    """Records that were read before are taken one by one, without freeing the run's place."""
    for number in range(4):
        platform.sessions.send("s", {"n": number})
    in_ = sessions.open("s").in_
    in_.on(handler := Arrivals())
    await handler.until(4)  # those before the last one are kept by now

    found = [await in_.wait(), await in_.once(), await in_.wait_with_idle_timeout(60)]

    assert [result.unwrap()["n"] for result in found] == [0, 1, 2]
    assert [result.seq_num for result in found] == [0, 1, 2]
    assert in_.last_dispatched_seq_num == 2
    assert supervisor.said == []


@pytest.mark.conformance("PD5")
async def test_a_wait_frees_the_place_and_takes_it_again(
    platform: FakePlatform, supervisor: Supervisor
):
    """A wait with nothing there suspends, is answered by what comes, and its cursors are exact."""
    in_ = sessions.open("s").in_
    in_.resume_after(4)
    waiting = asyncio.create_task(in_.wait(timeout=60))
    await supervisor.until_suspended()
    assert supervisor.said == ["suspended run_1 1"]
    for number in range(7):
        platform.sessions.send("s", number)
    result = await waiting

    assert (result.ok, result.output, result.seq_num) == (True, 5, 5)
    assert supervisor.said == ["suspended run_1 1", "resumed run_1 1"]
    assert in_.last_dispatched_seq_num == 5
    assert (await in_.wait()).unwrap() == 6


async def test_what_handlers_leave_is_there_for_a_wait(platform: FakePlatform):
    """Gap 7: what handlers did not take before a wait is what the wait returns, nothing is lost."""
    in_ = sessions.open("s").in_
    subscription = in_.on(handler := Arrivals("stop"))
    for data in ("a", "stop", "b"):
        platform.sessions.send("s", data)
    assert await handler.until(3) == ["a", "stop", "b"]
    subscription.off()

    assert [(await in_.wait()).unwrap() for _ in range(2)] == ["a", "b"]
    assert in_.peek() is None


async def test_peek_leaves_what_it_shows(platform: FakePlatform):
    """`peek` returns the first record and takes nothing."""
    in_ = sessions.open("s").in_
    in_.on(handler := Arrivals())
    platform.sessions.send("s", "a")
    await handler.until(1)
    platform.sessions.send("s", "b")
    await handler.until(2)

    assert (in_.peek(), in_.peek()) == ("a", "a")
    assert in_.last_dispatched_seq_num is None
    assert (await in_.once(timeout=0)).unwrap() == "a"


async def test_a_coroutine_function_works_through_what_comes(platform: FakePlatform):
    """A handler that is a coroutine function gets every record, one after the other, and all."""
    under_way = 0
    done: asyncio.Queue[Any] = asyncio.Queue()

    async def work(data: Any) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await asyncio.sleep(0)
        under_way -= 1
        await done.put(data)
        if data == "bad":
            raise ValueError("no good")

    in_ = sessions.open("s").in_
    in_.on(work)
    for data in ("a", "bad", "c"):
        platform.sessions.send("s", data)

    assert [await done.get() for _ in range(3)] == ["a", "bad", "c"]
    assert in_.peek() is None


async def test_a_handler_that_raises_takes_nothing(platform: FakePlatform):
    """The record of a handler that raised is there for others, and the next ones come."""

    def bad(data: Any) -> bool:
        raise ValueError(data)

    in_ = sessions.open("s").in_
    in_.on(bad)
    platform.sessions.send("s", "a")

    assert (await in_.once()).unwrap() == "a"


async def test_once_gives_up_in_time(supervisor: Supervisor):
    """`once` with a time-out says so, and `unwrap` raises; the run kept its place."""
    result = await sessions.open("s").in_.once(timeout=0.05)

    assert not result.ok
    assert result.output is None
    with pytest.raises(InputTimeoutError, match=r"session/s/main/in within 0\.05 s"):
        result.unwrap()
    assert supervisor.said == []


async def test_wait_gives_up_in_time(supervisor: Supervisor):
    """`wait` with a time-out says so, after the run had freed its place."""
    result = await sessions.open("s").in_.wait(timeout=0.05)

    with pytest.raises(WaitpointTimeoutError):
        result.unwrap()
    assert supervisor.said == ["suspended run_1 1", "resumed run_1 1"]


async def test_an_idle_timeout_comes_before_the_wait(
    platform: FakePlatform, supervisor: Supervisor
):
    """After the idle time `on_suspend` is called, then the place is freed; then all in reverse."""

    async def note_resume() -> None:
        supervisor.said.append("on_resume")

    waiting = asyncio.create_task(
        sessions.open("s").in_.wait_with_idle_timeout(
            0.01, on_suspend=lambda: supervisor.said.append("on_suspend"), on_resume=note_resume
        )
    )
    await supervisor.until_suspended()
    platform.sessions.send("s", "a")

    assert (await waiting).unwrap() == "a"
    assert supervisor.said == ["on_suspend", "suspended run_1 1", "resumed run_1 1", "on_resume"]


async def test_skip_suspend_gives_up_after_the_idle_time(supervisor: Supervisor):
    """With `skip_suspend` the run never frees its place: the idle time is all."""
    result = await sessions.open("s").in_.wait_with_idle_timeout(0.01, skip_suspend=True)

    assert str(result.error) == "Idle timeout elapsed and skip_suspend is set"
    assert supervisor.said == []


async def test_a_cancelled_wait_loses_nothing(platform: FakePlatform, supervisor: Supervisor):
    """A wait that is cancelled takes the place again, and the next wait gets the record."""
    in_ = sessions.open("s").in_
    waiting = asyncio.create_task(in_.wait())
    await supervisor.until_suspended()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    platform.sessions.send("s", "a")

    assert (await in_.wait()).unwrap() == "a"
    assert supervisor.said[:2] == ["suspended run_1 1", "resumed run_1 1"]


async def test_a_tail_survives_its_connection(platform: FakePlatform):
    """A tail whose connection fails takes it up again: each record comes once, in order."""
    platform.spoil("read", times=2, status=503)
    in_ = sessions.open("s").in_
    platform.sessions.send("s", "a")
    assert (await in_.once()).unwrap() == "a"
    platform.sessions.send("s", "b")

    assert (await in_.once()).unwrap() == "b"


async def test_a_refused_tail_fails_those_who_wait(platform: FakePlatform):
    """Who waits for a channel that cannot be read is told why, and may try again."""
    platform.spoil("read", status=403, text="no")
    in_ = sessions.open("s").in_
    with pytest.raises(SessionReadError) as caught:
        await in_.wait()
    assert caught.value.status == 403

    platform.sessions.send("s", "a")
    assert (await in_.wait()).unwrap() == "a"


@pytest.mark.conformance("E11")
async def test_sends_are_stored_once(platform: FakePlatform):
    """A send whose answer got lost is tried again under the same part id, and stored once."""
    in_ = sessions.open("s").in_
    platform.spoil("send", status=500)

    assert await in_.send({"n": 0}) is None
    assert await in_.send("text") == 1
    first, again, last = platform.sessions.part_ids
    assert first == again != last
    assert len(str(first)) == 21
    assert platform.sessions.chunks("s", "in") == ['{"n":0}', "text"]
    assert [(await in_.once()).unwrap() for _ in range(2)] == [{"n": 0}, "text"]


async def test_a_closed_session_takes_nothing(platform: FakePlatform):
    """A send to a session that is over says so at once."""
    platform.sessions.add("over", closedAt="2026-01-01T00:00:00Z")

    with pytest.raises(SessionClosedError, match="start another one"):
        await sessions.open("over").in_.send("a")


async def test_a_named_channel_has_its_own_input(platform: FakePlatform):
    """What is sent to a channel is read by that channel alone."""
    session = sessions.open("s")
    platform.sessions.send("s", "main")
    platform.sessions.send("s", "logs", channel="logs")

    assert (await session.channel("logs").in_.once()).unwrap() == "logs"
    assert (await session.in_.once()).unwrap() == "main"


async def test_two_handles_share_what_comes(platform: FakePlatform):
    """Two handles of one session read by one tail: a record goes to one of them."""
    platform.sessions.send("s", "a")
    platform.sessions.send("s", "b")

    first, second = sessions.open("s").in_, sessions.open("s").in_
    assert [(await first.once()).unwrap(), (await second.once()).unwrap()] == ["a", "b"]


async def test_input_streams_are_the_runs(platform: FakePlatform):
    """An input stream brings what was sent to this run, and takes what is sent to another."""
    approvals = streams.input("approvals")
    platform.sessions.send_input("run_1", "approvals", {"ok": True})
    await approvals.send("run_1", {"ok": False})
    await approvals.send("run_2", "not mine")

    found: list[Input] = [approvals, approvals]
    assert [(await each.wait()).unwrap() for each in found] == [{"ok": True}, {"ok": False}]


async def test_an_input_streams_handler_takes_what_it_sees(platform: FakePlatform):
    """A handler of an input stream takes every record, those that waited included."""
    approvals = streams.input("approvals")
    platform.sessions.send_input("run_1", "approvals", "a")
    approvals.on(handler := Arrivals())
    platform.sessions.send_input("run_1", "approvals", "b")

    assert await handler.until(2) == ["a", "b"]
    assert approvals.peek() is None
