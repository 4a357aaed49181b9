"""Loops: as many runs as the config says, kept alive over deaths, drains and restarts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tests.runtime_process import RuntimeProcess

TASKS = """
import asyncio
import os
import signal
import time
from td_worker import context

async def watch(payload):
    while True:
        await asyncio.sleep(3600)

def plain(payload):
    while not context.is_cancelled():
        time.sleep(0.01)

async def returns(payload):
    return payload

async def raises(payload):
    raise ValueError("nothing to watch")

async def deadly(payload):
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)

async def hangs(payload):
    time.sleep(3600)

async def hello(payload):
    return "hello"
"""


def loops(folder: Path, workers: int = 2, **replicas: int) -> RuntimeProcess:
    options = {task: f"replicas = {count}" for task, count in replicas.items()}

    return RuntimeProcess(
        folder, tasks=TASKS, workers=workers, task_options=options, drain_timeout="10m"
    )


def started(runtime: RuntimeProcess, task: str, count: int) -> list[dict[str, Any]]:
    runtime.until(
        lambda _: len(runtime.find("run.started", task=task)) >= count, f"{count} of {task}"
    )

    return runtime.find("run.started", task=task)


def _spread(runtime: RuntimeProcess) -> list[int]:
    """How many of the runs each worker has by now."""
    where = {e["run_id"]: e["worker"] for e in runtime.find("run.started", task="watch")}

    return sorted(Counter(where.values()).values())


def test_replicas_run_over_all_workers_and_leave_room_for_others(data_dir: Path) -> None:
    """Four replicas are four runs, in both workers, and another task still gets its turn."""
    with loops(data_dir, watch=4) as runtime:
        runtime.until(lambda _: _spread(runtime) == [2, 2], "two in each worker")

        assert len({event["run_id"] for event in runtime.find("run.started", task="watch")}) == 4
        assert runtime.output(runtime.trigger("hello")) == "hello"
        assert runtime.status().runs["EXECUTING"] == 4


def test_a_drain_does_not_wait_for_loops(data_dir: Path) -> None:
    """Neither an async nor a plain loop holds up a stop whose drain may take ten minutes."""
    with loops(data_dir, watch=1, plain=1) as runtime:
        started(runtime, "watch", 1)
        started(runtime, "plain", 1)

        assert runtime.stop() == 0


def test_a_successor_goes_on_with_the_same_runs(data_dir: Path) -> None:
    """After kill -9 of the supervisor each replica is the run it was, and there are no more."""
    with loops(data_dir, watch=3) as runtime:
        before = {event["run_id"] for event in started(runtime, "watch", 3)}
        runtime.kill()
        runtime.start()
        started(runtime, "watch", 6)

        assert {event["run_id"] for event in runtime.find("run.started", task="watch")} == before
        assert len(runtime.find("loop.started", task="watch")) == 3


def test_the_ends_of_replicas_are_told_apart_and_back_off(data_dir: Path) -> None:
    """One that returns and one that raises start again, later each time, as runs of their own."""
    with loops(data_dir, returns=1, raises=1) as runtime:
        runtime.until(
            lambda _: (
                len(runtime.find("loop.returned", task="returns")) >= 4
                and len(runtime.find("loop.raised", task="raises")) >= 4
            ),
            "four ends each",
        )

        for name, task in (("loop.returned", "returns"), ("loop.raised", "raises")):
            ends = runtime.find(name, task=task)[:4]
            assert len({end["run_id"] for end in ends}) == 4
            assert ends[3]["delay_s"] > ends[0]["delay_s"]
        assert runtime.find("loop.raised")[0]["error_message"] == "nothing to watch"


def test_a_replica_that_hangs_is_told_from_one_that_crashes(data_dir: Path) -> None:
    """Killed since its loop was blocked: loop.hung with the seconds, and the next one starts."""
    options = {"hangs": "replicas = 1\nmax_crashes = 1"}
    runtime = RuntimeProcess(
        data_dir,
        tasks=TASKS,
        workers=1,
        task_options=options,
        options="stalled_after = '100ms'\nkill_stalled_after = '300ms'",
        drain_timeout="1s",
    )
    with runtime:
        hung = runtime.event("loop.hung", task="hangs", replica=1)
        assert hung["error_type"] == "WorkerStalled"
        assert "blocked for 0." in hung["error_message"]
        assert runtime.find("loop.crashed") == []
        assert len(started(runtime, "hangs", 2)) >= 2


def test_a_deadly_replica_is_found_out_and_its_neighbours_are_left_in_peace(
    data_dir: Path,
) -> None:
    """R8: it is caught alone, and from then on takes no other run down with it."""
    with loops(data_dir, watch=3, deadly=1) as runtime:
        runtime.until(lambda _: len(runtime.find("loop.crashed")) >= 3, "three crashes")

        assert {end["task"] for end in runtime.find("loop.crashed")} == {"deadly"}
        assert runtime.find("run.crashed", task="watch") == []
        first_caught = runtime.events.index(runtime.find("loop.crashed")[0])
        deaths = [e for e in runtime.events[first_caught:] if e["event"] == "worker.exited"]
        assert all(len(death["runs"]) <= 1 for death in deaths)
