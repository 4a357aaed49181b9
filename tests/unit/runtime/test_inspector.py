"""Task modules that do more at import than they should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime_process import wait_until_gone

_LOOK = """
import sys
from pathlib import Path
from td_runtime import logs
from td_runtime.config import load_config
from td_runtime.inspector import inspect_tasks

sink = open("log", "wb")
logs.configure(sink.fileno(), format="json", level="info", host="h", worker=None)
config = load_config(Path("td-runtime.toml"))
for facts in inspect_tasks(config, keep=[sink.fileno()]):
    print(facts.signature)
"""

_CONFIG = """
[[tasks]]
id = "hello"
entrypoint = "hello:hello"
"""


_GUARD = """
import asyncio
from pathlib import Path
from td_runtime import logs
from td_runtime.config import load_config
from td_runtime.inspector import inspect_tasks_on_loop
from td_runtime.payloads import PayloadChecker
from td_worker.messages import TriggerItem

class Sink:
    told = []
    def guard(self, group):
        self.told.append(("guard", group))
    def unguard(self, group):
        self.told.append(("unguard", group))

async def main():
    keep = [sink.fileno()]
    await inspect_tasks_on_loop(config, keep=keep, guard=Sink())
    loop = asyncio.get_running_loop()
    checker = PayloadChecker(config, {"hello"}, keep=keep, guard=Sink(), loop=loop)
    await checker.check([TriggerItem(task="hello", payload=b"1")])
    checker.close()
    (_, first), (_, also_first), (_, second), (_, also_second) = Sink.told
    print([what for what, _ in Sink.told], first == also_first, second == also_second)

sink = open("log", "wb")
logs.configure(sink.fileno(), format="json", level="info", host="h", worker=None)
config = load_config(Path("td-runtime.toml"))
asyncio.run(main())
"""


def look(
    folder: Path, source: str, *, prelude: str = "", script: str = _LOOK
) -> subprocess.CompletedProcess[str]:
    """Inspect one task in a process of its own: inspecting forks."""
    (folder / "td-runtime.toml").write_text(_CONFIG)
    (folder / "hello.py").write_text(source)

    return subprocess.run(
        [sys.executable, "-c", prelude + script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_process_that_a_module_starts_at_import_holds_nothing_up(data_dir: Path) -> None:
    """A forked helper keeps every descriptor open; the look ends, and the helper with it."""
    looked = look(
        data_dir,
        "import os, time\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    time.sleep(3600)\n"
        "open('helper', 'w').write(str(pid))\n"
        "def hello(payload): ...\n",
    )

    assert looked.stdout == "hello(payload)\n", looked.stderr
    assert wait_until_gone([int((data_dir / "helper").read_text())], within_s=10.0) == []


def test_what_a_module_logs_at_import_is_logged(data_dir: Path) -> None:
    """Lines go to the log, and not into a file that the module has opened meanwhile."""
    looked = look(
        data_dir,
        "import structlog\n"
        "files = [open(f'file{n}', 'w') for n in range(40)]\n"
        "structlog.get_logger().warning('module.imported')\n"
        "def hello(payload): ...\n",
    )

    assert looked.stdout == "hello(payload)\n", looked.stderr
    assert b"module.imported" in (data_dir / "log").read_bytes()
    assert [os.path.getsize(data_dir / f"file{n}") for n in range(40)] == [0] * 40


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_module_that_ends_the_process_is_told(data_dir: Path, end: str) -> None:
    """A crash at import is an error about the tasks, not a hang."""
    looked = look(data_dir, f"import os\n{end}\n")

    assert "importing the tasks ended the process that looked at them" in looked.stderr


def test_children_are_reaped_though_sigchld_was_ignored(data_dir: Path) -> None:
    """Whoever starts us may ignore it, and that is inherited: the kernel would reap the child."""
    looked = look(
        data_dir,
        "def hello(payload): ...\n",
        prelude="import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n",
    )

    assert looked.stdout == "hello(payload)\n", looked.stderr


def test_a_hint_that_cannot_be_resolved_is_no_obstacle(data_dir: Path) -> None:
    """A payload type that refers to names imported for type checkers only counts as no hint."""
    looked = look(
        data_dir,
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Payload:\n"
        "    day: 'datetime.date'\n"
        "def hello(payload: Payload): ...\n",
    )

    assert looked.stdout == "hello(payload: hello.Payload)\n", looked.stderr


def test_a_callable_object_can_be_a_task(data_dir: Path) -> None:
    """An object with an async `__call__`, which has no name of its own."""
    looked = look(
        data_dir,
        "class Hello:\n    async def __call__(self, payload): ...\nhello = Hello()\n",
    )

    assert looked.stdout == "hello(payload)\n", looked.stderr


def test_a_child_that_was_reaped_is_guarded_no_longer(data_dir: Path) -> None:
    """Its number may be another process's by the time that the supervisor dies."""
    looked = look(data_dir, "def hello(payload: int): ...\n", script=_GUARD)

    assert looked.stdout.strip() == "['guard', 'unguard', 'guard', 'unguard'] True True", (
        looked.stderr
    )
