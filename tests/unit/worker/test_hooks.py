"""Hooks around an attempt: what is called when, in which order, and what their failures do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog

from td_worker import context
from td_worker.errors import (
    AbortTaskRunError,
    ControlPlaneBusyError,
    ControlPlaneRefusedError,
    TaskLoadError,
)
from td_worker.executor import Executor, Limits
from td_worker.heartbeat import Deadlines, Late
from td_worker.hooks import Caught, HookSet, Result, Wait, load_hooks, waiting, waiting_blocked
from td_worker.messages import AssignedRun, RunOutcome
from td_worker.retry import RetryPolicy
from td_worker.task import Task, TaskSpec, load_task

ONCE = RetryPolicy(max_attempts=1)


class Streams:
    """The streams of a process that writes none; says when it was asked to settle them."""

    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls

    async def drain(self, execution: Any, timeout: float) -> int:
        self._calls.append("streams")
        return 0


class Bench:
    """An executor over one task and its hooks; `calls` is what they did, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self.outcomes: asyncio.Queue[RunOutcome] = asyncio.Queue()
        self.deadlines = Deadlines()
        self._monkeypatch = monkeypatch
        self._shared: list[str] = []
        self._own: list[str] = []

    def shared(self, **hooks: Callable[..., Any]) -> None:
        """Register an object of hooks for every task."""
        self._shared.append(self._register(hooks))

    def own(self, **hooks: Callable[..., Any]) -> None:
        """Register an object of hooks for the task."""
        self._own.append(self._register(hooks))

    def notes(self, *names: str, where: str) -> dict[str, Callable[..., Any]]:
        """Make hooks of these names that only say that they were called."""
        return {name: self._note(f"{where} {name}") for name in names}

    def _note(self, text: str) -> Callable[..., Any]:
        async def note() -> None:
            self.calls.append(text)

        return note

    def _register(self, hooks: dict[str, Callable[..., Any]]) -> str:
        name = f"hooks_of_test_{len(self._shared)}_{len(self._own)}"
        module = SimpleNamespace(hooks=SimpleNamespace(**hooks), __name__=name)
        self._monkeypatch.setitem(__import__("sys").modules, name, module)
        return f"{name}:hooks"

    def executor(self, function: Callable[[Any], Any], **spec: Any) -> Executor:
        grace = spec.pop("grace", 30.0)
        payload_type = spec.pop("payload_type", Any)
        task = Task(
            spec=TaskSpec(id="task", entrypoint="tasks:task", **spec),
            function=function,
            is_async=asyncio.iscoroutinefunction(function),
            payload_type=payload_type,
            decoder=msgspec.json.Decoder(payload_type),
            hooks=load_hooks(self._shared, self._own),
        )

        return Executor(
            {"task": task},
            streams=Streams(self.calls),  # type: ignore[arg-type]
            messenger=None,  # type: ignore[arg-type]
            report=self.outcomes.put_nowait,
            deadlines=self.deadlines,
            limits=Limits(cancel_grace=grace),
        )

    async def run(
        self,
        function: Callable[[Any], Any],
        *,
        attempt: int = 1,
        payload: bytes = b"1",
        **spec: Any,
    ) -> RunOutcome:
        """Execute one attempt and return its outcome."""
        self.executor(function, **spec).start(assigned(attempt, payload))

        return await self.outcomes.get()


def assigned(attempt: int = 1, payload: bytes = b"1", **more: Any) -> AssignedRun:
    return AssignedRun(
        id="run_1",
        task="task",
        payload=payload,
        attempt=attempt,
        parent_id=None,
        root_id="run_1",
        **more,
    )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


async def returns(payload: Any) -> Any:
    return {"got": payload}


class TaskError(Exception):
    """What the tasks here fail with."""


async def fails(payload: Any) -> None:
    raise TaskError("no")


@pytest.mark.conformance("TE1", "TE6")
async def test_on_complete_after_a_success(bench: Bench) -> None:
    """TE1, TE6: on_complete gets a result that is ok, with the output."""
    got: list[Result] = []
    bench.own(on_complete=lambda result: got.append(result))

    outcome = await bench.run(returns)

    assert outcome.status == "COMPLETED"
    assert got == [Result(ok=True, output={"got": 1})]


