"""SIGHUP: the config and the task code are read anew while runs go on; or the terminal is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from td_runtime.control import ControlClient, ListSchedules, SchedulesView
from td_runtime.errors import TdRuntimeError
from tests.runtime_process import PATIENCE, RuntimeProcess

TASKS = """
import asyncio
import os
import time
from pathlib import Path
from td_worker import context

async def version(payload):
    return 1

async def wait_for(payload):
    while not Path(payload).exists():
        await asyncio.sleep(0.01)
    return [1, context.attempt.number]

async def hold_first(payload):
    if context.attempt.number == 1:
        await asyncio.sleep(3600)
    return context.attempt.number

async def loop(payload):
    await asyncio.sleep(3600)
"""

#: Of another size than what it replaces: Python looks at size and whole seconds to tell them apart.
TASKS_2 = (
    TASKS.replace("return 1\n", "return 2  # newer\n")
    + "\nasync def added(payload):\n    return 'added'\n"
)

ADDED = "[[tasks]]\nid = 'added'\nentrypoint = 'tasks:added'\n"


class Reloadable:
    """A runtime whose config file is edited, then reloaded."""

    def __init__(self, runtime: RuntimeProcess) -> None:
        self.runtime = runtime
        self._count = 0

    def edit(self, old: str, new: str) -> None:
        text = self.runtime.config.read_text()
        assert old in text
        self.runtime.config.write_text(text.replace(old, new))

    def code(self, source: str) -> None:
        (self.runtime.folder / "tasks.py").write_text(source)

    def reload(self, outcome: str = "reload.completed") -> dict[str, Any]:
        """Send SIGHUP and return the event that ends that reload."""
        before = len(self.runtime.find(outcome))
        self.runtime.process.send_signal(signal.SIGHUP)
        self.runtime.until(lambda _: len(self.runtime.find(outcome)) > before, outcome)

        return self.runtime.find(outcome)[-1]


def reloadable(
    folder: Path,
    *,
    workers: int = 2,
    concurrency: int = 10,
    drain_timeout: str = "20s",
    **task_options: str,
) -> RuntimeProcess:
    return RuntimeProcess(
        folder,
        tasks=TASKS,
        workers=workers,
        concurrency=concurrency,
        drain_timeout=drain_timeout,
        task_options=task_options,
    )


def test_new_code_and_a_new_task(data_dir: Path) -> None:
    """Every worker is replaced by one with the new code, and a task that was added runs."""
    with reloadable(data_dir) as runtime:
        it = Reloadable(runtime)
        before = {worker.pid for worker in runtime.status().workers}
        assert runtime.output(runtime.trigger("version")) == 1

        it.code(TASKS_2)
        runtime.config.write_text(runtime.config.read_text() + ADDED)
        assert it.reload()["added"] == ["added"]

        assert runtime.output(runtime.trigger("version")) == 2
        assert runtime.output(runtime.trigger("added")) == "added"
        workers = [each for each in runtime.status().workers if each.state == "ready"]
        assert sorted(each.number for each in workers) == [1, 2]
        assert not before & {each.pid for each in workers}
        assert [each.restarts for each in workers] == [0, 0]
        assert len(runtime.find("worker.retired", reason="reload")) == 2


def test_a_run_under_way_ends_in_the_old_worker(data_dir: Path) -> None:
    """It is neither interrupted nor started again; the old worker leaves with it."""
    with reloadable(data_dir, workers=1) as runtime:
        flag = data_dir / "flag"
        run_id = runtime.trigger("wait_for", str(flag))
        pid = runtime.event("run.started", run_id=run_id)["pid"]
        it = Reloadable(runtime)
        it.code(TASKS_2)
        it.reload()

        assert runtime.output(runtime.trigger("version")) == 2
        flag.touch()
        assert runtime.output(run_id) == [1, 1]
        runtime.event("worker.exited", worker_pid=pid, status=0)


def test_a_run_that_does_not_end_in_time_starts_again(data_dir: Path) -> None:
    """After drain_timeout it is requeued, and nobody blames it."""
    with reloadable(data_dir, workers=1, drain_timeout="300ms") as runtime:
        run_id = runtime.trigger("hold_first")
        runtime.event("run.started", run_id=run_id)
        Reloadable(runtime).reload()

        assert runtime.output(run_id) == 2
        requeued = runtime.event("run.requeued", run_id=run_id)
        assert requeued.get("error_message") is None


def test_runs_of_a_removed_task_wait(data_dir: Path) -> None:
    """They are neither lost nor failed: a config that has the task again runs them."""
    with reloadable(data_dir, workers=1, concurrency=1) as runtime:
        it = Reloadable(runtime)
        flag = data_dir / "flag"
        held = runtime.trigger("wait_for", str(flag))
        runtime.event("run.started", run_id=held)
        waiting = runtime.trigger("version")

        it.edit('id = "version"', 'id = "renamed"')
        assert it.reload()["removed"] == ["version"]
        with pytest.raises(TdRuntimeError, match="version"):
            runtime.trigger("version")
        flag.touch()
        assert runtime.output(held) == [1, 1]
        assert runtime.output(runtime.trigger("renamed")) == 1
        assert runtime.find("run.started", run_id=waiting) == []

        it.edit('id = "renamed"', 'id = "version"')
        it.reload()
        assert runtime.output(waiting) == 1


def test_a_higher_limit_lets_waiting_runs_start(data_dir: Path) -> None:
    """The queue's limit is the new one at once, for runs that waited under the old one."""
    with reloadable(data_dir, wait_for="concurrency = 1") as runtime:
        it = Reloadable(runtime)
        flag = data_dir / "flag"
        runs = [runtime.trigger("wait_for", str(flag)) for _ in range(2)]
        runtime.event("run.started", run_id=runs[0])

        it.edit("concurrency = 1\n", "concurrency = 2\n")
        it.reload()
        runtime.event("run.started", run_id=runs[1])
        flag.touch()
        assert [runtime.output(run_id) for run_id in runs] == [[1, 1]] * 2


