"""What the attempts say themselves, apart from the runtime: when each began and ended, and where.

One file for all workers, one line and one write a mark, so that a killed process has said what it
has said. While an attempt executes, its process holds the run's byte of a lock file. The kernel
frees it when the process is gone, neither sooner nor later: an attempt that begins while another
process has the byte is executed beside it, whatever any clock says.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from td_worker import context

FOLDER_VARIABLE = "TD_CHAOS_RUNS"
"""Where the marks are kept. Whoever has it in its environment belongs to the campaign."""

_FLOCK = struct.Struct("hhqqi4x")
"""`struct flock`: type, whence, start, length, pid."""


class Mark(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A line of the file."""

    at: float
    """Seconds on the monotonic clock, the same for all processes of a machine."""
    begins: bool
    """Whether the attempt begins here, or ends."""
    run_id: str
    attempt: int
    pid: int
    process: str
    """The process id and something random: numbers of processes come again."""
    holder: int = 0
    """The process that has the run's byte when the attempt begins; 0: nobody, as it must be."""


class _Marker:
    """Writes the marks of one process, and holds the bytes of the runs it executes."""

    def __init__(self, folder: Path) -> None:
        self.pid = os.getpid()
        self._process = f"{self.pid}-{secrets.token_hex(4)}"
        flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._marks = os.open(folder / "marks", os.O_WRONLY | flags, 0o600)
        # Never closed: closing any descriptor of the file would free all bytes of the process.
        self._locks = os.open(folder / "locks", os.O_RDWR | flags, 0o600)
        self._executing: set[str] = set()

    def begin(self, run_id: str, attempt: int) -> None:
        """Mark the begin of an attempt."""
        holder = self.pid if run_id in self._executing else self._take(run_id)
        self._executing.add(run_id)
        self._note(run_id, attempt, begins=True, holder=holder)

    def end(self, run_id: str, attempt: int) -> None:
        """Mark the end of an attempt."""
        self._note(run_id, attempt, begins=False)
        self._executing.discard(run_id)
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _byte_of(run_id))

    def _take(self, run_id: str) -> int:
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte_of(run_id))
        except OSError:
            wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _byte_of(run_id), 1, 0)
            return int(_FLOCK.unpack(fcntl.fcntl(self._locks, fcntl.F_GETLK, wanted))[4]) or -1

        return 0

    def _note(self, run_id: str, attempt: int, *, begins: bool, holder: int = 0) -> None:
        mark = Mark(
            at=time.monotonic(),
            begins=begins,
            run_id=run_id,
            attempt=attempt,
            pid=self.pid,
            process=self._process,
            holder=holder,
        )
        os.write(self._marks, msgspec.json.encode(mark) + b"\n")


_marker: _Marker | None = None


@contextmanager
def attempt() -> Iterator[str]:
    """Mark the begin and the end of the current attempt; gives the run's id."""
    run_id, number = context.run.id, context.attempt.number
    marker = _marker_of_process()
    marker.begin(run_id, number)
    try:
        yield run_id
    finally:
        marker.end(run_id, number)


def is_first_time(run_id: str) -> bool:
    """Say whether no attempt of the run has asked this before."""
    path = Path(os.environ[FOLDER_VARIABLE]) / "flags" / run_id
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False

    return True


def read(folder: Path) -> list[Mark]:
    """Return all marks in the order in which they were made."""
    path = folder / "marks"
    lines = path.read_bytes().splitlines() if path.exists() else []
    decoder = msgspec.json.Decoder(Mark)

    return sorted((decoder.decode(line) for line in lines), key=lambda mark: mark.at)


def _marker_of_process() -> _Marker:
    global _marker
    if _marker is None or _marker.pid != os.getpid():
        _marker = _Marker(Path(os.environ[FOLDER_VARIABLE]))

    return _marker


def _byte_of(run_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=7).digest())
