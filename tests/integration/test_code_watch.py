"""The process behind `start --reload`, beside a process that stands in for the supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_process import PATIENCE

SUPERVISOR = """
import asyncio, signal, sys, time
from pathlib import Path
from td_runtime.control import StatusView
from td_runtime.control_server import ControlServer
from td_runtime.data_dir import DataDir

asked = 0

def answer(request, by, send):
    global asked
    asked += 1
    state = "running" if asked > int(sys.argv[2]) else "starting"
    send(StatusView(pid=1, version="", state=state, started_at=0.0, control_plane_url="",
                    gateway_pid=None, workers=[], runs={}, notices_dropped=0))

async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: print("reload", asked, flush=True))
    server = ControlServer(DataDir(Path(sys.argv[1])), answer, loop)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
CONFIG = """
[runtime]
data_dir = "data"
[credentials]
dir = "credentials"
[[tasks]]
id = "a"
entrypoint = "code:a"
"""


class Project:
    """A project that is watched, and who is told of its changes.

    Attributes:
        folder: Of the config file.
        supervisor: The process that is sent SIGHUP.
        watcher: The process that watches.
    """

    def __init__(self, folder: Path, *, starting: int, elsewhere: Path | None = None) -> None:
        self.folder = folder
        self.config = folder / "td-runtime.toml"
        self.config.write_text(CONFIG)
        (folder / "data").mkdir(mode=0o700)
        (folder / "code.py").write_text("")
        self.supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(folder / "data"), str(starting)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.supervisor.stdout is not None
        assert self.supervisor.stdout.readline() == "ready\n"
        pidfd = os.pidfd_open(self.supervisor.pid)
        self.watcher = subprocess.Popen(
            [sys.executable, "-m", "td_runtime.code_watch", str(self.config), str(pidfd)],
            pass_fds=[pidfd],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(elsewhere or "")},
        )
        os.close(pidfd)

    def told(self, change: Callable[[], Any]) -> str:
        """Make a change again and again until the supervisor is told; returns what it said."""
        lines = self.supervisor.stdout
        assert lines is not None
        told: list[str] = []
        reader = threading.Thread(target=lambda: told.append(lines.readline()))
        reader.start()
        for _ in range(int(PATIENCE / 0.2)):
            # Nobody says when the watch has begun.
            change()
            reader.join(0.2)
            if told:
                return told[0]
        self.supervisor.kill()
        raise AssertionError("never told")

    def said(self) -> str:
        """Return the watcher's next line."""
        assert self.watcher.stderr is not None
        return self.watcher.stderr.readline()


@contextmanager
def watched(folder: Path, **options: Any) -> Iterator[Project]:
    """Watch a new project for the block."""
    project = Project(folder, **{"starting": 0, **options})
    try:
        yield project
    finally:
        for process in (project.supervisor, project.watcher):
            process.kill()
            process.communicate()


@pytest.mark.parametrize("name", ["code.py", "below/more.py", "td-runtime.toml"])
def test_a_change_has_the_supervisor_reload(data_dir: Path, name: str) -> None:
    """A Python file beside the config file or below, or the file itself: SIGHUP, and it says so."""
    (data_dir / "below").mkdir()
    with watched(data_dir) as project:
        project.told(lambda: (data_dir / name).write_text(CONFIG))

        assert project.said() == f"td-runtime: changed: {name}\n"


def test_what_is_no_code_is_no_change(data_dir: Path) -> None:
    """Text files, other TOML files and all that the runtime itself writes are left alone."""

    def change() -> None:
        for name in ("notes.txt", "other.toml", "data/runs.db", "data/x.py"):
            (data_dir / name).write_text("")
        (data_dir / "code.py").write_text("")

    with watched(data_dir) as project:
        project.told(change)

        assert project.said() == "td-runtime: changed: code.py\n"


def test_code_of_tasks_elsewhere_is_watched(data_dir: Path, tmp_path: Path) -> None:
    """An entrypoint's package that is not below the config file's folder counts as well."""
    package = tmp_path / "code"
    package.mkdir()
    (package / "__init__.py").write_text("")
    with watched(data_dir, elsewhere=tmp_path) as project:
        project.told(lambda: (package / "inner.py").write_text(""))

        assert project.said().endswith("code/inner.py\n")


def test_a_supervisor_that_starts_is_not_signaled(data_dir: Path) -> None:
    """Until it runs, SIGHUP would end it: the watcher asks until it does."""
    with watched(data_dir, starting=3) as project:
        told = project.told((data_dir / "code.py").touch)

        assert told.split()[0] == "reload"
        assert int(told.split()[1]) >= 4


def test_a_broken_config_does_not_end_the_watch(data_dir: Path) -> None:
    """After it has become invalid, and valid again, changes are still told."""
    with watched(data_dir) as project:
        project.told((data_dir / "code.py").touch)
        project.told(lambda: project.config.write_text("[runtime"))
        project.told(lambda: project.config.write_text(CONFIG))
        project.told((data_dir / "code.py").touch)

        assert project.watcher.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_watch_ends_with_the_supervisor(data_dir: Path, number: signal.Signals) -> None:
    """However the supervisor ends, the watcher is gone soon after, without a word."""
    with watched(data_dir) as project:
        project.told((data_dir / "code.py").touch)
        project.said()

        project.supervisor.send_signal(number)

        assert project.watcher.wait(PATIENCE) == 0
