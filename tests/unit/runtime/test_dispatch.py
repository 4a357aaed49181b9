"""Hand-out and outcomes, with a real store and workers that are only seen from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from td_runtime.ahead import Ahead
from td_runtime.config import LimitsConfig, TaskConfig
from td_runtime.control_messages import TriggerRuns, WaitForRun
from td_runtime.dispatch import Dispatcher
from td_runtime.requests import Requests
from td_runtime.store import open_store
from td_runtime.workers import HeldRun
from td_worker.messages import (
    Assign,
    CancelRun,
    Outcomes,
    Overdue,
    Resumed,
    RunOutcome,
    Suspended,
    Trigger,
    TriggerItem,
    TriggerRefused,
)


class FakeWorker:
    """What the dispatcher sees of a worker; its channel keeps what it is sent."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.owner = f"owner-{number}"
        self.pid = 1000 + number
        self.runs: dict[str, Any] = {}
        self.ahead = Ahead()
        self.exit_status = -9
        self.stuck: str | None = None
        self.is_condemned = False
        self.tasks: frozenset[str] | None = None
        self.last_lines = "the last lines of {}".format
        self.assigned: asyncio.Queue[Any] = asyncio.Queue()
        self.channel = self
        self.said: list[Any] = []
        self.kills = 0
        self.is_ready = True

    @property
    def load(self) -> int:
        return sum(not held.waiting for held in self.runs.values())

    def send(self, message: Any) -> None:
        if isinstance(message, Assign):
            for run in (*message.runs, *message.ahead):
                self.assigned.put_nowait(run)
        else:
            self.said.append(message)

    def kill(self) -> None:
        self.kills += 1


class FakePool:
    def __init__(self, *workers: FakeWorker) -> None:
        self.workers = {worker.number: worker for worker in workers}

    def ready(self) -> list[FakeWorker]:
        return [worker for worker in self.workers.values() if worker.is_ready]


class Runtime:
    """A dispatcher over a store and two workers."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.failures: list[BaseException] = []
        self.one, self.two = FakeWorker(1), FakeWorker(2)
        self.pool: Any = FakePool(self.one)
        self.dispatcher: Any = Dispatcher(
            store,
            {"a": TaskConfig(id="a", entrypoint="tasks:a")},
            limits=LimitsConfig(),
            concurrency=10,
            on_fatal=self.failures.append,
        )

    async def accept(self) -> str:
        (accepted,) = await self.dispatcher.accept([TriggerItem(task="a")])
        return str(accepted.id)

    def die(self, worker: FakeWorker) -> None:
        """Bury a worker, with another one in its place."""
        self.pool.workers = {2: self.two}
        self.dispatcher.release(worker, blame=True)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    async with open_store(tmp_path / "runs.db") as store:
        runtime = Runtime(store)
        running = asyncio.create_task(runtime.dispatcher.run(runtime.pool))
        yield runtime
        runtime.dispatcher.stop()
        await running
        await runtime.dispatcher.close()
    assert runtime.failures == []


def completed(run_id: str, attempt: int, output: bytes) -> Outcomes:
    outcome = RunOutcome(run_id=run_id, attempt=attempt, status="COMPLETED", output=output)

    return Outcomes(outcomes=[outcome])


async def test_a_late_result_is_dropped(runtime: Runtime) -> None:
    """R5: what a dead worker's attempt says changes nothing, and is logged; the new one counts."""
    run_id = await runtime.accept()
    first = await runtime.one.assigned.get()
    runtime.die(runtime.one)
    second = await runtime.two.assigned.get()

    with structlog.testing.capture_logs() as logs:
        runtime.dispatcher.receive(runtime.one, completed(run_id, first.attempt, b'"late"'))
        runtime.dispatcher.receive(runtime.two, completed(run_id, first.attempt, b'"stale"'))
        runtime.dispatcher.receive(runtime.two, completed(run_id, second.attempt, b'"right"'))
        runtime.dispatcher.receive(runtime.two, completed(run_id, second.attempt, b'"again"'))
        (run,) = await runtime.dispatcher.finished([run_id])

    assert (run.output, run.attempt, run.crashes) == (b'"right"', 2, 1)
    assert sum(line["event"] == "run.result_dropped" for line in logs) == 3


