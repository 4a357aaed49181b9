"""What a service manager is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from td_runtime.service_manager import ServiceManager


@pytest.fixture(name="manager", params=["path", "abstract"])
def _manager(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[socket.socket, ServiceManager]]:
    name = f"@td-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(name.replace("@", "\0"))
        ours.settimeout(5)
        yield ours, ServiceManager(name)


def test_every_state_is_one_datagram(manager: tuple[socket.socket, ServiceManager]) -> None:
    """Readiness, reload, stop and life arrive as sd_notify(3) words them."""
    ours, us = manager

    us.ready("2 workers")
    us.reloading()
    us.stopping()
    us.alive()

    heard = [ours.recv(4096).decode().splitlines() for _ in range(4)]
    assert heard[0] == ["READY=1", "STATUS=2 workers", f"MAINPID={os.getpid()}"]
    assert heard[1][0] == "RELOADING=1"
    assert heard[1][1].removeprefix("MONOTONIC_USEC=").isdecimal()
    assert heard[2][0] == "STOPPING=1"
    assert heard[3] == ["WATCHDOG=1"]


def test_the_variables_are_taken_away() -> None:
    """Nothing that a task starts can speak for the supervisor; the watchdog is in seconds."""
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}

    assert ServiceManager.from_environment(environ).watchdog == 3.0
    assert environ == {}


def test_a_watchdog_for_another_process_is_not_ours() -> None:
    """A shell in between inherits the variables, too."""
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}

    assert ServiceManager.from_environment(environ).watchdog is None


def test_nobody_to_tell_is_no_error(tmp_path: Path) -> None:
    """Neither without a service manager nor with one that is gone."""
    ServiceManager.from_environment({}).ready("ready")
    ServiceManager(str(tmp_path / "gone")).stopping()