@pytest.fixture(scope="module")
def runtime() -> Iterator[RuntimeProcess]:
    """Run one runtime for the reloads that are refused."""
    with (
        tempfile.TemporaryDirectory(prefix="td-", dir="/tmp") as folder,
        reloadable(Path(folder)) as started,
    ):
        yield started


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("workers = 2", "workers = 0", "runtime.workers = 0"),
        ("workers = 2", "wrokers = 2", "runtime.wrokers"),
        ("[runtime]", "[runtime", "td-runtime.toml:1:"),
        ("tasks:version", "tasks:versoin", "tasks[0].entrypoint = 'tasks:versoin'"),
    ],
)
def test_a_config_that_is_wrong_is_refused(
    runtime: RuntimeProcess, old: str, new: str, named: str
) -> None:
    """The event names file, key and value; workers, tasks and code stay; the next one is taken."""
    it = Reloadable(runtime)
    before = _ready(runtime)
    it.edit(old, new)
    refused = it.reload("reload.refused")

    assert named in refused["error_message"]
    assert str(runtime.config) in refused["where"]
    assert _ready(runtime) == before
    assert runtime.output(runtime.trigger("version")) == 1
    it.edit(new, old)
    it.reload()


def test_code_that_cannot_be_imported_is_refused(runtime: RuntimeProcess) -> None:
    """The import is tried beside the workers, which go on with the code they have."""
    it = Reloadable(runtime)
    before = _ready(runtime)
    it.code(TASKS + "\nimport nowhere_to_be_found\n")

    assert "nowhere_to_be_found" in it.reload("reload.refused")["error_message"]
    assert runtime.output(runtime.trigger("version")) == 1
    assert _ready(runtime) == before
    it.code(TASKS)


def test_what_needs_a_restart_is_named_and_the_rest_is_followed(data_dir: Path) -> None:
    """data_dir stays where it is; the number of workers changes, both ways."""
    with reloadable(data_dir) as runtime:
        it = Reloadable(runtime)
        it.edit('data_dir = "data"', 'data_dir = "elsewhere"')
        it.edit("workers = 2", "workers = 3")
        it.reload()

        assert runtime.event("reload.ignored")["keys"] == ["runtime.data_dir"]
        assert _numbers(runtime) == [1, 2, 3]
        it.edit("workers = 3", "workers = 1")
        it.reload()
        assert _numbers(runtime) == [1]
        assert runtime.find("worker.restart_scheduled") == []
        assert not (data_dir / "elsewhere").exists()


def test_the_gateway_goes_by_a_new_config(data_dir: Path) -> None:
    """It answers another page, without an interruption; so does its successor."""
    options = '[gateway]\nallow_origins = ["https://old.example"]'
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, options=options) as runtime:
        it = Reloadable(runtime)
        pid = runtime.status().gateway_pid
        assert _answer(runtime, "https://old.example") == 200
        assert _answer(runtime, "https://new.example") == 403

        it.edit("https://old.example", "https://new.example")
        it.reload()
        _await_answer(runtime, "https://new.example")
        assert _answer(runtime, "https://old.example") == 403
        assert runtime.find("reload.ignored") == []
        assert runtime.status().gateway_pid == pid

        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        _await_answer(runtime, "https://new.example")
        assert runtime.status().gateway_pid != pid


