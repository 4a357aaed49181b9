"""The plain `def` twins of sessions and input, against a control plane in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from td_worker import sessions as async_sessions
from td_worker.context import Execution, Unsupervised
from td_worker.errors import (
    BlockingCallError,
    ControlPlaneRefusedError,
    InputTimeoutError,
    SessionClosedError,
    WaitpointTimeoutError,
)
from td_worker.sync import sessions, streams
from td_worker.testing import FakePlatform


class Supervisor(Unsupervised):
    """A messenger that says when the run waits."""

    def __init__(self) -> None:
        self.suspensions = threading.Semaphore(0)
        self.resumed_count = 0

    def suspended(self, run_id: str, attempt: int) -> None:
        """Note it."""
        self.suspensions.release()

    def resumed(self, run_id: str, attempt: int) -> None:
        """Note it."""
        self.resumed_count += 1


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture(autouse=True)
def execution(platform: FakePlatform, supervisor: Supervisor) -> Iterator[Execution]:
    """The test is the code of `run_1`."""
    with platform.execution(run_id="run_1", messenger=supervisor) as execution:
        yield execution


def test_out_is_written_and_read(platform: FakePlatform):
    """All ways of writing end up in one stream, by one PUT, and are read as they were written."""
    session = sessions.open("s")
    with session.out.writer() as writer:
        writer.write({"n": 0})
    session.out.pipe([{"n": 1}]).wait()
    assert session.out.append({"n": 2}) == 2
    assert session.out.write_control("turn-complete", [("session-in-event-id", "7")]) == 3
    assert session.out.trim_to(1) == 4
    session.out.reset()
    session.channel("logs").out.append("line")
    controls: list[sessions.Control] = []

    with closing(session.out.read(on_control=controls.append, peek_settled=False)) as reading:
        found = [next(reading) for _ in range(3)]
        session.out.append("end")
        assert next(reading) == "end"

    assert found == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert controls[0].headers["session-in-event-id"] == "7"
    assert len(session.out.records(after="2")) == 2
    assert platform.puts == {("s", "out"): 2, ("s", "channels/logs/out"): 1}


def test_in_is_read(platform: FakePlatform, supervisor: Supervisor):
    """`send`, `once`, `wait`, `peek` and the idle time-out mean what they do in async tasks."""
    in_ = sessions.open("s").in_
    assert in_.send({"n": 0}) == 0
    for number in (1, 2):
        platform.sessions.send("s", {"n": number})

    assert [in_.once().unwrap()["n"], in_.wait().unwrap()["n"]] == [0, 1]
    assert in_.wait_with_idle_timeout(60).unwrap() == {"n": 2}
    assert in_.last_dispatched_seq_num == 2
    with pytest.raises(InputTimeoutError):
        in_.once(timeout=0.01).unwrap()
    with pytest.raises(WaitpointTimeoutError):
        in_.wait(timeout=0.01).unwrap()
    assert not in_.wait_with_idle_timeout(0, skip_suspend=True).ok
    assert supervisor.resumed_count >= 1
    assert len(in_.records()) == 3


def test_a_wait_frees_the_place(platform: FakePlatform, supervisor: Supervisor):
    """A thread that waits has freed the run's place until something comes."""

    def answer() -> None:
        supervisor.suspensions.acquire()
        platform.sessions.send("s", "a")

    with ThreadPoolExecutor(1) as threads:
        threads.submit(answer)
        result = sessions.open("s").in_.wait_with_idle_timeout(0)

    assert result.unwrap() == "a"
    assert supervisor.resumed_count == 1


def test_a_wait_ends_with_its_attempt(execution: Execution, supervisor: Supervisor):
    """A plain task that waits for input is told when its attempt is to end."""

    def cancel() -> None:
        supervisor.suspensions.acquire()
        execution.tails.interrupt()

    in_ = sessions.open("s").in_
    with ThreadPoolExecutor(1) as threads:
        threads.submit(cancel)
        with pytest.raises(asyncio.CancelledError):
            in_.wait()
    with pytest.raises(asyncio.CancelledError):
        in_.once()


