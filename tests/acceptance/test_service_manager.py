"""What a service manager is told by a real supervisor, over the socket it names."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.runtime_process import PATIENCE, RuntimeProcess

TASKS = """
import os

async def look(payload):
    return sorted({"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(os.environ))
"""


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE)
        self.heard: list[str] = []

    def hears(self, state: str) -> str:
        """Return the next message that begins with *state*; keep what comes before it."""
        while not (message := self.socket.recv(4096).decode()).startswith(state):
            self.heard.append(message)

        return message


def test_the_service_manager_follows_a_life(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ready with a status, pings, reloading and ready again, stopping; children cannot speak."""
    manager = Manager(data_dir / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(data_dir / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    runtime = RuntimeProcess(data_dir, tasks=TASKS, workers=2)
    with manager.socket, runtime:
        ready = manager.hears("READY=1")
        assert "STATUS=2 workers, 1 tasks, control plane http://127.0.0.1:" in ready
        assert f"MAINPID={runtime.process.pid}" in ready
        assert set(manager.heard) <= {"WATCHDOG=1"}
        for _ in range(3):
            assert manager.hears("WATCHDOG=1")
        assert runtime.output(runtime.trigger("look")) == []
        gateway = runtime.status().gateway_pid
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{gateway}/environ").read_bytes()

        runtime.process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in manager.hears("RELOADING=1")
        assert manager.hears("READY=1") == ready
        runtime.config.write_text("nonsense")
        runtime.process.send_signal(signal.SIGHUP)
        manager.hears("RELOADING=1")
        assert manager.hears("READY=1") == ready
        runtime.until(lambda _: runtime.find("reload.refused") != [], "the refusal in the log")

        runtime.process.send_signal(signal.SIGTERM)
        assert manager.hears("STOPPING=1")
        assert runtime.wait_for_exit() == 0
