"""What a worker was given ahead: begun when others end, given back when it cannot begin."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, cast

import pytest

from td_worker import inbox as module
from td_worker.heartbeat import Deadlines
from td_worker.inbox import Inbox
from td_worker.messages import AssignedRun, RunOutcome


class Executing:
    """An executor whose runs end when the test says so."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.stopped: list[tuple[str, str]] = []

    @property
    def running(self) -> int:
        return len(self.runs)

    def is_busy(self) -> bool:
        return bool(self.runs)

    def start(self, run: AssignedRun) -> None:
        self.runs.append(run.id)

    def cancel(self, run_id: str, attempt: int) -> None:
        self.stopped.append((run_id, "CANCELED"))

    def interrupt(self, run_id: str, attempt: int) -> None:
        self.stopped.append((run_id, "INTERRUPTED"))


class Bench:
    """An inbox with two places."""

    def __init__(self) -> None:
        self.executor: Any = Executing()
        self.outcomes: asyncio.Queue[RunOutcome] = asyncio.Queue()
        self.drained: Future[float] = Future()
        self.inbox = Inbox(
            cast("Any", self.executor),
            asyncio.get_running_loop(),
            self.drained,
            places=2,
            deadlines=Deadlines(),
            report=self.outcomes.put_nowait,
        )

    async def assign(self, *now: str, ahead: tuple[str, ...] = ()) -> None:
        self.inbox.assign([run(each) for each in now], [run(each) for each in ahead])
        await asyncio.sleep(0)

    async def end(self, run_id: str) -> None:
        self.executor.runs.remove(run_id)
        self.inbox.fill()
        await asyncio.sleep(0)


def run(run_id: str) -> AssignedRun:
    return AssignedRun(
        id=run_id, task="t", payload=b"null", attempt=1, parent_id=None, root_id=run_id
    )


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_runs_given_ahead_begin_in_order_when_others_end(bench: Bench) -> None:
    """Never more than there are places."""
    await bench.assign("a", "b", ahead=("c", "d"))
    assert bench.executor.runs == ["a", "b"]
    await bench.end("a")
    assert bench.executor.runs == ["b", "c"]
    await bench.end("b")
    assert bench.executor.runs == ["c", "d"]
    assert bench.outcomes.empty()


async def test_a_run_given_ahead_begins_at_once_where_a_place_is_free(bench: Bench) -> None:
    """The supervisor had not heard of that end when it sent it."""
    await bench.assign("a", ahead=("b",))
    assert bench.executor.runs == ["a", "b"]


async def test_what_cannot_begin_soon_is_given_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other workers may be free; these places are held by long runs."""
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    await bench.assign("a", "b", ahead=("c", "d"))
    given_back = [await bench.outcomes.get(), await bench.outcomes.get()]

    assert [(each.run_id, each.status, each.took) for each in given_back] == [
        ("c", "INTERRUPTED", None),
        ("d", "INTERRUPTED", None),
    ]
    assert bench.executor.runs == ["a", "b"]
    assert bench.inbox.is_busy()


async def test_a_drain_gives_back_what_has_not_begun(bench: Bench) -> None:
    """It would begin while the worker leaves."""
    await bench.assign("a", "b", ahead=("c",))
    bench.inbox.drain(3.0)

    assert (await bench.outcomes.get()).run_id == "c"
    assert bench.drained.result() == 3.0


@pytest.mark.parametrize("status", ["CANCELED", "INTERRUPTED"])
async def test_a_run_that_has_not_begun_can_be_stopped(bench: Bench, status: str) -> None:
    """It never begins; one that has begun is the executor's to stop."""
    await bench.assign("a", "b", ahead=("c",))
    stop = bench.inbox.cancel if status == "CANCELED" else bench.inbox.interrupt
    stop("c", 1)
    stop("a", 1)
    outcome = await bench.outcomes.get()
    await bench.end("b")

    assert (outcome.run_id, outcome.status) == ("c", status)
    assert bench.executor.stopped == [("a", status)]
    assert bench.executor.runs == ["a"]
