"""The gateway as the supervisor starts it, when the system has no room for it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from td_runtime.errors import TdRuntimeError, TooManyRestartsError
from td_runtime.gateway_process import GatewayProcess


class Timers:
    """As much of a loop as a start that fails uses: calls are kept, for the test to make."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def call_later(self, _delay: float, callback: Callable[[], None]) -> None:
        self.calls.append(callback)


def test_a_start_that_the_system_refuses_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one, too; it gives up in the end, saying why, and leaves no descriptor."""

    def refuse(*_: object, **__: object) -> Any:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("td_runtime.gateway_process.subprocess.Popen", refuse)
    timers, given_up = Timers(), list[TdRuntimeError]()
    gateway = GatewayProcess(
        {},
        keep=(),
        hidden=frozenset(),
        on_given_up=given_up.append,
        loop=timers,  # type: ignore[arg-type]
    )
    before = len(os.listdir("/proc/self/fd"))

    gateway.start()
    tries = 1
    while timers.calls:
        timers.calls.pop()()
        tries += 1

    assert tries == 5
    assert [type(error) for error in given_up] == [TooManyRestartsError]
    assert str(given_up[0]) == (
        "the gateway could not be started, however often it was tried: "
        "Resource temporarily unavailable\n"
        "  next: Raise what limits processes, memory and descriptors (`ulimit -a`; a unit's "
        "TasksMax= and MemoryMax=), then start again."
    )
    assert gateway.pid is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_gateway_that_does_not_listen_is_ended_for_one_that_knows() -> None:
    """A reload waits for nobody: what cannot be told at once, the next one is started with."""
    gateway = GatewayProcess(
        {"allow_origins": (), "log": {"level": "info"}},
        keep=(),
        hidden=frozenset(),
        on_given_up=lambda error: None,
        loop=Timers(),  # type: ignore[arg-type]
    )
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(["sleep", "3600"]) as process:
        gateway._process, gateway._control = process, ours
        gateway.reload(allow_origins=("https://a.test",), log_level="info")
        assert json.loads(theirs.recv(4096)) == {
            "allow_origins": ["https://a.test"],
            "log_level": "info",
        }

        theirs.close()
        gateway.reload(allow_origins=("https://b.test",), log_level="error")
        assert process.wait() == -signal.SIGTERM

    assert gateway._settings == {"allow_origins": ("https://b.test",), "log": {"level": "error"}}