async def test_a_worker_that_dies_while_runs_are_claimed_for_it(runtime: Runtime) -> None:
    """R1, R2: the claim is committed, the worker is gone: another one gets the run at once."""
    claim = runtime.store.claim

    def claim_and_die(*args: Any, **kwargs: Any) -> Any:
        runtime.store.claim = claim
        claimed = claim(*args, **kwargs)
        runtime.die(runtime.one)
        return claimed

    runtime.store.claim = claim_and_die
    run_id = await runtime.accept()

    again = await runtime.two.assigned.get()
    assert (again.id, again.attempt) == (run_id, 2)
    assert runtime.one.assigned.empty()
    run = await runtime.store.get(run_id)
    assert (run.attempts_used, run.crashes) == (1, 0)


async def test_watchers_are_forgotten(runtime: Runtime) -> None:
    """Nothing is kept for a run once nobody waits for it, asked for twice or given up."""
    run_id = await runtime.accept()
    assigned = await runtime.one.assigned.get()
    given_up = asyncio.create_task(runtime.dispatcher.finished([run_id, run_id]))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(runtime.dispatcher.finished([run_id, run_id]))
    await asyncio.sleep(0)

    given_up.cancel()
    runtime.dispatcher.receive(runtime.one, completed(run_id, assigned.attempt, b"1"))

    assert len(await waiting) == 2
    assert len(runtime.dispatcher._watchers) == 0


async def test_a_wait_is_dropped_with_its_client(runtime: Runtime) -> None:
    """Nothing is kept for who hung up on a run that may never end; a trigger is carried out."""
    requests = Requests(
        runtime.store,
        runtime.dispatcher,
        limits=LimitsConfig(),
        tasks=tuple,
        status=lambda _: pytest.fail("nobody asked"),
        stop=lambda _, __: pytest.fail("nobody asked"),
        on_failed=runtime.failures.append,
    )
    answers: list[Any] = []
    run_id = await runtime.accept()
    hang_up = requests.answer(WaitForRun(run_id=run_id), "a test", answers.append)
    while not len(runtime.dispatcher._watchers):
        await asyncio.sleep(0)

    assert hang_up is not None
    hang_up()
    await requests.settled()
    assert (len(runtime.dispatcher._watchers), answers) == (0, [])

    trigger = TriggerRuns(items=[TriggerItem(task="a")])
    assert requests.answer(trigger, "a test", answers.append) is None
    await requests.settled()
    assert len(answers) == 1


async def test_a_cancel_reaches_the_worker_that_has_the_run(runtime: Runtime) -> None:
    """It names the attempt; an id that is no run's is said to be none."""
    run_id = await runtime.accept()
    assigned = await runtime.one.assigned.get()

    done = await runtime.dispatcher.cancel([run_id, "run_other"], by="me")
    assert [run.id for run in done.requested] == [run_id]
    assert done.unknown == ("run_other",)
    assert runtime.one.said == [CancelRun(run_id=run_id, attempt=assigned.attempt)]

    outcome = RunOutcome(run_id=run_id, attempt=1, status="CANCELED")
    runtime.dispatcher.receive(runtime.one, Outcomes(outcomes=[outcome]))
    (run,) = await runtime.dispatcher.finished([run_id])
    assert run.status == "CANCELED"


async def test_a_run_is_canceled_before_the_hand_out_begins(tmp_path: Path) -> None:
    """A client that cancels while the first worker still boots gets its answer."""
    async with open_store(tmp_path / "runs.db") as store:
        runtime = Runtime(store)
        run_id = await runtime.accept()

        done = await runtime.dispatcher.cancel([run_id])

    assert [run.id for run in done.canceled] == [run_id]


async def test_a_canceled_run_that_ignores_it_takes_only_its_worker_along(
    runtime: Runtime,
) -> None:
    """It is CANCELED, its neighbours start again, and nobody is blamed."""
    run_id = await runtime.accept()
    await runtime.one.assigned.get()
    neighbour = await runtime.accept()
    await runtime.one.assigned.get()

    overdue = Overdue(run_id=run_id, attempt=1, status="CANCELED")
    with structlog.testing.capture_logs() as logs:
        runtime.dispatcher.receive(runtime.one, overdue)
    assert logs == [
        {
            "event": "worker.killed",
            "log_level": "warning",
            "number": 1,
            "worker_pid": 1001,
            "reason": "a run ignored its cancellation",
            "run_id": run_id,
            "task": "a",
            "attempt": 1,
        }
    ]
    # Killed, and not dead yet: whatever it has is executed, so nothing of it may start again (R3).
    assert runtime.one.kills == 1
    assert runtime.one.runs.keys() == {run_id, neighbour}
    runtime.die(runtime.one)
    (run,) = await runtime.dispatcher.finished([run_id])
    again = await runtime.two.assigned.get()

    assert (run.status, run.crashes) == ("CANCELED", 0)
    assert (again.id, again.attempts_used) == (neighbour, 1)