def test_the_gateway_goes_by_a_new_level(data_dir: Path) -> None:
    """It says what it kept to itself before the reload."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, level="error") as runtime:
        it = Reloadable(runtime)
        runtime.fault(kind="drop", target="stream-store")
        it.edit('level = "error"', 'level = "info"')
        it.reload()
        deadline = time.monotonic() + PATIENCE
        while not runtime.find("fault.added", kind="status"):
            assert time.monotonic() < deadline, "the gateway says nothing"
            runtime.fault(kind="status", status=503, target="stream-store")
        assert runtime.stop() == 0

    assert runtime.find("fault.added", kind="drop") == []
    assert len(runtime.find("gateway.stopped")) == 1


def _await_answer(runtime: RuntimeProcess, origin: str) -> None:
    """Return once the gateway answers a page of that origin."""
    deadline = time.monotonic() + PATIENCE
    while _answer(runtime, origin) != 200:
        assert time.monotonic() < deadline, f"{origin} is never answered"


def _answer(runtime: RuntimeProcess, origin: str) -> int | None:
    """Return the status of the gateway's answer to a page; None: nobody is there."""
    url = runtime.status().control_plane_url
    try:
        return httpx.get(f"{url}/healthz", headers={"origin": origin}).status_code
    except httpx.TransportError:
        return None


def test_loops_and_schedules_are_adjusted(data_dir: Path) -> None:
    """A task becomes a loop, with more and with fewer replicas; another one gets a schedule."""
    with reloadable(data_dir, drain_timeout="100ms") as runtime:
        it = Reloadable(runtime)
        line = 'entrypoint = "tasks:loop"\n'
        it.edit(line, line + "replicas = 3\n")
        it.edit(
            'entrypoint = "tasks:version"\n', 'entrypoint = "tasks:version"\ncron = "* * * * *"\n'
        )
        it.reload()
        for number in (1, 2, 3):
            runtime.event("loop.started", task="loop", replica=number)
        with ControlClient(runtime.data_dir) as client:
            (schedule,) = client.ask(ListSchedules(upcoming=1), SchedulesView).schedules
        assert (schedule.task, schedule.last is not None) == ("version", True)

        runtime.until(lambda _: len(runtime.find("run.started", task="loop")) >= 3, "3 replicas")
        it.edit("replicas = 3", "replicas = 1")
        it.reload()
        canceled = {runtime.event("loop.started", replica=n)["run_id"] for n in (2, 3)}
        for run_id in canceled:
            assert runtime.result(run_id).status == "CANCELED"
        kept = runtime.event("loop.started", replica=1)["run_id"]
        assert runtime.find("run.canceled", run_id=kept) == []


def test_a_reload_during_a_reload_comes_after_it(data_dir: Path) -> None:
    """However many signals come while one reload goes on, one more follows, with the last file."""
    with reloadable(data_dir) as runtime:
        it = Reloadable(runtime)
        it.code("import time\ntime.sleep(1)\n" + TASKS)
        runtime.process.send_signal(signal.SIGHUP)
        runtime.event("reload.requested")
        it.code(TASKS_2)
        for count in (2, 3):
            runtime.process.send_signal(signal.SIGHUP)
            runtime.until(
                lambda _: len(runtime.find("reload.requested")) >= count,  # noqa: B023
                "the request",
            )
        runtime.until(lambda _: len(runtime.find("reload.completed")) >= 2, "two reloads")

        assert runtime.output(runtime.trigger("version")) == 2
        assert runtime.stop() == 0
        assert len(runtime.find("reload.completed")) == 2


_IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "td_runtime", "start", *sys.argv[1:]])
"""


def test_a_closed_terminal_drains_and_an_open_one_does_not(data_dir: Path) -> None:
    """SIGHUP from somebody reloads also in a terminal; that of its end stops in order, exit 0."""
    config = reloadable(data_dir).config
    terminal, inside = os.openpty()
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", _IN_TERMINAL, "-c", str(config)]
    process = subprocess.Popen(
        [*command, "--owner-fd", str(theirs.fileno())],
        stdin=inside,
        stdout=subprocess.PIPE,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        text=True,
    )
    os.close(inside)
    theirs.close()
    ours.settimeout(PATIENCE)
    assert process.stdout is not None
    with process, ours, process.stdout as log:
        assert ours.recv(6) == b"ready\n"
        process.send_signal(signal.SIGHUP)
        while '"reload.completed"' not in (line := log.readline()):
            assert line
        os.close(terminal)

        assert '"signal":"SIGHUP"' in log.read()
        assert process.wait(PATIENCE) == 0


def _numbers(runtime: RuntimeProcess) -> list[int]:
    return sorted(each.number for each in runtime.status().workers if each.state == "ready")


def _ready(runtime: RuntimeProcess) -> list[int]:
    return sorted(each.pid for each in runtime.status().workers if each.state == "ready")