def test_handlers_run_in_their_thread(platform: FakePlatform):
    """A handler is called in a thread of its own; what it does not take is there for `wait`."""
    seen: list[Any] = []
    calls = threading.Semaphore(0)

    def take_stops(data: Any) -> bool:
        seen.append((threading.current_thread().name, data))
        calls.release()
        return bool(data == "stop")

    in_ = sessions.open("s").in_
    subscription = in_.on(take_stops)
    for data in ("stop", "a"):
        platform.sessions.send("s", data)
    for _ in range(2):
        calls.acquire()

    assert in_.once().unwrap() == "a"
    assert [data for _, data in seen] == ["stop", "a"]
    assert all(name.startswith("td-input") for name, _ in seen)
    subscription.off()


def test_input_streams(platform: FakePlatform):
    """An input stream of a plain task is read and sent to."""
    approvals = streams.input("approvals")
    approvals.send("run_1", {"ok": True})

    assert approvals.wait().unwrap() == {"ok": True}


def test_sessions_are_kept():
    """Started, found again, changed, listed over pages, closed, and over for good."""
    started = sessions.start(
        "support",
        "answer",
        external_id="order-17",
        config=sessions.TriggerConfig(base_payload={"a": 1}, max_attempts=2),
        tags=["x"],
        metadata={"who": "me"},
        expires_at=datetime(2030, 1, 1, tzinfo=UTC),
    )
    assert (started.external_id, started.is_cached, started.run_id) == ("order-17", False, "run_1")
    assert started.public_access_token == "a.b.c"
    assert "a.b.c" not in repr(started)
    assert started.trigger_config == sessions.TriggerConfig(base_payload={"a": 1}, max_attempts=2)
    assert sessions.start("support", "answer", external_id="order-17").is_cached
    assert sessions.retrieve("order-17") == sessions.retrieve(started.id)
    assert sessions.retrieve(started.id).created_at.tzinfo is not None
    assert sessions.update("order-17", metadata=None).metadata is None
    assert sessions.update("order-17", tags=["y"]).tags == ("y",)
    for number in range(4):
        sessions.start("support", "answer", external_id=f"order-{number}")

    assert len(list(sessions.list(page_size=2))) == 5
    assert [each.external_id for each in sessions.list(tags=["y"])] == ["order-17"]
    closed = sessions.close("order-17", reason="done")
    assert closed.closed_reason == "done"
    assert closed.closed_at is not None
    assert sessions.close("order-17").closed_reason == "done"
    assert [each.external_id for each in sessions.list(status="CLOSED")] == ["order-17"]
    with pytest.raises(SessionClosedError, match="start another one"):
        sessions.start("support", "answer", external_id="order-17")


async def test_sessions_are_kept_by_async_tasks():
    """The async half starts, finds, changes, lists and closes the same."""
    started = await async_sessions.start("support", "answer", external_id="order-17")
    assert (await async_sessions.retrieve("order-17")).id == started.id
    assert (await async_sessions.update(started.id, tags=["y"])).tags == ("y",)
    assert [each.id async for each in async_sessions.list(page_size=1)] == [started.id]
    assert (await async_sessions.close(started.id)).closed_at is not None


def test_an_unknown_session_is_explained():
    """A session that nobody started is refused with what to do."""
    with pytest.raises(ControlPlaneRefusedError, match="must have been started"):
        sessions.retrieve("session_unknown")


async def test_blocking_calls_are_refused_on_a_loop():
    """What would block an event loop is refused there, with the async name."""
    in_ = sessions.open("s").in_
    for call in (in_.once, in_.wait, lambda: in_.send("a"), lambda: sessions.retrieve("s")):
        with pytest.raises(BlockingCallError):
            call()
