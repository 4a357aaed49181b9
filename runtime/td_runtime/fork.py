"""Forking children from a process that runs an event loop, and what the child does first.

What a fork inherits here, and what becomes of it (design §3):

==============================  ================================================================
the epoll and wake-up fds       closed by number; never ``loop.close()``: the epoll set is shared
every other descriptor          closed by number, but for a whitelist; 0 becomes ``/dev/null``
signal handlers, wake-up fd     reset before the child's first signal can arrive
the running loop                forgotten; the child makes its own
threads                         there are none: :func:`require_single_thread`
objects                         stay as they are and are never finalised: children leave by
                                ``os._exit``
==============================  ================================================================
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from multiprocess.context import ForkContext
from multiprocess.process import BaseProcess

__all__ = [
    "Child",
    "Guard",
    "die_with_parent",
    "fork_child",
    "require_single_thread",
]

_PR_SET_PDEATHSIG: Final = 1

_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
"""Signals that the supervisor handles, and a child must not lose or take for its own."""

_IGNORED_IN_CHILDREN: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Children stop when they are told over their pipe: a Ctrl-C reaches the whole terminal."""

_PIPE_ENDS: Final = 4
"""How many descriptors `multiprocess` opens for a child."""

# Loaded in the parent: a child that looked libraries up would do so with half its state reset.
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, eq=False)
class Child:
    """A process that :func:`fork_child` made; its parent must reap it, once."""

    pid: int
    pidfd: int
    """Readable once the process has ended; closed by :meth:`reap`."""
    _process: BaseProcess

    def kill_group(self) -> None:
        """End the process and what it started, at once. Only before it is reaped."""
        # PermissionError: what is left in the group runs as somebody else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for its end, free all that is kept for it; return its exit status or -signal."""
        self._process.join()
        status: int | None = self._process.exitcode
        if status is None:
            raise AssertionError(f"somebody else has reaped process {self.pid}")
        os.close(self.pidfd)
        # Two descriptors, which garbage collection would not close: `gc.freeze` hides them.
        self._process.close()

        return status


class Guard(Protocol):
    """Who kills process groups that must not outlive this process."""

    def guard(self, group: int) -> bool:
        """Remember a group."""
        ...

    def unguard(self, group: int) -> bool:
        """Forget it: its processes have been reaped, and its number may come again."""
        ...


def require_single_thread() -> None:
    """Check that this process has one thread: a lock held by another would stay locked for ever.

    Raises:
        AssertionError: It has more. A defect of ours; the message has the number.
    """
    with open("/proc/self/status", encoding="ascii") as status:
        count = next(line.split()[1] for line in status if line.startswith("Threads:"))
    if count != "1":
        raise AssertionError(f"a process that forks must have one thread, this one has {count}")


def fork_child(body: Callable[[], int], *, name: str, keep: Iterable[int]) -> Child:
    """Fork a child that runs *body* and exits with what it returns.

    The child keeps the standard descriptors and those in *keep*, leads a process group of its
    own, ignores SIGTERM, SIGINT and SIGHUP, and is killed when its parent dies.

    Args:
        body: Called in the child; an exception is printed and ends it with status 1.
        name: For people.
        keep: Descriptors the child needs.

    Returns:
        The child, in the parent.

    Raises:
        OSError: The system is out of processes, memory or descriptors.
    """
    require_single_thread()
    # Ignored by whoever started us, it would have the kernel reap children: no status, no pid.
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # What is alive now is never collected in a child, so its pages stay shared.
    gc.collect()
    gc.freeze()
    parent = os.getpid()
    process: BaseProcess = ForkContext().Process(
        target=_run_child, args=(body, parent, frozenset(keep)), name=name
    )
    _start(process)
    if (pid := process.pid) is None:
        raise AssertionError("a process that was started has no id")
    # Both sides set the group: whoever comes first, nobody sees the child outside of it.
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    try:
        return Child(pid, os.pidfd_open(pid), process)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        process.join()
        process.close()
        raise


def _start(process: BaseProcess) -> None:
    """Start it; when the system refuses, close the pipes that `multiprocess` leaves open then."""
    before = set(filter(_is_open, map(int, os.listdir("/proc/self/fd"))))
    try:
        with _signals_blocked():
            process.start()
    except OSError:
        # They have the lowest free numbers: to list what is open now could fail, for want of one.
        for fd in set(range(max(before) + 1 + _PIPE_ENDS)) - before:
            with contextlib.suppress(OSError):
                os.close(fd)
        raise


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False

    return True


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block handled signals for the block.

    A signal between fork() and the child's own set-up would run the *inherited* handler, which
    writes to the parent's wake-up descriptor: the signal would be lost, and the stop would hang.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent(parent: int, death_signal: int = signal.SIGKILL) -> None:
    """Have the kernel send *death_signal* to this process when its parent dies.

    The parent may have died before the call: then the process ends here.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        os._exit(1)


def _run_child(body: Callable[[], int], parent: int, keep: frozenset[int]) -> None:
    """First steps of every child; never returns, so that nothing inherited is finalised."""
    status = 1
    try:
        _reset_signals()
        _close_descriptors(keep)
        _close_stdin()
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        die_with_parent(parent)
        _forget_loop()
        status = body()
    except BaseException:  # noqa: BLE001  whatever it is, it is told, and the child must not return
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)
    for number in _IGNORED_IN_CHILDREN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)


def _close_descriptors(keep: frozenset[int]) -> None:
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - keep - {0, 1, 2}:
        with contextlib.suppress(OSError):
            os.close(fd)


def _close_stdin() -> None:
    """Have nothing on stdin: reading the terminal would stop a process in a background group.

    What `multiprocess` had put there was closed by number a moment ago, and that number is some
    other descriptor next.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  it is never closed


def _forget_loop() -> None:
    asyncio._set_running_loop(None)
    policy: Any = type(asyncio.get_event_loop_policy())
    asyncio.set_event_loop_policy(policy())
