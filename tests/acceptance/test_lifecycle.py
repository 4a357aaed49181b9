"""Workers and runs from their start to their end, whatever task code does to its process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.runtime_process import RuntimeProcess

TASKS = """
import asyncio
import os
import sys
import time
from td_worker import AbortTaskRunError, context, tasks

if os.path.exists(os.path.join(os.path.dirname(__file__), "slow")):
    time.sleep(3600)

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

class BrokenError(Exception):
    def __str__(self):
        return "a file \\udc80"

async def fail(payload):
    if payload == "abort":
        raise AbortTaskRunError("no use")
    raise BrokenError from KeyError("cause")
"""


def _open_files(runtime: RuntimeProcess) -> int:
    return len(os.listdir(f"/proc/{runtime.process.pid}/fd"))


def test_a_worker_whose_task_closes_its_descriptors_is_replaced(data_dir: Path) -> None:
    """R2: the worker lives on but hears nothing; it is killed, and its run starts again."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        assert runtime.output(runtime.trigger("close_descriptors")) == 2


def test_a_task_finds_nothing_on_stdin(data_dir: Path) -> None:
    """Reading it gives its end, and not what some other descriptor of the worker has."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        assert runtime.output(runtime.trigger("read_stdin")) == ["", ""]


def test_dead_workers_leave_no_descriptors(data_dir: Path) -> None:
    """After six deaths of two workers the supervisor has as many files open as before."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2) as runtime:
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


def test_children_with_large_outputs_reach_their_parent(data_dir: Path) -> None:
    """72 MiB of outputs are more than one message between processes may have."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2) as runtime:
        assert runtime.output(runtime.trigger("parent_of_large")) == 8 * 9 * 2**20
        assert not runtime.find("worker.exited")


def test_a_batch_larger_than_a_message_is_refused(data_dir: Path) -> None:
    """The task gets an error that it can handle; its worker lives."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        assert runtime.output(runtime.trigger("ask_for_too_much")) == "TriggerRefusedError"
        assert not runtime.find("worker.exited")


def test_errors_survive(data_dir: Path) -> None:
    """R6: type, message, traceback with its cause, and whether another attempt is any use."""
    options = {"fail": "retry = {max_attempts = 2, min_timeout = '10ms', max_timeout = '20ms'}"}
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, task_options=options) as runtime:
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
