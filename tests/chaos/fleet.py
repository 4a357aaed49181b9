"""The writing processes: forked, killed, stopped, replaced."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.chaos.arena import Arena
from tests.chaos.diary import Diary
from tests.chaos.writer import write_and_leave


class WriterFailedError(Exception):
    """A writing process ended by itself with an error."""


class Fleet:
    """All writing processes; a killed one is replaced at once."""

    def __init__(self, arena: Arena, diary: Diary) -> None:
        self._arena = arena
        self._diary = diary
        self._pids: dict[int, int] = {}
        self._stopped: dict[int, float] = {}

    def start(self) -> None:
        """Fork all."""
        for writer in range(self._arena.scale.writers):
            self._fork(writer)

    @property
    def running(self) -> list[int]:
        """The writers that have something left to write."""
        return list(self._pids)

    @property
    def pids(self) -> list[int]:
        """Their processes."""
        return list(self._pids.values())

    def can_be_hit(self, writer: int) -> bool:
        """Tell whether a writer runs and is not stopped."""
        return writer in self._pids and writer not in self._stopped

    def kill(self, writer: int) -> None:
        """End a writer's process with SIGKILL, and let another one go on for it."""
        pid = self._pids.pop(writer)
        # Noted before the deed: whatever others do once it is dead, they do later.
        self._diary.note("writer.killed", writer=writer, victim=pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self._arena.board.clear(writer)
        self._fork(writer)

    def stop(self, writer: int, seconds: float) -> None:
        """Stop a writer's process for so long."""
        self._diary.note("writer.stopped", writer=writer, victim=self._pids[writer])
        os.kill(self._pids[writer], signal.SIGSTOP)
        self._stopped[writer] = time.monotonic() + seconds

    def tend(self) -> None:
        """Let the stopped go on whose time has come, and see who has finished.

        Raises:
            WriterFailedError: A process ended with an error.
        """
        now = time.monotonic()
        for writer in [writer for writer, until in self._stopped.items() if until <= now]:
            self._go_on(writer)
        for writer, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[writer]
                self._check(writer, os.waitstatus_to_exitcode(status))

    def end(self) -> None:
        """Kill whoever is left."""
        for writer, pid in self._pids.items():
            # As in `kill`: those who are left mint in the place of those who are not.
            self._diary.note("writer.killed", writer=writer, victim=pid)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._pids.clear()

    def say_where(self) -> None:
        """Have every process write the stacks of its threads into its output."""
        for writer, pid in self._pids.items():
            if writer in self._stopped:
                self._go_on(writer)
            os.kill(pid, signal.SIGUSR1)

    def _go_on(self, writer: int) -> None:
        del self._stopped[writer]
        if writer in self._pids:
            os.kill(self._pids[writer], signal.SIGCONT)
            self._diary.note("writer.continued", writer=writer, victim=self._pids[writer])

    def _fork(self, writer: int) -> None:
        harness = os.getpid()
        pid = os.fork()
        if pid == 0:
            write_and_leave(self._arena, writer, harness)
        self._pids[writer] = pid

    def _check(self, writer: int, code: int) -> None:
        if code:
            output = self._arena.output / f"writer-{writer:02}.log"
            raise WriterFailedError(f"writer {writer} exited with {code}:\n{_tail(output)}")


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-30:])