@pytest.mark.conformance("TE2")
async def test_on_success_shared_then_own(bench: Bench) -> None:
    """TE2: shared hooks in the order of their registration, then the task's; each gets all."""
    got: list[Any] = []
    bench.shared(init=lambda: {"db": 7})
    for number in (1, 2):
        bench.shared(
            on_success=lambda payload, output, init, n=number: got.append(
                (n, payload, output, init)
            )
        )
    bench.own(on_success=lambda payload, output, init: got.append(("own", payload, output, init)))

    await bench.run(returns)

    rest = (1, {"got": 1}, {"db": 7})
    assert got == [(1, *rest), (2, *rest), ("own", *rest)]


@pytest.mark.conformance("TE3", "TE4")
@pytest.mark.parametrize("name", ["on_start", "on_start_attempt"])
async def test_start_hooks_shared_then_own(bench: Bench, name: str) -> None:
    """TE3, TE4: the same order, with what init returned, and before the task."""
    bench.shared(init=lambda: {"a": 1, "b": 1})
    bench.own(init=lambda: {"b": 2})
    for register, where in [(bench.shared, "one"), (bench.shared, "two"), (bench.own, "own")]:
        register(**{name: lambda init, where=where: bench.calls.append((where, dict(init)))})

    async def task(payload: Any) -> None:
        bench.calls.append(("task", dict(context.init)))

    await bench.run(task)

    merged = {"a": 1, "b": 2}
    assert bench.calls[:4] == [(where, merged) for where in ("one", "two", "own", "task")]


async def test_on_start_is_for_the_first_attempt(bench: Bench) -> None:
    """A second attempt has on_start_attempt only."""
    bench.own(**bench.notes("on_start", "on_start_attempt", where="own"))

    await bench.run(returns, attempt=2)

    assert bench.calls == ["own on_start_attempt", "streams"]


@pytest.mark.conformance("TE5", "TE7")
async def test_on_failure_shared_then_own_with_the_same_error(bench: Bench) -> None:
    """TE5, TE7: when no attempt follows; the very exception, and init; then on_complete."""
    got: list[Any] = []
    bench.shared(
        init=lambda: {"db": 7}, on_failure=lambda error, init: got.append(("shared", error, init))
    )
    bench.own(
        on_failure=lambda error, init: got.append(("own", error, init)),
        on_complete=lambda result: got.append(result),
    )

    outcome = await bench.run(fails, retry=ONCE)

    assert (outcome.status, outcome.retry_at) == ("FAILED", None)
    (_, error, init), second, result = got
    assert isinstance(error, TaskError)
    assert init == {"db": 7}
    assert second == ("own", error, init)
    assert (result.ok, result.error) == (False, error)


async def test_no_failure_hooks_when_an_attempt_follows(bench: Bench) -> None:
    """on_failure and on_complete tell of the end of a run, cleanup of the end of an attempt."""
    bench.own(**bench.notes("on_failure", "on_complete", "cleanup", where="own"))

    outcome = await bench.run(fails)

    assert outcome.retry_at is not None
    assert bench.calls == ["own cleanup", "streams"]


@pytest.mark.conformance("TE8")
async def test_catch_error_own_first_until_one_answers(bench: Bench) -> None:
    """TE8: the task's hook, then the shared ones in order; the first that returns something."""

    def catches(where: str, answer: Caught | None) -> Callable[..., Any]:
        def catch_error(error: BaseException) -> Caught | None:
            bench.calls.append(where)
            return answer

        return catch_error

    bench.shared(catch_error=catches("first", None))
    bench.shared(catch_error=catches("second", Caught(retry_delay=5)))
    bench.shared(catch_error=catches("third", Caught(skip_retrying=True)))
    bench.own(catch_error=catches("own", None))
    before = time.time()

    outcome = await bench.run(fails)

    assert bench.calls[:-1] == ["own", "first", "second"]
    assert outcome.retry_at is not None
    assert before + 5 <= outcome.retry_at <= time.time() + 5


@pytest.mark.conformance("TE9")
async def test_catch_error_skips_and_replaces(bench: Bench) -> None:
    """TE9: no attempt follows, and the error that is recorded is the hook's."""
    bench.own(catch_error=lambda: Caught(skip_retrying=True, error=ValueError("rather this")))

    outcome = await bench.run(fails)

    assert (outcome.status, outcome.retry_at) == ("FAILED", None)
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == ("ValueError", "rather this")
    assert not outcome.error.retryable


