"""The log sink: the one process that owns stdout, and the last one to leave.

Every other process sends whole lines as messages over one `SOCK_SEQPACKET` socket and never waits.
The sink takes them off the socket as fast as they come and writes them out, whole and in order.

Why they never have to: stdout belongs to a `LineWriter`, whose thread may be stuck in a write for
as long as its reader likes.

The sink also outlives a supervisor that is killed with SIGKILL, and such a supervisor cannot
clean up. It tells the sink each process group it starts and each it has reaped; when it dies
without saying goodbye, the sink kills the groups that are left.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Final

import msgspec

from td_runtime.errors import naming_refusal
from td_runtime.logs import Format, Renderer
from td_runtime.logs.writer import LineWriter

__all__ = ["LogSink", "run"]

_CONTROL: Final = b"\x00"  #: first byte of a message to the sink itself; no line begins with it
_MAX_MESSAGE: Final = 512 * 1024
#: More than the socket can hold: one turn reads all that was there when it began, and no sender
#: that never stops can keep the sink from seeing that its supervisor is dead.
_MAX_TURN: Final = 20_000
_SEND_BUFFER: Final = 4 * 1024 * 1024
#: Seconds that senders get to end once the supervisor is gone.
_ORPHAN_TIMEOUT: Final = 1.0
_IGNORED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGPIPE,
    # Writing to a terminal from a background group (`stty tostop`) would stop this process.
    signal.SIGTTOU,
)


class _Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message from the supervisor; exactly one field is set."""

    guard: int | None = None
    unguard: int | None = None
    bye: bool = False


