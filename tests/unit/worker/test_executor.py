"""One attempt from payload to outcome: whatever task code does, there is an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from td_worker import context, executor
from td_worker.chat import conversation
from td_worker.context import Execution
from td_worker.executor import Executor, Limits
from td_worker.heartbeat import Deadlines
from td_worker.messages import AssignedRun, Outcomes, RunOutcome, encode_frame
from td_worker.process import _run_to_end
from td_worker.task import Task, TaskSpec


class Streams:
    """The streams of a process that writes none, or whose stream store is gone."""

    def __init__(self) -> None:
        self.timeouts: list[float] = []
        self.stuck = False
        self.draining = asyncio.Event()

    async def drain(self, execution: Execution, timeout: float) -> int:
        self.timeouts.append(timeout)
        self.draining.set()
        if self.stuck and len(self.timeouts) == 1:
            await asyncio.Event().wait()
        return 7 if self.stuck else 0


class Worker:
    """An executor over functions of the test."""

    def __init__(self, *functions: Callable[[Any], Any], **spec: Any) -> None:
        self.streams = Streams()
        self.outcomes: asyncio.Queue[RunOutcome] = asyncio.Queue()
        self.deadlines = Deadlines()
        self.executor = Executor(
            {function.__name__: _task(function, spec) for function in functions},
            streams=self.streams,  # type: ignore[arg-type]
            messenger=None,  # type: ignore[arg-type]
            report=self.outcomes.put_nowait,
            deadlines=self.deadlines,
            limits=Limits(traceback_bytes=4096),
        )

    def start(self, task: str) -> str:
        run_id = f"run_{task}"
        self.executor.start(
            AssignedRun(
                id=run_id, task=task, payload=b"null", attempt=1, parent_id=None, root_id=run_id
            )
        )
        return run_id

    async def outcome(self, task: str) -> RunOutcome:
        self.start(task)
        return await self.outcomes.get()


def _task(function: Callable[[Any], Any], spec: dict[str, Any]) -> Task:
    return Task(
        spec=TaskSpec(id=function.__name__, entrypoint=f"tasks:{function.__name__}", **spec),
        function=function,
        is_async=asyncio.iscoroutinefunction(function),
        payload_type=Any,
        decoder=msgspec.json.Decoder(),
    )


class ShyError(Exception):
    """Cannot even say its name."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def _plain_raise(error: BaseException) -> Callable[[Any], Any]:
    def raises(payload: Any) -> None:
        raise error

    return raises


def _async_raise(error: BaseException) -> Callable[[Any], Any]:
    async def raises(payload: Any) -> None:
        raise error

    return raises


@pytest.mark.parametrize("make", [_plain_raise, _async_raise])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StopIteration(), "StopIteration"),
        (ShyError(), "<it cannot be shown: RuntimeError>"),
        (ValueError("a file \udc80"), "a file \\udc80"),
        (SystemExit(3), "3"),
        (KeyboardInterrupt("now"), "now"),
        (asyncio.CancelledError("mine"), "mine"),
        (GeneratorExit("over"), "over"),
    ],
)
async def test_whatever_is_raised_is_an_outcome_that_can_be_sent(make, error, message):
    """R6: no exception of task code leaves the run without an outcome, and each has its text."""
    outcome = await Worker(make(error)).outcome("raises")

    assert outcome.status == "FAILED"
    assert outcome.error is not None
    assert message in outcome.error.message
    assert encode_frame(Outcomes(outcomes=[outcome]))


async def test_an_error_of_megabytes_is_cut():
    """The message keeps its beginning and the traceback its end, in the limit each."""
    outcome = await Worker(_async_raise(ValueError("x" * 2**20))).outcome("raises")

    assert outcome.error is not None
    assert outcome.error.message.startswith("xxx")
    assert outcome.error.message.endswith("[cut]")
    assert len(outcome.error.message) < 5000
    assert len(outcome.error.traceback) < 5000