@pytest.mark.conformance("TE10")
async def test_catch_error_names_the_moment(bench: Bench) -> None:
    """TE10: the next attempt starts at that instant."""
    at = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
    bench.own(catch_error=lambda: Caught(retry_at=at))

    assert (await bench.run(fails)).retry_at == at.timestamp()


async def test_catch_error_with_a_policy(bench: Bench) -> None:
    """Its policy says whether an attempt is left; an error alone means that none is."""
    policy = RetryPolicy(max_attempts=2, min_timeout=100, max_timeout=100, randomize=False)
    bench.own(catch_error=lambda: Caught(retry=policy))

    first = await bench.run(fails, retry=ONCE)
    second = await bench.run(fails, attempt=2, retry=ONCE)
    bench.own(catch_error=lambda: Caught(error=KeyError("x")))
    third = await Bench.run(bench, fails)

    assert first.retry_at is not None
    assert first.retry_at > time.time() + 90
    assert (second.retry_at, third.error is not None) == (None, True)


async def test_a_catch_error_that_fails_ends_the_run(bench: Bench) -> None:
    """HANDLE_ERROR_ERROR: its own error is recorded, and no attempt follows."""

    def broken() -> Caught:
        raise RuntimeError("hook broke")

    bench.own(catch_error=broken)
    raised = await bench.run(fails)
    bench._own.clear()
    bench.own(catch_error=lambda: {"skip": True})
    answered = await bench.run(fails)

    for outcome, message in [(raised, "hook broke"), (answered, "not Caught(…) or None")]:
        assert outcome.error is not None
        assert (outcome.retry_at, outcome.error.code) == (None, "HANDLE_ERROR_ERROR")
        assert message in outcome.error.message


@pytest.mark.conformance("TE11")
async def test_the_default_delay(bench: Bench) -> None:
    """TE11: without hooks the default settings; the first delay is from 1 to 2 seconds."""
    before = time.time()

    outcome = await bench.run(fails)

    assert outcome.retry_at is not None
    assert before + 1 <= outcome.retry_at <= time.time() + 3


@pytest.mark.conformance("TE12", "TE18")
async def test_the_order_of_everything(bench: Bench) -> None:
    """TE12, TE18: middleware around all, cleanup after complete, streams inside the middleware."""
    names = ("init", "on_start", "on_start_attempt", "on_success", "on_complete", "cleanup")

    def around(where: str) -> Callable[..., Any]:
        async def middleware(call_next: Any) -> None:
            bench.calls.append(f"{where} begins")
            await call_next()
            bench.calls.append(f"{where} ends")

        return middleware

    def plain_around(call_next: Any) -> None:
        bench.calls.append("two begins")
        call_next()
        bench.calls.append("two ends")

    async def task(payload: Any) -> None:
        bench.calls.append("task")

    bench.shared(middleware=around("one"), **bench.notes(*names, where="shared"))
    bench.shared(middleware=plain_around)
    bench.own(middleware=around("own"), **bench.notes(*names, where="own"))

    assert (await bench.run(task)).status == "COMPLETED"
    both = [f"{where} {name}" for name in names for where in ("shared", "own")]
    before = ["one begins", "two begins", "own begins", *both[:6], "task", *both[6:], "streams"]
    assert bench.calls == [*before, "own ends", "two ends", "one ends", "streams"]


@pytest.mark.conformance("TE13")
async def test_middleware_that_raises(bench: Bench) -> None:
    """TE13: TASK_MIDDLEWARE_ERROR; neither the task nor a failure hook is called."""

    async def middleware() -> None:
        raise RuntimeError("no connection")

    bench.own(middleware=middleware, **bench.notes("on_failure", "cleanup", "init", where="own"))

    outcome = await bench.run(returns)

    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.message) == ("TASK_MIDDLEWARE_ERROR", "no connection")
    assert bench.calls == ["streams"]


async def test_middleware_that_calls_nothing(bench: Bench) -> None:
    """A run whose task was never called is no success."""
    bench.own(**bench.notes("middleware", where="own"))

    outcome = await bench.run(returns)

    assert outcome.error is not None
    assert outcome.error.code == "TASK_MIDDLEWARE_ERROR"
    assert "call_next()" in outcome.error.message


