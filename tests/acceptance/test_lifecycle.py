"""Workers and runs from their start to their end, whatever task code does to its process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from td_runtime.control import (
    Accepted,
    ControlClient,
    ControlRefusedError,
    GetRun,
    RunDetails,
    RunView,
    TriggerRuns,
    WaitForRun,
)
from td_worker.messages import TriggerItem
from tests.runtime_process import RuntimeProcess, is_alive, wait_until_gone

TASKS = """
import asyncio
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from td_worker import AbortTaskRunError, context, tasks
from td_worker.sync import tasks as sync_tasks

def _is_there(name):
    return os.path.exists(os.path.join(os.path.dirname(__file__), name))

if _is_there("slow"):
    time.sleep(3600)
if _is_there("deadly"):
    os._exit(9)
if _is_there("broken"):
    raise ValueError("no good")

async def close_descriptors(payload):
    if context.attempt.number == 1:
        os.closerange(3, 512)
        while True:
            time.sleep(1)
    return context.attempt.number

def read_stdin(payload):
    return [sys.stdin.read(), os.read(0, 10).decode()]

async def large(payload):
    return "x" * 9 * 2**20

async def parent_of_large(payload):
    results = await tasks.batch_trigger_and_wait("large", [None] * 8)
    return sum(len(result.unwrap()) for result in results)

async def ask_for_too_much(payload):
    try:
        await tasks.batch_trigger("large", ["x" * 9 * 2**20] * 8)
    except Exception as error:
        return type(error).__name__

async def child(payload):
    print("child", payload)
    while payload == "held" and not _is_there("go"):
        await asyncio.sleep(0.01)
    return payload

async def parent(payload):
    print("parent")
    results = await tasks.batch_trigger_and_wait("child", payload)
    return [result.unwrap() for result in results]

def plain_parent(payload):
    print("parent")
    try:
        return [result.unwrap() for result in sync_tasks.batch_trigger_and_wait("child", payload)]
    except Exception:
        return "a wait that was cut short must not look like a failed child"

async def waits_often(payload):
    results = await asyncio.gather(*(tasks.trigger_and_wait("child", n) for n in range(payload)))
    return [result.unwrap() for result in results]

async def innocent(payload):
    await asyncio.sleep(3600 if context.attempt.number == 1 else 0.3)
    return payload

async def poison(payload):
    print("last words")
    os.kill(os.getpid(), 9)

async def leave_a_daemon(payload):
    if context.attempt.number == 1:
        if os.fork() == 0:
            os.setsid()
            print("daemon", os.getpid())
            time.sleep(600)
            os._exit(0)
        await asyncio.sleep(3600)
    return context.attempt.number

async def use_a_process_pool(payload):
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        return list(await asyncio.gather(*(loop.run_in_executor(pool, abs, -n) for n in range(9))))

class BrokenError(Exception):
    def __str__(self):
        return "a file \\udc80"

async def fail(payload):
    if payload == "abort":
        raise AbortTaskRunError("no use")
    raise BrokenError from KeyError("cause")
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    """Run one runtime for all tests whose runs leave every worker alive; at the end each is."""
    options = {"fail": "retry = {max_attempts = 2, min_timeout = '10ms', max_timeout = '20ms'}"}
    folder = tmp_path_factory.mktemp("lifecycle")
    with RuntimeProcess(folder, tasks=TASKS, workers=2, task_options=options) as started:
        yield started
        assert not started.find("worker.exited")


def _open_files(runtime: RuntimeProcess) -> int:
    return len(os.listdir(f"/proc/{runtime.process.pid}/fd"))


def test_a_worker_whose_task_closes_its_descriptors_is_replaced(data_dir: Path) -> None:
    """R2: the worker lives on but hears nothing; it is killed, and its run starts again."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        assert runtime.output(runtime.trigger("close_descriptors")) == 2


def test_a_process_that_a_task_has_forked_holds_no_start_up(data_dir: Path) -> None:
    """R3: it has left the worker's group and lives on, but without the workers' lock."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        run_id = runtime.trigger("leave_a_daemon")
        runtime.until(lambda _: bool(runtime.find("task.printed", run_id=run_id)), "the daemon")
        daemon = int(runtime.find("task.printed", run_id=run_id)[0]["text"].split()[1])
        try:
            # Not `kill`, which waits for the end of stdout: the daemon has a copy of it, too.
            runtime.process.kill()
            runtime.process.wait()
            runtime._owner.close()
            runtime.start()

            assert runtime.output(run_id) == 2
            assert is_alive(daemon)
        finally:
            os.kill(daemon, signal.SIGKILL)


