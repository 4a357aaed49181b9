"""Commands of ``td-runtime`` as processes that need not read Python and its libraries in first.

That is most of what a short command costs. Here one process has read everything in, and forks
for each command: with arguments, descriptors, folder and environment of the caller, from
``td_runtime.cli.main`` to the exit code. What the installed command reads in, and when, is held
where tests call it by `command.td`.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from td_runtime.cli.app import COMMANDS
from tests.acceptance.command import EXECUTABLE, command
from tests.runtime_process import PATIENCE

_MESSAGE_BYTES = 1 << 17
_READ_IN = (
    *(f"td_runtime.cli.{place.partition(':')[0]}" for place, _ in COMMANDS.values()),
    "td_runtime.supervisor",
    "typer.rich_utils",
)


def forked(
    *arguments: str,
    config: Path | None = None,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Call one command to its end, with arguments and answer of `command.td`."""
    words = command(*arguments, config=config)
    request = {"words": words, "cwd": str(cwd or Path.cwd()), "env": {**os.environ, **(env or {})}}
    with _file(stdin or "") as given, _file() as out, _file() as err:
        code = _server().run(request, [given.fileno(), out.fileno(), err.fileno()])
        return subprocess.CompletedProcess(words, code, _text(out), _text(err))


class _Server:
    """Forks for commands, one after the other; ends with the process that started it."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(2 * PATIENCE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.acceptance.forked", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                process_group=0,
            )

    def run(self, request: dict[str, Any], descriptors: list[int]) -> int:
        """Run a command to its end; returns its exit code."""
        socket.send_fds(self._connection, [json.dumps(request).encode()], descriptors)
        child = int(self._connection.recv(64))
        try:
            return int(self._connection.recv(64))
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            self._connection.recv(64)
            raise


@cache
def _server() -> _Server:
    return _Server()


def _file(text: str = "") -> IO[bytes]:
    file = os.fdopen(os.memfd_create("stdio"), "w+b")
    file.write(text.encode())
    file.seek(0)
    return file


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _serve(connection: socket.socket) -> None:
    """Fork for each request; returns in a child, and in the server once nobody asks any more."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
        if not message:
            sys.exit()
        child = os.fork()
        if not child:
            connection.close()
            return _become(json.loads(message), descriptors)
        connection.send(str(child).encode())
        for descriptor in descriptors:
            os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.send(str(code).encode())


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Be what a shell starts: these descriptors, this environment, arguments and folder."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["words"]


if __name__ == "__main__":
    for name in _READ_IN:
        import_module(name)
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_path(EXECUTABLE, run_name="__main__")