@pytest.mark.parametrize("is_plain", [True, False])
async def test_middleware_sees_the_failure_and_changes_nothing(
    bench: Bench, is_plain: bool
) -> None:
    """A context manager in middleware can roll back; who swallows the error does not hide it."""

    async def middleware(call_next: Any) -> None:
        try:
            await call_next()
        except TaskError:
            bench.calls.append("rolled back")

    def plain(call_next: Any) -> None:
        try:
            call_next()
        except TaskError:
            bench.calls.append("rolled back")
            raise

    bench.own(middleware=plain if is_plain else middleware)

    outcome = await bench.run(fails, retry=ONCE)

    assert outcome.error is not None
    assert (outcome.status, outcome.error.type, outcome.error.code) == ("FAILED", "TaskError", None)
    assert "rolled back" in bench.calls


@pytest.mark.conformance("TE14", "TE15", "TE16")
@pytest.mark.parametrize("name", ["init", "on_start", "on_start_attempt"])
@pytest.mark.parametrize("where", ["shared", "own"])
async def test_hooks_before_the_task_fail_the_attempt(bench: Bench, name: str, where: str) -> None:
    """TE14, TE15, TE16: the task is not called, the failure hooks are; it may be tried again."""

    def broken() -> None:
        raise TaskError("not today")

    getattr(bench, where)(**{name: broken})
    bench.own(**bench.notes("on_failure", "on_complete", "cleanup", where="own"))
    outcome = await bench.run(lambda payload: bench.calls.append("task"), retry=ONCE)

    assert outcome.error is not None
    assert (outcome.status, outcome.error.message) == ("FAILED", "not today")
    assert (outcome.error.code, outcome.error.retryable) == (None, True)
    assert bench.calls[:-1] == ["own on_failure", "own on_complete", "own cleanup"]


@pytest.mark.conformance("TE17")
@pytest.mark.parametrize("name", ["on_success", "on_complete", "cleanup"])
async def test_hooks_after_a_success_change_nothing(bench: Bench, name: str) -> None:
    """TE17: what they raise is logged, the others are called; so with cleanup, unlike upstream."""

    def broken() -> None:
        raise SystemExit("hook broke")

    bench.shared(**{name: broken})
    bench.own(**bench.notes(name, where="own"))

    with structlog.testing.capture_logs() as logs:
        outcome = await bench.run(returns)

    assert (outcome.status, outcome.output) == ("COMPLETED", b'{"got":1}')
    assert f"own {name}" in bench.calls
    (line,) = [line for line in logs if line["event"] == "hook.failed"]
    assert (line["error_type"], line["error_message"]) == ("SystemExit", "hook broke")


@pytest.mark.conformance("TE19")
async def test_cleanup_after_a_failure(bench: Bench) -> None:
    """TE19: shared, then own, after the failure hooks."""
    bench.shared(**bench.notes("cleanup", "on_failure", where="shared"))
    bench.own(**bench.notes("cleanup", where="own"))

    await bench.run(fails, retry=ONCE)

    assert bench.calls[:-1] == ["shared on_failure", "shared cleanup", "own cleanup"]


@pytest.mark.conformance("TE20")
@pytest.mark.parametrize("is_plain", [True, False])
async def test_wait_hooks(bench: Bench, is_plain: bool) -> None:
    """TE20: on_wait, the wait, on_resume; shared then own, with what is waited for."""
    wait = Wait(type="task", ids=("child",))
    for register, where in [(bench.shared, "shared"), (bench.own, "own")]:
        register(
            on_wait=lambda wait, where=where: bench.calls.append((where, "wait", wait)),
            on_resume=lambda wait, where=where: bench.calls.append((where, "resume", wait)),
        )

    async def waits(payload: Any) -> None:
        async with waiting(wait):
            bench.calls.append("waiting")

    def waits_plainly(payload: Any) -> None:
        with waiting_blocked(wait):
            bench.calls.append("waiting")

    await bench.run(waits_plainly if is_plain else waits)

    said = [[(where, what, wait) for where in ("shared", "own")] for what in ("wait", "resume")]
    assert bench.calls[:-1] == [*said[0], "waiting", *said[1]]


