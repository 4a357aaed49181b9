"""The runtime under attack: a supervisor that is started, killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from td_runtime.data_dir import DataDir
from tests.chaos_runs.marks import FOLDER_VARIABLE
from tests.chaos_runs.plan import OVERDUE, SHARES
from tests.chaos_runs.scale import Scale

_ROOT = Path(__file__).parents[2]
_LOOK_EVERY = 0.2
_START_PATIENCE = 60.0
"""Seconds that a start may take on a machine that others use."""


class Host:
    """One data folder and the supervisor over it, if one lives.

    Attributes:
        is_up: Set while a supervisor takes runs.
    """

    def __init__(self, scale: Scale, folder: Path) -> None:
        self.folder = folder
        self.data_dir = DataDir(folder / "data")
        self.log_file = folder / "runtime.log"
        self.is_up = threading.Event()
        self.process: subprocess.Popen[bytes]
        self._config = folder / "td-runtime.toml"
        self._owner: socket.socket
        (folder / "flags").mkdir()
        self._config.write_text(_config_text(scale, folder))

    def start(self) -> None:
        """Start a supervisor and return once it takes runs."""
        ours, theirs = socket.socketpair()
        ours.settimeout(_START_PATIENCE)
        command = [sys.executable, "-m", "td_runtime", "start", "-c", str(self._config)]
        with self.log_file.open("ab") as log, theirs:
            self.process = subprocess.Popen(
                [*command, "--owner-fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                process_group=0,
                env=self._environment(),
            )
        self._owner = ours
        if ours.recv(6) != b"ready\n":
            raise AssertionError(f"the supervisor did not start; its log: {self.log_file}")
        self.is_up.set()

    def kill(self) -> None:
        """End the supervisor in the middle of whatever it does."""
        self.is_up.clear()
        self.process.kill()
        self.process.wait()
        self._owner.close()

    def stop(self, patience: float) -> int:
        """Drain it; returns the exit code."""
        self.is_up.clear()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(patience)
        finally:
            self._owner.close()

    def ensure_dead(self) -> None:
        """Leave nothing behind when the campaign itself has failed."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.kill()

    def processes(self) -> dict[int, str]:
        """Return all processes of the campaign but this one: what each is."""
        return dict(_with_variable(f"{FOLDER_VARIABLE}={self.folder}".encode()))

    def wait_until_gone(self, patience: float) -> dict[int, str]:
        """Return what is left of a dead supervisor's processes after so many seconds."""
        deadline = time.monotonic() + patience
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)

        return left

    def _environment(self) -> dict[str, str]:
        path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]

        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            FOLDER_VARIABLE: str(self.folder),
        }


class LogReader:
    """Reads the log of the runtime, each line once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def news(self, containing: bytes = b"") -> Iterator[dict[str, Any]]:
        """Give the lines written since the last call that contain something."""
        if not self._path.exists():
            return
        with self._path.open("rb") as lines:
            lines.seek(self._offset)
            text = lines.read()
        # A line that is still being written is none yet.
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            if containing in line and line.startswith(b"{"):
                yield msgspec.json.decode(line)


def _with_variable(variable: bytes) -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z" or variable not in (path / "environ").read_bytes().split(b"\0"):
                continue
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it is gone
        yield int(path.name), command


def _config_text(scale: Scale, folder: Path) -> str:
    runtime = f"""
[runtime]
data_dir = "data"
workers = {scale.workers}
concurrency = {scale.concurrency}
drain_timeout = "10s"
cancel_grace = "{scale.cancel_grace}s"
max_memory_per_worker = "160MiB"
[credentials]
dir = "{folder}/credentials"
[log]
format = "json"
"""

    return runtime + "".join(_task_text(scale, kind) for kind in SHARES)


def _task_text(scale: Scale, kind: str) -> str:
    duration = f'max_duration = "{scale.max_duration}s"' if kind in OVERDUE else ""

    return f"""
[[tasks]]
id = "{kind}"
entrypoint = "tests.chaos_runs.tasks:{kind}"
max_crashes = {scale.max_crashes}
{duration}
[tasks.retry]
max_attempts = {scale.max_attempts}
min_timeout = "0.1s"
max_timeout = "1s"
"""