def test_sys_exit_in_a_subtask_fails_its_run_and_nobody_elses():
    """The loop of asyncio lets SystemExit out; the worker's goes on, and so do neighbours."""

    async def exits(payload: Any) -> None:
        async def leave() -> None:
            raise SystemExit(3)

        await asyncio.gather(leave(), asyncio.sleep(3600))

    async def goes_on(payload: Any) -> str:
        await gone.wait()
        return "done"

    async def both() -> None:
        worker = Worker(exits, goes_on)
        worker.start("goes_on")
        found.append(await worker.outcome("exits"))
        gone.set()
        found.append(await worker.outcomes.get())

    found: list[RunOutcome] = []
    loop = asyncio.new_event_loop()
    gone = asyncio.Event()
    try:
        _run_to_end(loop, both())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    assert [outcome.status for outcome in found] == ["FAILED", "COMPLETED"]
    assert found[0].error is not None
    assert found[0].error.type == "SystemExit"


async def test_a_run_that_is_stopped_before_its_first_line_has_an_outcome():
    """Assigned and cancelled in one turn of the loop: the run is CANCELED, its code never ran."""
    ran: list[Any] = []

    async def notes(payload: Any) -> None:
        ran.append(payload)

    worker = Worker(notes)
    worker.executor.cancel(worker.start("notes"), 1)

    assert (await worker.outcomes.get()).status == "CANCELED"
    assert ran == []


async def test_a_plain_function_sees_that_it_is_to_end():
    """A thread cannot be interrupted, but asked: it returns early, and goes back to the queue."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def polls(payload: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        while not context.current().cancelled.wait(0.01):
            pass
        raise RuntimeError("stopped half-way")

    worker = Worker(polls)
    worker.start("polls")
    await begun.wait()
    await worker.executor.drain(0)

    assert (await worker.outcomes.get()).status == "INTERRUPTED"


async def test_records_that_a_drain_cuts_off_are_counted():
    """A function that has returned stays COMPLETED, and says how many records it lost."""

    async def writes(payload: Any) -> str:
        return "done"

    worker = Worker(writes)
    worker.streams.stuck = True
    worker.start("writes")
    await worker.streams.draining.wait()
    await worker.executor.drain(0)
    outcome = await worker.outcomes.get()

    assert (outcome.status, outcome.output) == ("COMPLETED", b'"done"')
    assert outcome.records_lost == 7


async def test_an_interrupted_runs_streams_get_less_than_the_grace():
    """Else a stream store that is away would keep the outcome from being told in time."""

    async def holds(payload: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    worker = Worker(holds)
    worker.start("holds")
    await begun.wait()
    await worker.executor.drain(0)

    assert (await worker.outcomes.get()).status == "INTERRUPTED"
    assert worker.streams.timeouts == [2.0]


async def test_a_function_past_its_time_is_cancelled():
    """max_duration: an async function sees its cancellation, and the run is TIMED_OUT for good."""

    async def sleeps(payload: Any) -> None:
        await asyncio.sleep(3600)

    outcome = await Worker(sleeps, max_duration=0.01).outcome("sleeps")

    assert outcome.status == "TIMED_OUT"
    assert outcome.error is not None
    assert not outcome.error.retryable


async def test_a_cancelled_run_is_canceled():
    """A cancel that names another attempt does nothing; the right one ends the run."""

    async def holds(payload: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    worker = Worker(holds)
    run_id = worker.start("holds")
    await begun.wait()
    worker.executor.cancel(run_id, 2)
    worker.executor.cancel(run_id, 1)

    assert (await worker.outcomes.get()).status == "CANCELED"


def test_an_agent_that_takes_all_its_time_is_out_before_a_drain_ends():
    """A handler that closes its source as late as it may leaves its streams theirs, and some."""
    longest = conversation.STOP_GRACE + executor._STREAM_GRACE

    assert longest < executor._DRAIN_GRACE