async def test_an_end_that_comes_too_late_blames_nobody(runtime: Runtime) -> None:
    """A run that ends after all, while its worker is killed for it, leaves no suspect behind."""
    run_id = await runtime.accept()
    await runtime.one.assigned.get()
    neighbour = await runtime.accept()
    await runtime.one.assigned.get()

    runtime.dispatcher.receive(runtime.one, Overdue(run_id=run_id, attempt=1, status="CANCELED"))
    runtime.dispatcher.receive(runtime.one, completed(run_id, 1, b"1"))
    runtime.die(runtime.one)
    again = await runtime.two.assigned.get()
    (run,) = await runtime.dispatcher.finished([run_id])

    assert (run.status, run.attempt) == ("COMPLETED", 1)
    assert (again.id, again.attempts_used) == (neighbour, 1)


async def test_a_suspect_that_ignores_its_end_is_suspected_no_more(runtime: Runtime) -> None:
    """R8: once it has ended with its worker, no other worker is kept free for it."""
    for _ in range(2):
        await runtime.accept()
        await runtime.one.assigned.get()
    runtime.die(runtime.one)
    suspect = await runtime.two.assigned.get()

    runtime.dispatcher.receive(runtime.two, Overdue(run_id=suspect.id, attempt=suspect.attempt))
    three = FakeWorker(3)
    runtime.pool.workers = {3: three}
    runtime.dispatcher.release(runtime.two, blame=True)
    other = await three.assigned.get()
    runtime.dispatcher.receive(three, completed(other.id, other.attempt, b"1"))
    async with asyncio.timeout(30):
        for _ in range(2):
            run_id = await runtime.accept()
            assert (await three.assigned.get()).id == run_id


async def test_an_end_of_an_earlier_attempt_changes_nothing(runtime: Runtime) -> None:
    """R5: the attempt that is under way goes on, and its outcome counts."""
    run_id = await runtime.accept()
    await runtime.one.assigned.get()

    runtime.dispatcher.receive(runtime.one, Overdue(run_id=run_id, attempt=0))
    runtime.dispatcher.receive(runtime.one, completed(run_id, 1, b"1"))
    (run,) = await runtime.dispatcher.finished([run_id])

    assert (run.status, runtime.one.kills) == ("COMPLETED", 0)


async def test_the_worker_says_when_a_failed_run_is_tried_again(runtime: Runtime) -> None:
    """With a moment it is RETRYING until then; without one it is FAILED, whatever its policy."""
    later, never = await runtime.accept(), await runtime.accept()
    await runtime.one.assigned.get()
    await runtime.one.assigned.get()
    at = time.time() + 1000
    outcomes = [
        RunOutcome(run_id=later, attempt=1, status="FAILED", retry_at=at),
        RunOutcome(run_id=never, attempt=1, status="FAILED"),
    ]
    runtime.dispatcher.receive(runtime.one, Outcomes(outcomes=outcomes))
    (failed,) = await runtime.dispatcher.finished([never])
    retrying = await runtime.store.get(later)

    assert failed.status == "FAILED"
    assert (retrying.status, retrying.run_at) == ("RETRYING", at)


async def test_a_run_claimed_for_a_worker_that_is_replaced_goes_back(runtime: Runtime) -> None:
    """It was told to leave while the claim was committed, and might not hear of the run."""
    claim = runtime.store.claim

    def claim_and_retire(*args: Any, **kwargs: Any) -> Any:
        runtime.store.claim = claim
        runtime.one.is_ready = False
        runtime.pool.workers = {-1: runtime.one, 2: runtime.two}
        return claim(*args, **kwargs)

    runtime.store.claim = claim_and_retire
    run_id = await runtime.accept()

    again = await runtime.two.assigned.get()
    assert (again.id, again.attempts_used) == (run_id, 1)
    assert runtime.one.assigned.empty()


