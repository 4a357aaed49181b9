"""`make restarts`: workers that die, 10,000 of them, and what the supervisor has left of them.

The pool is the supervisor's own, with its forks, sockets and pidfds; a worker says that it is ready
and dies, or dies at boot: by its exit, by a signal, with a child of its own. The back-off is off.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from td_runtime.fork import require_single_thread
from td_runtime.logs import LineRing
from td_runtime.restart import RestartPolicy
from td_runtime.secret import Secret
from td_runtime.workers import Worker, WorkerEvents, WorkerPool
from td_worker.messages import Ready, encode_frame

PLACES = 4
WARM_UP = 50
"""Restarts before the first look: imports and caches have come by then."""
MAY_GROW = 8.0
"""MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the process holds."""

    descriptors: int
    zombies: int
    children: int
    rss_mib: float


class Sink:
    """A log sink that is told whom to guard."""

    fd = 2

    def __init__(self) -> None:
        self.groups: set[int] = set()

    def guard(self, group: int) -> bool:
        self.groups.add(group)
        return True

    def unguard(self, group: int) -> bool:
        self.groups.discard(group)
        return True


def live_and_die(number: int, sock: socket.socket, ring: LineRing) -> int:
    """Be a worker for a moment."""
    fate = os.getpid() % 5
    if fate == 0:
        return 1
    ring.put(b"a line\n")
    sock.sendall(encode_frame(Ready(pid=os.getpid())))
    if fate == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == 2 and os.fork() == 0:
        time.sleep(3600)

    return 0


async def replace(count: int) -> tuple[Look, Look, set[int]]:
    """Have *count* workers die; return what there was early, at the end, and who is guarded."""
    done = asyncio.Event()
    seen = 0
    early = look()

    def gone(_: Worker) -> None:
        nonlocal seen, early
        seen += 1
        require_single_thread()
        if seen == WARM_UP:
            early = look()
        if seen >= count:
            done.set()

    sink: Any = Sink()
    pool = WorkerPool(
        PLACES,
        body=live_and_die,
        secret=Secret("tr_prod_restarts"),
        sink=sink,
        events=WorkerEvents(
            on_message=lambda worker, message: None,
            on_ready=lambda worker: None,
            on_gone=gone,
            on_given_up=_fail,
        ),
        loop=asyncio.get_running_loop(),
        policy=RestartPolicy(healthy_after=0.0, min_delay=0.0, max_boot_failures=sys.maxsize),
    )
    pool.start()
    await done.wait()
    late = look()
    await pool.kill()

    return early, late, sink.groups


def _fail(error: BaseException) -> None:
    raise AssertionError("it must never give up") from error


def look() -> Look:
    """Return what this process holds now."""
    states = [state for state in map(_child_state, _processes()) if state]
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    return Look(
        descriptors=len(os.listdir("/proc/self/fd")),
        zombies=states.count("Z"),
        children=len(states),
        rss_mib=resident / (1 << 20),
    )


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _child_state(pid: int) -> str | None:
    """Return the state of a process if it is a child of this one."""
    with suppress(OSError):
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if int(parent) == os.getpid():
            return state

    return None


def orphans(patience: float = 10.0) -> list[int]:
    """Return what workers had started and left behind, once killed processes had time to go."""
    ours = Path("/proc/self/cmdline").read_bytes()
    deadline = time.monotonic() + patience
    while found := [pid for pid in _processes() if pid != os.getpid() and _is_ours(pid, ours)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)

    return found


def _is_ours(pid: int, command: bytes) -> bool:
    with suppress(OSError):
        is_here = os.getsid(pid) == os.getsid(0)
        return is_here and Path(f"/proc/{pid}/cmdline").read_bytes() == command

    return False


def main() -> int:
    """Say what was left; 1 if it is more than it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    count = parser.parse_args().count
    quiet()
    before = look()
    began = time.monotonic()
    early, late, guarded = asyncio.run(replace(count))
    seconds = time.monotonic() - began
    after = look()
    problems = [
        name
        for name, holds in (
            ("a child", not after.children),
            ("what a worker had started", not orphans()),
            ("a descriptor", after.descriptors == before.descriptors),
            ("a descriptor a worker", late.descriptors <= early.descriptors + 3 * PLACES),
            ("zombies", late.zombies <= PLACES),
            ("a guarded group", not guarded),
            ("memory", late.rss_mib <= early.rss_mib + MAY_GROW),
        )
        if not holds
    ]
    print(f"{count:,} workers died in {seconds:.1f} s: {seconds / count * 1000:.1f} ms each")
    for name, each in (("before", before), ("early", early), ("late", late), ("after", after)):
        print(f"{name:8}{each}")
    for problem in problems:
        print(f"LEFT BEHIND: {problem}")

    return 1 if problems else 0


def quiet() -> None:
    """Log nothing: four lines a death are not what is measured."""
    from td_runtime import logs

    null = os.open(os.devnull, os.O_WRONLY)
    logs.configure(null, format="json", level="error", host="chaos", worker=None)


if __name__ == "__main__":
    sys.exit(main())
