"""kill -9 of a worker, of the process that mints, and of the supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.acceptance.reading import read_stream
from tests.runtime_process import RuntimeProcess, wait_until_gone

TASKS = """
import asyncio
import os
import subprocess
import sys
from td_worker import context, streams, tasks

async def write_for_ever_once(payload):
    attempt = context.attempt.number
    async with streams.writer("log") as writer:
        number = 0
        while attempt == 1 or number < 100:
            await writer.write([attempt, number])
            number += 1
            if number % 50 == 0:
                await writer.flush()
                print("acked", number)
    return attempt

async def append_to(payload):
    await streams.append("shared", payload["text"], target=payload["run"])
    return context.attempt.number

async def hold(payload):
    if context.attempt.number == 1:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        print("child", child.pid)
        await asyncio.sleep(3600)
    return context.attempt.number

async def ignore_everything(payload):
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("cancelled")

async def count_up(payload):
    done = 0
    if context.attempt.number > 1:
        async for _ in streams.read(context.run.id, "numbers", timeout=1):
            done += 1
    async with streams.writer("numbers") as writer:
        for number in range(done, payload["to"]):
            await writer.write(number)
            if number == payload["pause_at"] and context.attempt.number == 1:
                await writer.flush()
                print("paused")
                await asyncio.sleep(3600)
    return done

def die(payload):
    os.kill(os.getpid(), 9)

async def wait_for_children(payload):
    named = await tasks.trigger_and_wait("child", 1, idempotency_key="named")
    doomed = await tasks.trigger_and_wait("die")
    late = await tasks.batch_trigger_and_wait("child", [2, 3])
    results = [named, doomed, *late]
    return context.attempt.number, [[each.id, each.status] for each in results]

async def child(payload):
    return payload
"""


DEATH = "the worker died under this run (signal 9)"


def _pid_of(runtime: RuntimeProcess, run_id: str, attempt: int = 1) -> int:
    pid: int = runtime.event("run.started", run_id=run_id, attempt=attempt)["pid"]
    return pid


def test_a_killed_workers_run_starts_again_elsewhere_and_keeps_what_was_acked(
    data_dir: Path,
) -> None:
    """R2: the run starts again on the worker that is left; acked records are there once."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2) as runtime:
        run_id = runtime.trigger("write_for_ever_once")
        victim = _pid_of(runtime, run_id)
        runtime.until(
            lambda _: len(runtime.find("task.printed", run_id=run_id)) >= 10, "500 acked chunks"
        )

        os.kill(victim, signal.SIGKILL)
        view = runtime.view(run_id)

        others = {line["worker_pid"] for line in runtime.find("worker.started")[:2]} - {victim}
        assert view.outcome.status == "COMPLETED"
        assert view.attempt == 2
        assert {_pid_of(runtime, run_id, attempt=2)} == others
        acked = max(
            int(line["text"].split()[1])
            for line in runtime.find("task.printed", run_id=run_id, attempt=1)
        )
        chunks = read_stream(runtime, run_id, "log")
        first = [number for attempt, number in chunks if attempt == 1]
        assert first == list(range(len(first)))
        assert len(first) >= acked
        assert [number for attempt, number in chunks if attempt == 2] == list(range(100))
        assert runtime.event("worker.exited", worker_pid=victim)["signal"] == "SIGKILL"


def test_the_resume_recipe_of_the_docs_writes_every_number_once(data_dir: Path) -> None:
    """docs/concepts/streams.md: a killed run that reads what is there goes on right behind it."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2) as runtime:
        run_id = runtime.trigger("count_up", {"to": 1000, "pause_at": 399})
        runtime.event("task.printed", run_id=run_id, text="paused")

        os.kill(_pid_of(runtime, run_id), signal.SIGKILL)

        assert runtime.output(run_id) == 400
        assert read_stream(runtime, run_id, "numbers") == list(range(1000))


def test_a_killed_worker_is_replaced(data_dir: Path) -> None:
    """A worker that was killed idle is replaced by another process of the same number."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2) as runtime:
        victim = runtime.status().workers[0]

        os.kill(victim.pid, signal.SIGKILL)
        runtime.until(
            lambda _: len(runtime.find("worker.booted", number=victim.number)) == 2, "the successor"
        )

        workers = runtime.status().workers
        assert [worker.number for worker in workers] == [1, 2]
        assert workers[0].pid != victim.pid
        assert workers[0].restarts == 1