@pytest.mark.parametrize("name", ["on_wait", "on_resume"])
async def test_a_cancellation_during_a_plain_wait_hook_counts(bench: Bench, name: str) -> None:
    """The hook's thread is not interrupted, but the task goes on to no wait and from none."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def lingers() -> None:
        loop.call_soon_threadsafe(begun.set)
        while not context.is_cancelled():
            time.sleep(0.001)

    bench.own(**{name: lingers})

    async def waits(payload: Any) -> None:
        async with waiting(Wait(type="task")):
            bench.calls.append("waited")
        bench.calls.append("went on")

    assert (await begun_and_canceled(bench, waits, begun)).status == "CANCELED"
    assert bench.calls == (["waited", "streams"] if name == "on_resume" else ["streams"])


async def test_a_wait_hook_raises_where_the_task_waits(bench: Bench) -> None:
    """What on_wait raises is the task's to handle."""

    def refuses() -> None:
        raise TaskError("not now")

    bench.own(on_wait=refuses)

    async def waits(payload: Any) -> str:
        try:
            async with waiting(Wait(type="task")):
                return "waited"
        except TaskError as error:
            return str(error)

    assert (await bench.run(waits)).output == b'"not now"'


@pytest.mark.conformance("TE21")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
async def test_refusals_of_the_control_plane_are_not_retried(bench: Bench, status: int) -> None:
    """TE21: no attempt follows, and no hook is asked."""
    bench.own(**bench.notes("catch_error", where="own"))

    async def calls(payload: Any) -> None:
        raise ControlPlaneRefusedError("no", status=status, retryable=False, retry_after=None)

    outcome = await bench.run(calls)

    assert outcome.error is not None
    assert (outcome.retry_at, outcome.error.retryable) == (None, False)
    assert bench.calls == ["streams"]


@pytest.mark.conformance("TE21")
@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_passing_failures_of_the_control_plane_are_retried(bench: Bench, status: int) -> None:
    """TE21: with the default delay."""

    async def calls(payload: Any) -> None:
        raise ControlPlaneBusyError("later", status=status, retryable=True, retry_after=None)

    before = time.time()
    outcome = await bench.run(calls)

    assert outcome.retry_at is not None
    assert before + 1 <= outcome.retry_at <= time.time() + 5


@pytest.mark.conformance("TE22")
async def test_a_rate_limit_that_says_when_it_ends(bench: Bench) -> None:
    """TE22: up to two seconds past its reset, and never before it."""

    async def calls(payload: Any) -> None:
        raise ControlPlaneBusyError("later", status=429, retryable=True, retry_after=40.0)

    before = time.time()
    outcome = await bench.run(calls)

    assert outcome.retry_at is not None
    assert before + 40 <= outcome.retry_at <= time.time() + 42


@pytest.mark.conformance("TE23")
async def test_a_payload_that_does_not_fit(bench: Bench) -> None:
    """TE23: TASK_INPUT_ERROR, no attempt follows, the task is not called."""
    outcome = await bench.run(returns, payload=b'"text"', payload_type=int)

    assert outcome.error is not None
    assert (outcome.status, outcome.error.code) == ("FAILED", "TASK_INPUT_ERROR")
    assert (outcome.retry_at, outcome.error.retryable) == (None, False)


async def test_an_aborted_run_is_not_retried_and_has_its_failure_hooks(bench: Bench) -> None:
    """AbortTaskRunError comes before every catch_error."""
    bench.own(catch_error=lambda: Caught(retry_delay=0), **bench.notes("on_failure", where="own"))

    async def aborts(payload: Any) -> None:
        raise AbortTaskRunError("enough")

    outcome = await bench.run(aborts)

    assert outcome.retry_at is None
    assert bench.calls == ["own on_failure", "streams"]


@pytest.mark.parametrize("task_attempts", [1, 10])
async def test_the_runs_own_number_of_attempts(bench: Bench, task_attempts: int) -> None:
    """They replace the task's, more or fewer, and excused attempts do not count."""
    executor = bench.executor(fails, retry=RetryPolicy(max_attempts=task_attempts))
    executor.start(assigned(5, attempts_used=1, max_attempts=2))
    first = await bench.outcomes.get()
    executor.start(assigned(6, attempts_used=2, max_attempts=2))
    second = await bench.outcomes.get()

    assert first.retry_at is not None
    assert second.retry_at is None