def test_a_task_may_use_a_process_pool(data_dir: Path) -> None:
    """Forked processes of task code do their work, end with it, and leave the worker alone."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        assert runtime.output(runtime.trigger("use_a_process_pool")) == list(range(9))
        assert runtime.stop() == 0
        assert runtime.find("worker.exited", status=0)


def test_a_task_finds_nothing_on_stdin(runtime: RuntimeProcess) -> None:
    """Reading it gives its end, and not what some other descriptor of the worker has."""
    assert runtime.output(runtime.trigger("read_stdin")) == ["", ""]


def test_dead_workers_leave_no_descriptors(data_dir: Path) -> None:
    """After six deaths of two workers the supervisor has as many files open as before."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2) as runtime:
        runtime.until(lambda _: len(runtime.find("worker.booted")) == 2, "both workers")
        before = _open_files(runtime)
        for death in range(6):
            number = 1 + death % 2
            os.kill(runtime.status().workers[number - 1].pid, signal.SIGKILL)
            runtime.until(
                lambda _: len(runtime.find("worker.booted")) == 3 + death,  # noqa: B023
                "the successor",
            )

        assert _open_files(runtime) == before


def test_a_stop_does_not_wait_for_a_worker_that_boots(data_dir: Path) -> None:
    """R4: a worker in the middle of importing its tasks has no run, and is not waited for."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, drain_timeout="10m") as runtime:
        (runtime.folder / "slow").touch()
        os.kill(runtime.status().workers[0].pid, signal.SIGKILL)
        runtime.until(lambda _: len(runtime.find("worker.started")) == 2, "the successor")

        assert runtime.stop() == 0


def test_children_with_large_outputs_reach_their_parent(runtime: RuntimeProcess) -> None:
    """72 MiB of outputs are more than one message between processes may have."""
    run_id = runtime.trigger("parent_of_large")

    assert runtime.output(run_id) == 8 * 9 * 2**20
    assert len(runtime.tree(run_id)) == 9
    assert not runtime.find("worker.exited")


def test_a_batch_larger_than_a_message_is_refused(runtime: RuntimeProcess) -> None:
    """The task gets an error that it can handle; its worker lives."""
    assert runtime.output(runtime.trigger("ask_for_too_much")) == "TriggerRefusedError"
    assert not runtime.find("worker.exited")


def test_errors_survive(runtime: RuntimeProcess) -> None:
    """R6: type, message, traceback with its cause, and whether another attempt is any use."""
    failed = runtime.view(runtime.trigger("fail"))
    aborted = runtime.view(runtime.trigger("fail", "abort"))

    assert (failed.outcome.status, failed.attempt) == ("FAILED", 2)
    error = failed.outcome.error
    assert error is not None
    assert (error.type, error.message) == ("BrokenError", "a file \\udc80")
    assert "KeyError: 'cause'" in error.traceback
    assert 'raise BrokenError from KeyError("cause")' in error.traceback
    assert error.retryable
    assert (aborted.outcome.status, aborted.attempt) == ("FAILED", 1)
    assert aborted.outcome.error is not None
    assert not aborted.outcome.error.retryable


def test_a_request_larger_than_a_message_is_refused(runtime: RuntimeProcess) -> None:
    """The client is told so, and not that nobody answers."""
    with pytest.raises(ControlRefusedError, match="fewer runs"):
        runtime.trigger_many("child", ["x" * 9 * 2**20] * 2)

    assert runtime.output(runtime.trigger("child", 1)) == 1


def test_every_accepted_run_is_executed(data_dir: Path) -> None:
    """R1: kill -9 of the supervisor the moment it has accepted; the next one executes them all."""
    runtime = RuntimeProcess(data_dir, tasks=TASKS, workers=2)
    with runtime:
        run_ids = runtime.trigger_many("child", list(range(200)))
        runtime.kill()

        runtime.start()

        assert [runtime.output(run_id) for run_id in run_ids] == list(range(200))


def test_a_worker_that_dies_at_boot_is_given_up(data_dir: Path) -> None:
    """R7: its successors die before they are ready; five times, each later, and the exit is 7."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        (runtime.folder / "deadly").touch()
        os.kill(runtime.status().workers[0].pid, signal.SIGKILL)

        assert runtime.wait_for_exit() == 7
        assert len(runtime.find("worker.exited", status=9)) == 5
        delays = [event["delay_s"] for event in runtime.find("worker.restart_scheduled")]
        assert len(delays) == 5
        assert delays[-1] > delays[0]
        assert runtime.find("worker.abandoned", number=1)