class _Guard:
    """The process groups that must not outlive the supervisor."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self.said_goodbye = False

    def obey(self, message: bytes) -> None:
        """Follow one control message; what is not understood is left alone."""
        try:
            control = msgspec.json.decode(message, type=_Control)
        except msgspec.DecodeError:
            return
        if control.guard is not None and control.guard > 1:
            self._groups.add(control.guard)
        if control.unguard is not None:
            self._groups.discard(control.unguard)
        self.said_goodbye = self.said_goodbye or control.bye

    def kill(self) -> None:
        """Kill every group that is left."""
        for group in self._groups - {os.getpgrp()}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        self._groups.clear()


def run(
    receiver: socket.socket,
    out_fd: int,
    supervisor_pidfd: int,
    *,
    format: Format,  # noqa: A002  the config key's name
    host: str,
) -> int:
    """Be the log sink until every sender has closed, or the supervisor is gone.

    Args:
        receiver: The reading end of the socket; this process holds no sending end.
        out_fd: Stdout, or where lines go instead. Its flags are left as they are.
        supervisor_pidfd: Becomes readable when the supervisor ends.
        format: How the sink's own lines are rendered.
        host: Name of this machine, for the sink's own lines.

    Returns:
        The exit status: 0, or 1 when lines could not be written.
    """
    renderer = Renderer(format=format, host=host, worker=None, max_line=65_536)
    writer = LineWriter(
        out_fd, lambda count: renderer.render("warning", {"event": "log.dropped", "count": count})
    )
    guard = _Guard()
    poller = select.poll()
    poller.register(receiver, select.POLLIN)
    poller.register(supervisor_pidfd, select.POLLIN)
    receiver.setblocking(False)
    inbox = memoryview(bytearray(_MAX_MESSAGE))
    while True:
        # After the goodbye, somebody who escaped with the sending end is waited for only so long.
        ready = dict(poller.poll(_ORPHAN_TIMEOUT * 1000 if guard.said_goodbye else None))
        if not ready:
            break
        # What the supervisor said last is read before its death is acted on: a worker that was
        # announced a moment ago must be among those that are killed.
        if not _receive(receiver, inbox, writer, guard):
            break
        if supervisor_pidfd in ready:
            _outlive_supervisor(receiver, inbox, writer, guard)
            break
    # All senders closed without a goodbye: the supervisor died, and its workers before it; what
    # they had started may still live in their groups.
    if not guard.said_goodbye:
        guard.kill()

    return 0 if writer.close() else 1


def _receive(receiver: socket.socket, inbox: memoryview, writer: LineWriter, guard: _Guard) -> bool:
    """Take the messages that are there; False when all senders have closed."""
    for _ in range(_MAX_TURN):
        try:
            size = receiver.recv_into(inbox)
        except BlockingIOError:
            break
        except ConnectionResetError:
            return False
        if not size:
            return False
        message = bytes(inbox[:size])
        if message.startswith(_CONTROL):
            guard.obey(message[1:])
        else:
            writer.put(message if message.endswith(b"\n") else message + b"\n")

    return True


def _outlive_supervisor(
    receiver: socket.socket, inbox: memoryview, writer: LineWriter, guard: _Guard
) -> None:
    """Kill what the supervisor left behind, then take the last lines of whoever is dying."""
    if not guard.said_goodbye:
        guard.kill()
    poller = select.poll()
    poller.register(receiver, select.POLLIN)
    deadline = time.monotonic() + _ORPHAN_TIMEOUT
    while (rest := deadline - time.monotonic()) > 0:
        poller.poll(rest * 1000)
        if not _receive(receiver, inbox, writer, guard):
            return


class LogSink:
    """The supervisor's handle on the log sink it forked.

    Forked first, before there are loops and threads. `fd` is the end that every other process
    inherits and logs to; the supervisor closes it by `close`.

    Args:
        pid: The sink's process.
        sender: The sending end, owned by this object.
    """

    def __init__(self, pid: int, sender: socket.socket) -> None:
        self.pid = pid
        self._sender = sender
        self._status: int | None = None
        self.pidfd = os.pidfd_open(pid)

    @classmethod
    def start(cls, *, out_fd: int = 1, format: Format, host: str) -> LogSink:  # noqa: A002
        """Fork the sink.

        Not by `fork_child`: that child would be killed when its parent dies, and this one must
        outlive it.

        Args:
            out_fd: Where lines go.
            format: How the sink's own lines are rendered.
            host: Name of this machine, for the sink's own lines.

        Raises:
            TdRuntimeError: The system has no process, memory or descriptor for it.
        """
        with naming_refusal("the log sink"):
            return cls._start(out_fd, format, host)

    @classmethod
    def _start(cls, out_fd: int, format: Format, host: str) -> LogSink:  # noqa: A002
        sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _enlarge(sender)
        supervisor = os.pidfd_open(os.getpid())
        try:
            with _signals_blocked():
                pid = os.fork()
                if pid == 0:
                    sender.detach()
                    _run_child(receiver, out_fd, supervisor, format, host)
        except OSError:
            sender.close()
            raise
        finally:
            receiver.close()
            os.close(supervisor)

        return cls(pid, sender)

    @property
    def fd(self) -> int:
        """The descriptor to log to; children keep it."""
        return self._sender.fileno()

    def guard(self, group: int) -> bool:
        """Have a process group killed should this process die without `close`.

        Returns:
            Whether the sink was told; False when it is dead or does not read.
        """
        return self._tell({"guard": group})

    def unguard(self, group: int) -> bool:
        """Forget a group: its processes have been reaped, and its number may come again."""
        return self._tell({"unguard": group})

    def close(self, timeout: float = 10.0) -> int:
        """Say goodbye, close the sending end, and wait until the sink has written everything.

        Every other process has ended; one that still holds the sending end keeps the sink waiting.

        Args:
            timeout: Seconds after which the sink is killed.

        Returns:
            The sink's exit status, negative for a signal.
        """
        if self._status is None:
            self._tell({"bye": True})
            self._sender.close()
            self._status = self._wait(timeout)
            os.close(self.pidfd)

        return self._status

    def __enter__(self) -> LogSink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _tell(self, control: dict[str, int]) -> bool:
        """Send a control message; these must not be dropped, so it waits, at most a second."""
        message = _CONTROL + json.dumps(control).encode()
        for _ in range(10):
            try:
                self._sender.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                _wait_writable(self._sender.fileno(), timeout_s=0.1)
            except OSError:
                return False
            else:
                return True

        return False

    def _wait(self, timeout: float) -> int:
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        if not poller.poll(timeout * 1000):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return 0  # somebody waited for any child and took the status along

        return os.waitstatus_to_exitcode(status)


def _run_child(
    receiver: socket.socket,
    out_fd: int,
    supervisor_pidfd: int,
    format: Format,  # noqa: A002
    host: str,
) -> None:
    """The forked child: take nothing along but what the sink needs, and never return."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # A group of its own: `kill -9` of the supervisor's whole group must leave the guard alive.
        os.setpgid(0, 0)
        # Garbage of the parent's is never collected here, so none of its finalisers runs.
        gc.freeze()
        _close_others({2, out_fd, receiver.fileno(), supervisor_pidfd})
        status = run(receiver, out_fd, supervisor_pidfd, format=format, host=host)
    finally:
        os._exit(status)


def _close_others(keep: set[int]) -> None:
    """Close every descriptor but these, by number: objects of the parent's must not run."""
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - keep:
        with contextlib.suppress(OSError):
            os.close(fd)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block all signals: between fork and its first lines the child has its parent's handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _enlarge(sender: socket.socket) -> None:
    """Ask for room for some thousand lines; beyond the system's bound only root gets it."""
    force = getattr(socket, "SO_SNDBUFFORCE", 32)
    try:
        sender.setsockopt(socket.SOL_SOCKET, force, _SEND_BUFFER)
    except OSError:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)


def _wait_writable(fd: int, timeout_s: float | None = None) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    poller.poll(None if timeout_s is None else timeout_s * 1000)
