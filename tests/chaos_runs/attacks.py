"""SIGKILL and SIGSTOP of workers at random, and of whoever watches them."""

from __future__ import annotations

import heapq
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from tests.chaos_runs.diary import Diary
from tests.chaos_runs.host import Host, LogReader
from tests.chaos_runs.scale import Scale

_KILLS = 0.4
"""Share of the attacks that kill; the others stop."""


class Attacks:
    """Attacks the workers of a host.

    Workers are known from the log, and held by descriptors: a number may belong to somebody else
    by the time it is used.
    """

    def __init__(self, scale: Scale, host: Host, diary: Diary) -> None:
        self._scale = scale
        self._host = host
        self._diary = diary
        self._random = random.Random(f"{scale.seed} attacks")
        self._log = LogReader(host.log_file)
        self._workers: dict[int, int] = {}
        """Descriptors by process id."""
        self._stopped: list[tuple[float, int]] = []
        """When to continue whom."""

    def strike(self) -> None:
        """Kill or stop one worker, if there is one."""
        self._look()
        kills, seconds = self._random.random() < _KILLS, self._random.uniform(*self._scale.stop)
        chance = self._random.random()
        if not self._workers:
            return
        pid = sorted(self._workers)[int(chance * len(self._workers))]
        if kills:
            self._send("kill", pid, signal.SIGKILL)
        elif self._send("stop", pid, signal.SIGSTOP):
            heapq.heappush(self._stopped, (time.monotonic() + seconds, pid))

    def tend(self) -> None:
        """Let those go on that have been stopped for long enough."""
        while self._stopped and self._stopped[0][0] <= time.monotonic():
            _, pid = heapq.heappop(self._stopped)
            self._send("continue", pid, signal.SIGCONT)

    def kill_supervisor(self) -> None:
        """Kill the supervisor; its workers end by themselves."""
        self._diary.note("kill supervisor", self._host.process.pid)
        self._host.kill()
        self._forget()

    def end(self) -> None:
        """Let all go on."""
        while self._stopped:
            _, pid = heapq.heappop(self._stopped)
            self._send("continue", pid, signal.SIGCONT)
        self._forget()

    def _look(self) -> None:
        supervisor = self._host.process.pid
        for line in self._log.news(b'"worker.started"'):
            pid = line["worker_pid"]
            with suppress(OSError):
                descriptor = os.pidfd_open(pid)
                # Of the supervisor that lives now, not of one before it.
                if _parent_of(pid) == supervisor:
                    self._drop(pid)
                    self._workers[pid] = descriptor
                else:
                    os.close(descriptor)
        for pid, descriptor in list(self._workers.items()):
            with suppress(OSError):
                signal.pidfd_send_signal(descriptor, 0)
                continue
            self._drop(pid)

    def _send(self, what: str, pid: int, number: signal.Signals) -> bool:
        if (descriptor := self._workers.get(pid)) is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            self._drop(pid)
            return False
        self._diary.note(what, pid)

        return True

    def _drop(self, pid: int) -> None:
        if (descriptor := self._workers.pop(pid, None)) is not None:
            os.close(descriptor)

    def _forget(self) -> None:
        for pid in list(self._workers):
            self._drop(pid)


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