def test_a_worker_that_was_of_use_is_replaced_soon(data_dir: Path) -> None:
    """Deaths in a row, each after a run that ended, do not add up to a long pause."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        for number in range(4):
            assert runtime.output(runtime.trigger("child", number)) == number
            os.kill(runtime.status().workers[0].pid, signal.SIGKILL)
            runtime.until(
                lambda _: len(runtime.find("worker.restart_scheduled")) == number + 1,  # noqa: B023
                "the next worker's turn",
            )

        delays = [event["delay_s"] for event in runtime.find("worker.restart_scheduled")]
        assert max(delays) <= 0.1


def test_a_dead_log_sink_ends_the_runtime(data_dir: Path) -> None:
    """Nothing would be heard of it any more: it stops, and the exit is 1."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        pid = runtime.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        workers = [worker.pid for worker in runtime.status().workers]

        os.kill(int(children[0]), signal.SIGKILL)

        assert runtime.wait_for_exit() == 1
        assert wait_until_gone(workers, within_s=0.0) == []


def test_tasks_that_only_a_worker_cannot_import_end_the_start(data_dir: Path) -> None:
    """R7: a module broken since the start: trying again is no use, and the exit is 4."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        (runtime.folder / "broken").touch()
        os.kill(runtime.status().workers[0].pid, signal.SIGKILL)

        assert runtime.wait_for_exit() == 4
        assert "no good" in runtime.event("worker.boot_failed")["error_message"]
        assert len(runtime.find("worker.started")) == 2


def test_neighbours_of_a_poisonous_run_are_not_blamed(data_dir: Path) -> None:
    """R8: the run that kills its worker is CRASHED after max_crashes; five others COMPLETED."""
    options = {"poison": "retry = {max_attempts = 10, min_timeout = '10ms', max_timeout = '20ms'}"}
    with RuntimeProcess(
        data_dir, tasks=TASKS, workers=1, concurrency=10, task_options=options
    ) as runtime:
        innocent = runtime.trigger_many("innocent", list(range(5)))
        for run_id in innocent:
            runtime.event("run.started", run_id=run_id)
        poison = runtime.view(runtime.trigger("poison"))
        others = [runtime.view(run_id) for run_id in innocent]

        assert poison.outcome.status == "CRASHED"
        # With its neighbours once, which nobody is blamed for, then three times alone.
        assert poison.attempt == 4
        assert [view.outcome.status for view in others] == ["COMPLETED"] * 5
        assert [view.attempt for view in others] == [2] * 5
        assert len(runtime.find("worker.exited")) == 4
        with ControlClient(runtime.data_dir) as client:
            tail = client.ask(GetRun(run_id=poison.outcome.id), RunDetails).log_tail
        assert tail is not None
        assert '"run.started"' in tail.splitlines()[0]
        assert '"last words"' in tail.splitlines()[1]


def test_a_run_that_waits_in_several_calls_leaves_its_place_to_their_children(
    data_dir: Path,
) -> None:
    """R9: with one place in all, six waiting calls at once end; the first answer takes no place."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, concurrency=1) as runtime:
        assert runtime.output(runtime.trigger("waits_often", 6)) == list(range(6))


