"""A supervisor that belongs to one command: started, waited for, and stopped with it."""

import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import typer

from td_runtime.errors import TdRuntimeError

__all__ = ["OwnedSupervisor"]

_READY: Final = b"ready\n"


class OwnedSupervisor:
    """``td-runtime start`` as a child process, in a context.

    Its log goes to stderr. It stops when the context is left, and when this process dies: it holds
    one end of a socket pair and reads EOF there.
    """

    def __init__(self, config: Path, *, allow_faults: bool = False) -> None:
        self._config = config
        self._allow_faults = allow_faults
        self._socket: socket.socket
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self._socket, theirs = socket.socketpair()
        # -P: modules that happen to lie in the working folder must not be taken for tasks or ours.
        command = [sys.executable, "-P", "-m", "td_runtime", "start", "-c", str(self._config)]
        command += ["--log-to-stderr", "--owner-fd", str(theirs.fileno())]
        if self._allow_faults:
            command.append("--allow-faults")
        # A group of its own: Ctrl-C reaches this command alone, which then stops it in order.
        self._process = subprocess.Popen(  # noqa: S603  our own module, our own interpreter
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0
        )
        theirs.close()
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            typer.echo(
                "td-runtime: stopping (once more: at once); an unfinished run goes on when the "
                "runtime is started again",
                err=True,
            )
        self._stop()
        if isinstance(error, TdRuntimeError):
            self._explain(error)

    def _explain(self, error: TdRuntimeError) -> None:
        """Tell what was behind *error*, if the supervisor has failed.

        While it goes down it may refuse, hang up, or have no gateway any more.

        Raises:
            typer.Exit: It gave up, and has told why; the code is its own.
            TdRuntimeError: It was killed.
        """
        status = self._process.returncode
        if status > 0:
            raise typer.Exit(status) from error
        if status < 0:
            raise TdRuntimeError(
                f"the supervisor was killed by {signal.Signals(-status).name}",
                where=f"pid {self._process.pid}",
                advice="The run is kept and goes on when the runtime is started again.",
            ) from error

    def _wait_until_ready(self) -> None:
        """Return once it answers.

        Raises:
            typer.Exit: It ended before; it has told why, and the code is its own.
            TdRuntimeError: It was killed, or stopped by somebody else.
        """
        if self._socket.recv(len(_READY)) != _READY:
            self._process.wait()
            error = TdRuntimeError("the supervisor was stopped before it was ready")
            self._explain(error)
            raise error

    def _stop(self) -> None:
        """Drain it. A Ctrl-C meanwhile is passed on, and makes it stop at once."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait()
        except KeyboardInterrupt:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        with contextlib.suppress(OSError):
            self._socket.close()