async def test_locals_are_shared_and_new_for_each_attempt(bench: Bench) -> None:
    """A hook finds what the task has put there; the next attempt begins with nothing."""
    bench.own(cleanup=lambda: bench.calls.append(dict(context.locals)))

    async def task(payload: Any) -> None:
        assert context.locals == {}
        context.locals["key"] = context.attempt.number

    await bench.run(task)
    await bench.run(task, attempt=2)

    assert [call for call in bench.calls if call != "streams"] == [{"key": 1}, {"key": 2}]


async def begun_and_canceled(
    bench: Bench, task: Callable[..., Any], begun: asyncio.Event, **spec: Any
) -> RunOutcome:
    executor = bench.executor(task, **spec)
    executor.start(assigned())
    await begun.wait()
    executor.cancel("run_1", 1)

    return await bench.outcomes.get()


async def test_on_cancel_runs_beside_the_task(bench: Bench) -> None:
    """It is called at once, can wait for the function, and ends before the outcome is told."""
    begun = asyncio.Event()

    async def on_cancel(payload: Any, ended: Any) -> None:
        bench.calls.append(("canceled", payload))
        await ended
        bench.calls.append("heard")

    async def holds(payload: Any) -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            bench.calls.append("gone")

    bench.own(on_cancel=on_cancel, **bench.notes("cleanup", "on_failure", where="own"))

    outcome = await begun_and_canceled(bench, holds, begun)

    assert outcome.status == "CANCELED"
    assert bench.calls[:2] == [("canceled", 1), "gone"]
    assert sorted(bench.calls[2:4]) == ["heard", "own cleanup"]


async def test_what_a_canceled_task_returns_is_dropped(bench: Bench) -> None:
    """It is half a result: the run is CANCELED, though its function swallowed the cancellation."""
    begun = asyncio.Event()

    async def holds(payload: Any) -> str:
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "half"
        return "whole"

    outcome = await begun_and_canceled(bench, holds, begun)

    assert (outcome.status, outcome.output) == ("CANCELED", None)


async def test_a_canceled_plain_task_sees_its_flag_inside_plain_middleware(bench: Bench) -> None:
    """A thread cannot be interrupted, but asked; what it returns then does not count."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def polls(payload: Any) -> str:
        loop.call_soon_threadsafe(begun.set)
        while not context.is_cancelled():
            time.sleep(0.001)
        return "half"

    bench.own(middleware=lambda call_next: call_next())

    assert (await begun_and_canceled(bench, polls, begun)).status == "CANCELED"


async def test_a_cancellation_reaches_an_async_task_inside_plain_middleware(bench: Bench) -> None:
    """The task to cancel is the innermost one, not the one that waits for the thread."""
    begun = asyncio.Event()

    async def holds(payload: Any) -> None:
        begun.set()
        await asyncio.sleep(3600)

    bench.own(middleware=lambda call_next: call_next())

    assert (await begun_and_canceled(bench, holds, begun)).status == "CANCELED"


async def test_an_on_cancel_that_hangs_gets_the_grace_and_no_more(bench: Bench) -> None:
    """The outcome is told without it."""
    begun = asyncio.Event()

    async def hangs() -> None:
        await asyncio.Event().wait()

    async def holds(payload: Any) -> None:
        begun.set()
        await asyncio.sleep(3600)

    bench.own(on_cancel=hangs)

    assert (await begun_and_canceled(bench, holds, begun, grace=0.05)).status == "CANCELED"


async def test_a_plain_on_cancel_that_hangs_is_late(bench: Bench) -> None:
    """Its thread would stay for ever: the attempt has not ended, and the worker goes with it."""
    begun, hung = asyncio.Event(), threading.Event()

    async def holds(payload: Any) -> None:
        begun.set()
        await asyncio.sleep(3600)

    bench.own(on_cancel=lambda: hung.wait())
    executor = bench.executor(holds, grace=0.05)
    executor.start(assigned())
    await begun.wait()
    executor.cancel("run_1", 1)
    late: list[Late] = []
    async with asyncio.timeout(30):
        while not late:
            await asyncio.sleep(0.001)
            late = bench.deadlines.take_late()

    assert [each.run_id for each in late] == ["run_1"]
    assert bench.outcomes.empty()
    hung.set()
    assert (await bench.outcomes.get()).status == "CANCELED"


async def test_a_cancellation_beside_the_drain_calls_no_on_cancel(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once only the streams are left, a cancellation hurries them, and starts no hooks."""
    drains: list[float] = []

    async def drain(_streams: Streams, _execution: Any, timeout: float) -> int:
        drains.append(timeout)
        if len(drains) == 1:
            executor.cancel("run_1", 1)
            await asyncio.Event().wait()
        for _ in range(10):
            await asyncio.sleep(0)
        return 0

    monkeypatch.setattr(Streams, "drain", drain)
    bench.own(**bench.notes("on_cancel", "on_success", where="own"))
    executor = bench.executor(returns)
    executor.start(assigned())
    outcome = await bench.outcomes.get()

    assert outcome.status == "COMPLETED"
    assert len(drains) == 2
    assert bench.calls == ["own on_success"]