@pytest.mark.parametrize("parent", ["parent", "plain_parent"])
def test_a_parent_that_is_killed_finds_its_children_again(data_dir: Path, parent: str) -> None:
    """R9: its worker dies while it waits; its next attempt waits for the very same children."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2, concurrency=1) as runtime:
        run_id = runtime.trigger(parent, [1, "held", 3])
        runtime.event("run.waiting", run_id=run_id)
        held = runtime.event("task.printed", text="child held")
        victim = runtime.event("run.started", run_id=run_id)["pid"]

        os.kill(victim, signal.SIGKILL)
        runtime.event("run.started", run_id=run_id, attempt=2)
        (runtime.folder / "go").touch()

        assert runtime.output(run_id) == [1, "held", 3]
        children = [view for view in runtime.tree(run_id) if view.outcome.id != run_id]
        assert len(children) == 3
        assert len(runtime.find("task.printed", text="child held")) == 1 + (held["pid"] == victim)


@pytest.mark.parametrize("parent", ["parent", "plain_parent"])
def test_a_drain_does_not_wait_for_children_that_cannot_start(data_dir: Path, parent: str) -> None:
    """R4: a parent of a queued child goes back to the queue at once, and goes on after the start.

    So does its own parent's wait; a child under way gets its time and ends.
    """
    runtime = RuntimeProcess(data_dir, tasks=TASKS, workers=1, concurrency=1, drain_timeout="10m")
    with runtime:
        run_id = runtime.trigger(parent, ["held", 2])
        runtime.event("task.printed", text="child held")
        runtime.process.send_signal(signal.SIGTERM)
        runtime.event("run.requeued", run_id=run_id)
        (runtime.folder / "go").touch()

        assert runtime.wait_for_exit() == 0

        runtime.start()
        assert runtime.output(run_id) == ["held", 2]
        assert len(runtime.find("task.printed", text="child held")) == 1


def test_a_parent_whose_children_are_under_way_ends_in_the_drain(data_dir: Path) -> None:
    """R4: nothing is cut short that can end by itself."""
    runtime = RuntimeProcess(data_dir, tasks=TASKS, workers=1, drain_timeout="10m")
    with runtime:
        run_id = runtime.trigger("parent", ["held"])
        runtime.event("task.printed", text="child held")
        runtime.process.send_signal(signal.SIGTERM)
        runtime.event("runtime.drain_requested")
        (runtime.folder / "go").touch()

        assert runtime.wait_for_exit() == 0
        assert runtime.find("run.completed", run_id=run_id)


def test_clients_that_wait_are_answered_at_the_stop(data_dir: Path) -> None:
    """One hears how its run ended in the drain, the other that its run is left for the next start.

    A third one does not read its answer, and holds nothing up.
    """
    with RuntimeProcess(
        data_dir, tasks=TASKS, workers=1, concurrency=1, drain_timeout="10m"
    ) as runtime:
        large = runtime.trigger("large")
        runtime.result(large)
        held = runtime.trigger("child", "held")
        queued = runtime.trigger("child", "queued")
        runtime.event("task.printed", text="child held")
        clients = [ControlClient(runtime.data_dir) for _ in range(3)]
        for client, run_id in zip(clients, [held, queued, large], strict=True):
            client.send(WaitForRun(run_id=run_id))
        with ControlClient(runtime.data_dir) as last:  # the others' requests have been read
            last.ask(TriggerRuns(items=[TriggerItem(task="child")]), Accepted)

        runtime.process.send_signal(signal.SIGTERM)
        with pytest.raises(ControlRefusedError, match="is queued"):
            clients[1].receive(RunView)
        (runtime.folder / "go").touch()

        assert clients[0].receive(RunView).outcome.output == b'"held"'
        assert runtime.wait_for_exit() == 0
        for client in clients:
            client.close()


def test_a_gateway_that_cannot_open_its_store_ends_the_start_with_6(data_dir: Path) -> None:
    """A platform.db that is no database is told at once, by the exit code for stores."""
    runtime = RuntimeProcess(data_dir, tasks="async def nothing(payload):\n    pass\n", workers=1)
    runtime.data_dir.path.mkdir(mode=0o700)
    runtime.data_dir.platform_store.write_bytes(b"not a database" * 1000)

    with pytest.raises(AssertionError, match=r"platform\.db"):
        runtime.start()

    assert runtime.process.returncode == 6