async def test_a_run_that_waits_for_input_takes_no_place(runtime: Runtime) -> None:
    """R9: while a run waits, in one call or two, it is WAITING and its place is another's."""
    run_id = await runtime.accept()
    assigned = await runtime.one.assigned.get()
    receive = runtime.dispatcher.receive
    suspended = Suspended(run_id=run_id, attempt=assigned.attempt)
    resumed = Resumed(run_id=run_id, attempt=assigned.attempt)

    receive(runtime.one, Suspended(run_id=run_id, attempt=assigned.attempt + 1))
    assert runtime.one.load == 1
    loads = []
    for message in (suspended, suspended, resumed, resumed):
        receive(runtime.one, message)
        loads.append(runtime.one.load)
    assert loads == [0, 0, 0, 1]

    receive(runtime.one, suspended)
    others = [await runtime.accept() for _ in range(10)]
    for _ in others:
        await runtime.one.assigned.get()
    assert (await runtime.store.get(run_id)).status == "WAITING"
    receive(runtime.one, completed(run_id, assigned.attempt, b"1"))
    (run,) = await runtime.dispatcher.finished([run_id])
    assert run.status == "COMPLETED"


async def test_a_worker_of_tiny_runs_gets_more_than_it_has_places_for(runtime: Runtime) -> None:
    """They begin when others end, and not a commit and a round trip later; see `Ahead`."""
    runtime.one.ahead = quick()
    for _ in range(30):
        await runtime.accept()
    for _ in range(30):
        await runtime.one.assigned.get()

    assert runtime.one.load == 30


def quick() -> Ahead:
    ahead = Ahead()
    for _ in range(100):
        ahead.ended(0.001)
    return ahead


def test_one_long_run_ends_what_a_worker_is_given_ahead() -> None:
    """Others would wait behind the next one while other workers are idle."""
    ahead = quick()
    assert ahead.most(10) == pytest.approx(200, abs=5)
    ahead.ended(3.0)
    assert ahead.most(10) == 0


def test_a_run_that_came_back_unbegun_ends_what_a_worker_is_given_ahead() -> None:
    """Its worker is stuck, or has long runs in all its places."""
    ahead = quick()
    ahead.ended(None)
    assert ahead.most(10) == 0


async def test_half_of_the_busy_workers_make_room_for_runs_that_must_run_alone(
    runtime: Runtime,
) -> None:
    """R2, R8: after a death with many neighbours two of four workers take no other run."""
    await busy_workers_and_suspects(runtime)

    open_workers = await runtime.dispatcher._hand_out._open_workers(time.time())

    assert len(open_workers) == 2


async def test_no_worker_is_kept_for_runs_that_cannot_start(runtime: Runtime) -> None:
    """R2: suspects of a task that a reload removed, or of a full queue, take no worker away."""
    dispatcher = runtime.dispatcher
    await busy_workers_and_suspects(runtime)
    one_at_a_time = TaskConfig(id="a", entrypoint="tasks:a", concurrency=1)

    dispatcher.reload({"a": one_at_a_time}, limits=LimitsConfig(), concurrency=10)
    limited = await dispatcher._hand_out._open_workers(time.time())
    dispatcher.reload({}, limits=LimitsConfig(), concurrency=10)
    removed = await dispatcher._hand_out._open_workers(time.time())

    assert (len(limited), len(removed)) == (4, 4)


async def busy_workers_and_suspects(runtime: Runtime) -> None:
    """Four workers that have something to do, one of the task, and three runs to run alone."""
    await runtime.accept()
    await runtime.one.assigned.get()
    workers = [FakeWorker(number) for number in range(10, 14)]
    runtime.pool.workers = {worker.number: worker for worker in workers}
    for worker in workers:
        worker.runs["busy"] = held("busy")
    items = [TriggerItem(task="a") for _ in range(3)]
    await runtime.dispatcher.accept(items, alone=True)


async def test_runs_given_ahead_are_not_suspected(runtime: Runtime) -> None:
    """R8: what had not begun when its worker died is queued again as if nothing had been."""
    worker = FakeWorker(9)
    ids = [f"run_{number:02}" for number in range(40)]
    worker.runs = {run_id: held(run_id) for run_id in ids}

    runtime.dispatcher.release(worker, blame=True)

    # Twice the places: outcomes that the death has swallowed were of runs before these.
    assert set(runtime.dispatcher._suspects) == set(ids[:20])


def held(run_id: str) -> HeldRun:
    run: Any = SimpleNamespace(id=run_id, task="a")

    return HeldRun(run=run)