async def test_time_over_calls_on_cancel(bench: Bench) -> None:
    """max_duration ends an attempt as a cancellation does, and says what it was."""
    bench.own(**bench.notes("on_cancel", "cleanup", where="own"))

    async def holds(payload: Any) -> None:
        await asyncio.sleep(3600)

    outcome = await bench.run(holds, max_duration=0.02)

    assert outcome.error is not None
    assert (outcome.status, outcome.error.code) == ("TIMED_OUT", "MAX_DURATION_EXCEEDED")
    assert bench.calls == ["own on_cancel", "own cleanup", "streams"]


async def test_waits_do_not_count_as_time(bench: Bench) -> None:
    """max_duration stands still while the run waits, in two places at once, too."""

    async def waits(payload: Any) -> str:
        async with waiting(Wait(type="task")), waiting(Wait(type="batch")):
            await asyncio.sleep(0.3)
        return "done"

    assert (await bench.run(waits, max_duration=0.15)).status == "COMPLETED"


async def test_the_runs_own_max_duration(bench: Bench) -> None:
    """A run's replaces its task's."""

    async def holds(payload: Any) -> None:
        await asyncio.sleep(3600)

    bench.executor(holds, max_duration=3600).start(assigned(max_duration=0.02))
    outcome = await bench.outcomes.get()

    assert outcome.error is not None
    assert outcome.error.message == "the attempt took longer than max_duration (0.02 s)"


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"on_success": lambda output, nonsense: None}, "wants 'nonsense'; by name there are"),
        ({"on_sucess": lambda: None, "cleanup": lambda: None}, "did you mean 'on_success'?"),
        ({"cleanup": 7}, "is int, no function"),
        ({"other": lambda: None}, "has no hook; hooks are named middleware, init"),
    ],
)
def test_hooks_that_cannot_be_called_are_refused(bench: Bench, hooks: Any, message: str) -> None:
    """At load, so that `check` and `start` say it, and not the first failure at night."""
    bench.own(**hooks)

    with pytest.raises(TaskLoadError, match="hooks: ") as caught:
        load_task(TaskSpec(id="t", entrypoint=f"{__name__}:returns", hooks=tuple(bench._own)))

    assert message in str(caught.value)


def test_a_task_without_hooks_has_an_empty_set() -> None:
    """The fast path asks exactly this."""
    assert not HookSet()
    assert not load_hooks((), ())


async def test_an_async_generator_is_no_middleware(bench: Bench) -> None:
    """Who writes `yield` is told what to write instead."""

    async def middleware() -> AsyncIterator[None]:
        yield

    bench.own(middleware=middleware)

    with pytest.raises(TaskLoadError, match="calls `call_next"):
        load_task(TaskSpec(id="t", entrypoint=f"{__name__}:returns", hooks=tuple(bench._own)))


async def test_what_a_run_was_triggered_with(bench: Bench) -> None:
    """Tags, metadata and the run to stream to are in context.run."""

    async def task(payload: Any) -> Any:
        run = context.run
        return [run.tags, run.metadata, run.stream_run_id]

    facts: dict[str, Any] = {"tags": ("a",), "metadata": b'{"n":1}', "stream_run_id": "run_2"}
    bench.executor(task).start(assigned(**facts))

    assert (await bench.outcomes.get()).output == b'[["a"],{"n":1},"run_2"]'
