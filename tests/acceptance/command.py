"""The installed ``td-runtime`` as a shell calls it, and what it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.runtime_process import PATIENCE, is_alive

EXECUTABLE = str(Path(sys.executable).with_name("td-runtime"))
BASE = """
[runtime]
data_dir = "data"
workers = 1
drain_timeout = "{drain_timeout}"
[credentials]
dir = "credentials"
[log]
format = "json"
level = "{level}"
"""


def td(
    *arguments: str,
    config: Path | None = None,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Call one command to its end; *config* is given with ``-c``, *env* is added."""
    return subprocess.run(
        command(*arguments, config=config),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=2 * PATIENCE,
        check=False,
    )


def command(*arguments: str, config: Path | None = None) -> list[str]:
    """Return the argument list of a command."""
    chosen = [] if config is None else ["-c", str(config)]
    return [EXECUTABLE, *arguments, *chosen]


def answer(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    """Return the one JSON object that a command printed, with the exit code it must have."""
    assert done.returncode == code, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    return json.loads(done.stdout)


def write_project(
    folder: Path,
    entrypoints: dict[str, str],
    *,
    tasks: str = "",
    more: str = "",
    level: str = "info",
    drain_timeout: str = "20s",
) -> Path:
    """Write a config file and its ``tasks.py``; returns the config file.

    Args:
        folder: Where they go.
        entrypoints: Of each task, by its id.
        tasks: Source of ``tasks.py``.
        more: Config text after all else.
        level: Of the log.
        drain_timeout: As the config file has it.
    """
    parts = [BASE.format(level=level, drain_timeout=drain_timeout)]
    parts += [f'[[tasks]]\nid = "{i}"\nentrypoint = "{e}"\n' for i, e in entrypoints.items()]
    (folder / "tasks.py").write_text(tasks)
    config = folder / "td-runtime.toml"
    config.write_text("".join(parts) + more)
    return config


class Running:
    """A command under way, in a process group of its own, as in a terminal.

    Attributes:
        lines: What has been read of its log so far, decoded.
    """

    def __init__(self, *arguments: str, config: Path, log: str) -> None:
        """Start it; *log* is the stream its log goes to, "stdout" or "stderr"."""
        self.process = subprocess.Popen(
            command(*arguments, config=config),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        stream = getattr(self.process, log)
        assert stream is not None
        self._fd: int = stream.fileno()
        self._rest = b""
        self.lines: list[dict[str, Any]] = []

    def until(self, event: str) -> dict[str, Any]:
        """Return the next log line of that event."""
        deadline = time.monotonic() + PATIENCE
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                self.lines.append(json.loads(line))
                if self.lines[-1]["event"] == event:
                    return self.lines[-1]
            ready, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self._fd, 65536) if ready else b""
            assert chunk, f"never seen: {event}; log: {self.lines[-20:]}"
            self._rest += chunk

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send a signal as a terminal does: to the whole process group."""
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Return exit code, and what is left of stdout and stderr, once it has ended."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out.decode(), err.decode()

    def tree(self) -> list[int]:
        """Return its process and all below it."""
        return [self.process.pid, *_below(self.process.pid)]


@contextlib.contextmanager
def running(*arguments: str, config: Path, log: str) -> Iterator[Running]:
    """Have a command under way for the block; what is left of it at the end is killed."""
    found = Running(*arguments, config=config, log=log)
    with found.process:
        try:
            yield found
        finally:
            # Nothing that it has started outlives a test that failed.
            for pid in filter(is_alive, found.tree()):
                os.kill(pid, signal.SIGKILL)


def _below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    found = [int(child) for child in children]
    return found + [pid for child in found for pid in _below(child)]
