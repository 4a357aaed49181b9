"""What workers notice about themselves: a stuck loop, too many runs, too much memory; and hooks."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from tests.runtime_process import RuntimeProcess

TASKS = """
import asyncio
import time
from td_worker import context, tasks
from td_worker.sync import tasks as sync_tasks

kept = []

async def block(payload):
    if context.attempt.number <= payload.get("times", 1):
        _hold_the_loop(payload["seconds"])
    return context.attempt.number

def _hold_the_loop(seconds):
    time.sleep(seconds)

async def spin(payload):
    while True:
        pass

def sleep_in_thread(payload):
    time.sleep(payload)

async def hold_once(payload):
    if context.attempt.number == 1:
        await asyncio.sleep(3600)
    return context.attempt.number

async def add(payload):
    return payload

def keep(payload):
    if len(kept) < 3:
        kept.append(b"x" * 40_000_000)

async def wait_for_child(payload):
    result = await tasks.trigger_and_wait("sleep_in_thread", 1.0)
    return result.status

def wait_for_child_plainly(payload):
    return sync_tasks.trigger_and_wait("sleep_in_thread", 1.0).status

async def fail(payload):
    raise ValueError(payload)
"""

LIFECYCLE = """
from td_worker import context
from td_worker.hooks import Caught

def init():
    return {"name": "shared"}

async def middleware(call_next):
    print("begins", context.run.id)
    await call_next()
    print("ends", context.run.id)

def catch_error(error):
    if context.attempt.number < 4:
        return Caught(retry_delay=0, error=error)

async def on_failure(payload, error, init):
    print("failed", payload, error, init["name"])
"""


def test_hooks_that_the_config_names(data_dir: Path) -> None:
    """A module beside the config: its catch_error decides, its on_failure is called once."""
    (data_dir / "lifecycle.py").write_text(LIFECYCLE)
    options = "hooks = 'lifecycle'"
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, options=options) as runtime:
        run_id = runtime.trigger("fail", 7)
        view = runtime.view(run_id)

        assert (view.outcome.status, view.attempt) == ("FAILED", 4)
        runtime.event("task.printed", run_id=run_id, text=f"begins {run_id}", attempt=4)
        runtime.event("task.printed", text="failed 7 7 shared")
        (line,) = runtime.find("task.printed", text="failed 7 7 shared")
        assert line["attempt"] == 4


def test_a_stuck_loop_is_told_with_its_stack(data_dir: Path) -> None:
    """worker.stalled names the line that blocks, worker.recovered its end; the run completes."""
    options = "stalled_after = '200ms'"
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, options=options) as runtime:
        run_id = runtime.trigger("block", {"seconds": 1.5})
        assert runtime.output(run_id) == 1

        stalled = runtime.event("worker.stalled")
        assert "_hold_the_loop" in stalled["stack"]
        assert stalled["current"] == f"run {run_id}"
        assert runtime.event("worker.recovered")["stalled_s"] > 0.2


def test_plain_tasks_in_threads_are_no_stall(data_dir: Path) -> None:
    """A thread may block as long as it likes."""
    options = "stalled_after = '100ms'"
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, options=options) as runtime:
        runtime.result(runtime.trigger("sleep_in_thread", 1.0))

        assert runtime.find("worker.stalled") == []


def test_a_loop_that_stays_stuck_is_killed(data_dir: Path) -> None:
    """kill_stalled_after: the run that blocked it alone is blamed, and tried again."""
    options = "stalled_after = '200ms'\nkill_stalled_after = '400ms'"
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, options=options) as runtime:
        run_id = runtime.trigger("block", {"seconds": 3600})

        assert runtime.output(run_id) == 2
        assert runtime.event("worker.stall_killed")
        why = runtime.event("run.requeued", run_id=run_id)["error_message"]
        assert re.fullmatch(r"the worker's loop was blocked for \d\.\d s; it was killed", why)
        assert runtime.event("worker.exited", signal="SIGKILL")["runs"] == [run_id]


def test_time_is_over_for_a_run_that_holds_the_loop(data_dir: Path) -> None:
    """max_duration ends even what no cancellation reaches; its neighbour is not blamed."""
    task_options = {"spin": "max_duration = '200ms'"}
    options = "cancel_grace = '200ms'"
    runtime = RuntimeProcess(
        data_dir, tasks=TASKS, workers=1, task_options=task_options, options=options
    )
    with runtime:
        neighbour = runtime.trigger("hold_once")
        runtime.event("run.started", run_id=neighbour)
        run_id = runtime.trigger("spin")

        outcome = runtime.result(run_id)
        assert outcome.error is not None
        assert (outcome.status, outcome.error.code) == ("TIMED_OUT", "MAX_DURATION_EXCEEDED")
        assert runtime.output(neighbour) == 2
        assert runtime.event("run.requeued", run_id=neighbour).get("error_message") is None


def test_waiting_for_a_child_is_not_counted_as_time(data_dir: Path) -> None:
    """Parents with a shorter max_duration than their child's run complete."""
    parents: list[str] = ["wait_for_child", "wait_for_child_plainly"]
    task_options = dict.fromkeys(parents, "max_duration = '500ms'")
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2, task_options=task_options) as runtime:
        runs = [runtime.trigger(parent) for parent in parents]

        assert [runtime.output(run_id) for run_id in runs] == ["COMPLETED"] * 2


def test_workers_are_replaced_after_so_many_runs(data_dir: Path) -> None:
    """One after another, without a delay, a lost run, or a worker that counts as dead."""
    options = "max_runs_per_worker = 10"
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2, options=options) as runtime:
        runs = runtime.trigger_many("add", list(range(100)))
        assert [runtime.output(run_id) for run_id in runs] == list(range(100))

        runtime.event("worker.retired", reason="runs")
        runtime.event("worker.exited", status=0, level="info")
        assert runtime.find("worker.restart_scheduled") == []
        assert runtime.find("run.requeued", error_message="") == []
        assert [worker.restarts for worker in runtime.status().workers if worker.number > 0] == [
            0,
            0,
        ]


def test_a_worker_that_has_grown_is_replaced(data_dir: Path) -> None:
    """max_memory_per_worker is looked at between runs; the next runs find a new process."""
    options = "max_memory_per_worker = '150MiB'"
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, options=options) as runtime:
        for _ in range(3):
            runtime.result(runtime.trigger("keep"))

        retired = runtime.event("worker.retired", reason="memory")
        assert retired["memory"] > 100_000_000
        runtime.event("worker.exited", worker_pid=retired["worker_pid"], status=0)
        assert runtime.output(runtime.trigger("add", 1)) == 1


def test_a_stopped_worker_is_killed(data_dir: Path) -> None:
    """Stopped by SIGSTOP it is not dead, but its runs are others' to do after kill_silent_after."""
    options = "kill_silent_after = '800ms'"
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2, options=options) as runtime:
        run_id = runtime.trigger("hold_once")
        pid = runtime.event("run.started", run_id=run_id)["pid"]
        os.kill(pid, signal.SIGSTOP)

        assert runtime.output(run_id) == 2
        assert runtime.event("worker.silenced")["worker_pid"] == pid
        why = runtime.event("run.requeued", run_id=run_id)["error_message"]
        assert why == "the worker gave no answer for 0.8 s and was killed"
