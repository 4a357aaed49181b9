"""Forked processes that start together and report once."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

_LONGEST = 120
"""Seconds after which the kernel ends a child."""


class Gate:
    """Holds children back until all are there."""

    def __init__(self) -> None:
        self._arrived, self._arriving = os.pipe()
        self._opened, self._opening = os.pipe()
        self._waiting = 0

    def wait(self) -> None:
        """Say that a child is ready, and wait until the gate opens."""
        os.write(self._arriving, b".")
        os.read(self._opened, 1)

    def wait_for(self, children: list[Child]) -> None:
        """Return once all children are ready.

        Raises:
            RuntimeError: One has failed before it was.
        """
        while self._waiting < len(children):
            ready, _, _ = select.select([self._arrived, *map(Child.fileno, children)], [], [])
            for child in children:
                if child.fileno() in ready:
                    child.report()
            self._waiting += len(os.read(self._arrived, len(children)))

    def open(self) -> None:
        """Let the children go."""
        os.write(self._opening, b"." * self._waiting)


class Child:
    """A forked child that sends what `work` returned, as JSON, and stays until it may leave.

    A process that ends keeps a CPU busy for a millisecond, at the expense of those still measured.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _run_and_leave(work, theirs)
        theirs.close()

    def fileno(self) -> int:
        return self._ours.fileno()

    def report(self) -> Any:
        """Return what the child returned, once it has.

        Raises:
            RuntimeError: It failed.
        """
        with self._ours.makefile("rb") as source:
            report = source.read()
        if not report.startswith(b"+"):
            raise RuntimeError(f"a child failed: {report.decode()}")

        return json.loads(report[1:])

    def kill(self) -> None:
        """End the child, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._ours.close()


def reports(children: list[Child]) -> list[Any]:
    """Return what all children returned, and end them."""
    seen = [child.report() for child in children]
    for child in children:
        child.kill()

    return seen


def first_to_report(children: list[Child], within: float) -> list[Child]:
    """Return those that have reported as soon as one has; none after `within` seconds."""
    ready, _, _ = select.select(children, [], [], within)

    return ready


def stopwatch(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that something takes, and what it returns."""
    started = time.monotonic()
    outcome = work()

    return time.monotonic() - started, outcome


def _run_and_leave(work: Callable[[], Any], parent: socket.socket) -> None:
    signal.alarm(_LONGEST)
    try:
        try:
            report = f"+{json.dumps(work())}"
        except BaseException:
            report = traceback.format_exc()
        parent.sendall(report.encode())
        parent.shutdown(socket.SHUT_WR)
        parent.recv(1)
    finally:
        os._exit(0)
