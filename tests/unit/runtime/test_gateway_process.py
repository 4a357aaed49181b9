"""The gateway as the supervisor starts it, when the system has no room for it."""

from __future__ import annotations

import errno
import os
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


def test_a_restart_that_the_system_refuses_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It backs off as after a failed boot, gives up in the end, and leaves no descriptor."""

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

    gateway._restart()
    tries = 1
    while timers.calls:
        timers.calls.pop()()
        tries += 1

    assert tries == 5
    assert [type(error) for error in given_up] == [TooManyRestartsError]
    assert gateway.pid is None
    assert len(os.listdir("/proc/self/fd")) == before
