"""What every task of every queue does: one record of 32 bytes to a file in memory."""

from __future__ import annotations

import os
import time

SIZE = 32
_path = os.environ.get("BENCH_RECORDS", os.devnull)
_fd = os.open(_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def record() -> None:
    """Say that a task has begun: when, on the clock that all processes share, and in which."""
    os.write(_fd, b"%020d %010d\n" % (time.monotonic_ns(), os.getpid()))


def nap() -> None:
    """The run that is killed: begins, then goes on for as long as a run may."""
    record()
    time.sleep(float(os.environ.get("BENCH_NAP", "4")))