def test_a_killed_minter_holds_nobody_up(data_dir: Path) -> None:
    """C6: with the minting process killed, the next caller mints; no lock is waited out."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2, drain_timeout="10ms") as runtime:
        target = runtime.trigger("hold")
        _pid_of(runtime, target)
        runtime.fault(kind="delay", seconds=300, target="control-plane", count=1)
        first = runtime.trigger("append_to", {"run": target, "text": "first"})
        minter = _pid_of(runtime, first)
        slot = f"run/{target}/shared"
        while runtime.stats().puts.get(slot) != 1:
            pass
        second = runtime.trigger("append_to", {"run": target, "text": "second"})
        runtime.event("run.started", run_id=second)

        os.kill(minter, signal.SIGKILL)

        assert runtime.result(second).status == "COMPLETED"
        assert runtime.result(first).status == "COMPLETED"
        assert runtime.stats().puts[slot] == 2
        assert not runtime.find("lock.timed_out")
        assert not runtime.find("cache.degraded")
        assert sorted(read_stream(runtime, target, "shared")) == ["first", "second"]


def test_a_killed_supervisor_leaves_nothing_and_the_next_one_finishes_the_runs(
    data_dir: Path,
) -> None:
    """R1, R3: workers, gateway, log sink and what tasks had started end; the run is not lost."""
    runtime = RuntimeProcess(data_dir, tasks=TASKS, workers=2)
    with runtime:
        run_id = runtime.trigger("hold")
        child = int(runtime.event("task.printed", run_id=run_id)["text"].split()[1])
        status = runtime.status()
        pids = [worker.pid for worker in status.workers]
        pids += [child, _child_of(runtime.process.pid), status.gateway_pid or 0]

        runtime.kill()
        left = wait_until_gone(pids, within_s=10.0)

        assert left == []
        runtime.start()
        view = runtime.view(run_id)
        assert view.outcome.status == "COMPLETED"
        assert view.attempt == 2
        assert runtime.event("run.requeued", run_id=run_id)


def _child_of(supervisor: int) -> int:
    """Return the log sink: the supervisor's first child."""
    return int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0])


def test_a_stopped_worker_dies_with_its_supervisor(data_dir: Path) -> None:
    """R3: a worker that cannot run any code, since it is stopped, ends with its supervisor."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        pid = runtime.status().workers[0].pid
        os.kill(pid, signal.SIGSTOP)

        runtime.kill()

        assert wait_until_gone([pid], within_s=10.0) == []


def test_a_second_supervisor_on_one_data_folder_is_refused(data_dir: Path) -> None:
    """R3: the second `start` exits with 8 and names the first one's process."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        second = subprocess.run(
            [sys.executable, "-m", "td_runtime", "start", "-c", str(runtime.config)],
            capture_output=True,
            text=True,
            check=False,
        )

        assert second.returncode == 8
        assert f"pid {runtime.process.pid}" in second.stderr
        assert second.stdout == ""


def test_a_run_that_kills_its_worker_again_and_again_is_crashed(data_dir: Path) -> None:
    """R8: three worker deaths, each with that run alone in the worker, and the run is CRASHED."""
    options = {"die": "retry = {max_attempts = 10, min_timeout = '10ms', max_timeout = '20ms'}"}
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, task_options=options) as runtime:
        view = runtime.view(runtime.trigger("die"))

        assert view.outcome.status == "CRASHED"
        assert view.outcome.error is not None
        assert "signal 9" in view.outcome.error.message
        assert view.attempt == 3


def test_a_parent_whose_child_kills_its_worker_is_not_blamed(data_dir: Path) -> None:
    """R8, R9: it starts over with each death, and finds every child that it had triggered."""
    options = {"die": "retry = {max_attempts = 10, min_timeout = '10ms', max_timeout = '20ms'}"}
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, task_options=options) as runtime:
        parent = runtime.trigger("wait_for_children")
        attempt, children = runtime.output(parent)

        assert attempt > 1
        assert [status for _, status in children] == [
            "COMPLETED",
            "CRASHED",
            "COMPLETED",
            "COMPLETED",
        ]
        accepted = [line["run_id"] for line in runtime.find("run.accepted")]
        assert sorted(accepted) == sorted([parent, *(child for child, _ in children)])
        deaths = runtime.find("run.requeued", error_message=DEATH)
        deaths += runtime.find("run.retried", error_message=DEATH)
        assert {line["task"] for line in deaths} == {"die"}


def test_a_run_over_its_time_that_ignores_its_end_is_killed(data_dir: Path) -> None:
    """max_duration: the run is TIMED_OUT though it swallows its cancellation; others go on."""
    options = {"ignore_everything": "max_duration = '200ms'"}
    grace = "cancel_grace = '300ms'"
    runtime = RuntimeProcess(data_dir, tasks=TASKS, workers=1, task_options=options, options=grace)
    with runtime:
        run_id = runtime.trigger("ignore_everything")
        neighbour = runtime.trigger("hold")

        assert runtime.result(run_id).status == "TIMED_OUT"
        killed = runtime.event("worker.killed", run_id=run_id)
        assert killed["reason"] == "a run ignored its max_duration"
        assert runtime.view(neighbour).outcome.status == "COMPLETED"


def test_a_drain_gives_runs_their_time_then_requeues_them(data_dir: Path) -> None:
    """R4: SIGTERM with a run under way: after drain_timeout it is requeued, and runs again."""
    runtime = RuntimeProcess(data_dir, tasks=TASKS, workers=2, drain_timeout="100ms")
    with runtime:
        run_id = runtime.trigger("hold")
        _pid_of(runtime, run_id)

        assert runtime.stop() == 0

        assert runtime.event("run.requeued", run_id=run_id)
        runtime.start()
        assert runtime.output(run_id) == 2