async def test_a_run_that_expires_is_waited_for_no_longer(runtime: Runtime) -> None:
    """One that was to run alone and never started keeps no worker empty for it ever after."""
    runtime.one.is_ready = False
    item = TriggerItem(task="a", ttl=0.01)
    (accepted,) = await runtime.dispatcher.accept([item], alone=True)
    assert list(runtime.dispatcher._suspects) == [accepted.id]

    await runtime.dispatcher.finished([accepted.id])

    assert not runtime.dispatcher._suspects


async def test_a_child_that_was_deleted_is_not_waited_for(runtime: Runtime) -> None:
    """A key may outlive its run: who waits for that run is told so, and does not wait for ever."""
    item = TriggerItem(task="a", idempotency_key="k", run_at=time.time() + 3600)
    (child,) = await runtime.dispatcher.accept([item])
    await runtime.dispatcher.cancel([child.id])
    await runtime.store.prune(finished_before=time.time() + 1, keep=None)
    parent_id = await runtime.accept()
    run = await runtime.one.assigned.get()
    while run.id != parent_id:
        run = await runtime.one.assigned.get()

    ask = Trigger(request=1, run_id=run.id, attempt=run.attempt, items=[item], wait=True)
    await runtime.dispatcher._children.trigger(runtime.one, ask)

    (said,) = [each for each in runtime.one.said if isinstance(each, TriggerRefused)]
    assert child.id in said.message


async def test_what_a_deleted_run_has_left_behind_is_refused(runtime: Runtime) -> None:
    """A thread that outlives its run asks for another one: it is told, and the runtime goes on."""
    run_id = await runtime.accept()
    run = await runtime.one.assigned.get()
    runtime.dispatcher.receive(runtime.one, completed(run_id, run.attempt, b"1"))
    await runtime.dispatcher.finished([run_id])
    await runtime.store.prune(finished_before=time.time() + 1, keep=None)

    item = TriggerItem(task="a")
    ask = Trigger(request=1, run_id=run_id, attempt=run.attempt, items=[item], wait=False)
    await runtime.dispatcher._children.trigger(runtime.one, ask)

    (said,) = [each for each in runtime.one.said if isinstance(each, TriggerRefused)]
    assert run_id in said.message


async def test_a_run_that_is_to_be_alone_is_not_handed_out_in_the_commit_of_its_accept(
    runtime: Runtime,
) -> None:
    """Though another accept wakes the hand-out in that moment: a crashed loop has no neighbours."""
    first = await runtime.accept()
    run = await runtime.one.assigned.get()
    item = TriggerItem(task="a")
    (alone,), (other,) = await asyncio.gather(
        runtime.dispatcher.accept([item], alone=True), runtime.dispatcher.accept([item])
    )
    await runtime.store.pass_time(0)  # behind every claim so far
    await runtime.store.pass_time(0)
    assert set(runtime.one.runs) == {first}

    runtime.dispatcher.receive(runtime.one, completed(first, run.attempt, b"1"))
    run = await runtime.one.assigned.get()
    assert (run.id, set(runtime.one.runs)) == (alone.id, {alone.id})
    runtime.dispatcher.receive(runtime.one, completed(run.id, run.attempt, b"1"))
    assert (await runtime.one.assigned.get()).id == other.id


async def test_a_child_that_is_deleted_in_the_moment_of_its_end(runtime: Runtime) -> None:
    """Whoever waits for it hears that its outcome is not known, and gets no shorter list."""
    item = TriggerItem(task="a", idempotency_key="k")
    (child,) = await runtime.dispatcher.accept([item])
    executed = await runtime.one.assigned.get()
    await runtime.accept()
    parent = await runtime.one.assigned.get()
    ask = Trigger(request=1, run_id=parent.id, attempt=parent.attempt, items=[item], wait=True)
    asking = asyncio.create_task(runtime.dispatcher._children.trigger(runtime.one, ask))
    while not len(runtime.dispatcher._watchers):
        await asyncio.sleep(0)

    runtime.dispatcher.receive(runtime.one, completed(child.id, executed.attempt, b"1"))
    runtime.dispatcher._outcomes.flush()
    await runtime.store.prune(finished_before=time.time() + 1, keep=None)
    await asking

    (said,) = [each for each in runtime.one.said if isinstance(each, TriggerRefused)]
    assert child.id in said.message
