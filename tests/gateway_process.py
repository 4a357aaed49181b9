"""A real gateway process for tests, on a free loopback port.

::

    with start_gateway(tmp_path) as gateway:
        gateway.add_run("run_1")
        httpx.put(f"{gateway.url}/realtime/v1/streams/run_1/self/out", headers=gateway.headers)
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_S = 30.0
STOP_S = 10.0


class GatewayProcess:
    """One gateway over one data folder; it can be stopped, killed and started again.

    Attributes:
        url: Where it answers, e.g. ``http://127.0.0.1:40123``; the same after a restart.
        secret_key: The key of the control plane.
        headers: The key as request headers.
        data_dir: Holds ``platform.db`` and ``runs.db``.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        allow_faults: bool = True,
        allow_origins: tuple[str, ...] = (),
        port: int | None = None,
    ) -> None:
        self.data_dir = data_dir
        # Of this process alone: a search for it must not find somebody else's command line.
        self.secret_key = f"tr_dev_test_{secrets.token_hex(8)}"
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.headers = {"authorization": f"Bearer {self.secret_key}"}
        self._allow_faults = allow_faults
        self._allow_origins = allow_origins
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._create_runs()

    @property
    def pid(self) -> int:
        """The process id of the running gateway."""
        assert self._process is not None
        return self._process.pid

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its log lines, also those of earlier starts."""
        return [json.loads(line) for line in self.stderr.splitlines()]

    @property
    def stderr(self) -> str:
        """What it wrote to standard error."""
        return (self.data_dir / "gateway.log").read_text()

    def start(self) -> None:
        """Start it and wait for READY. It ends with the thread that called this."""
        control, theirs = socket.socketpair()
        with theirs, (self.data_dir / "gateway.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "td_runtime.gateway"],
                stdin=subprocess.PIPE,
                stderr=log,
                pass_fds=[theirs.fileno()],
            )
            self._send_settings(theirs.fileno())
        self._control = control
        self._await_ready()

    def stop(self) -> int:
        """End it as the supervisor does, by SIGTERM; returns its exit code."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self._reap()

    def disown(self) -> int:
        """End it as a supervisor's death does, by closing its control descriptor."""
        assert self._control is not None
        self._control.close()
        return self._reap()

    def kill(self) -> None:
        """End it with SIGKILL, in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        self._reap()

    def restart(self) -> None:
        """Stop it if it runs, and start it again on the same port and folder."""
        self.stop()
        self.start()

    def add_run(
        self,
        run_id: str,
        status: str = "EXECUTING",
        *,
        parent_id: str | None = None,
        root_id: str | None = None,
        task: str | None = None,
    ) -> None:
        """Put a run into ``runs.db``, or change it."""
        with contextlib.closing(self._open_runs()) as connection, connection:
            connection.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)",
                (run_id, status, parent_id, root_id, task),
            )

    def stats(self) -> dict[str, Any]:
        """Its statistics."""
        return self.call("GET", "/platform/v1/stats")

    def fault(self, **fault: Any) -> dict[str, Any]:
        """Ask for a fault, e.g. ``fault(kind="status", status=503, target="stream-store")``."""
        return self.call("POST", "/platform/v1/faults", fault)

    def clear_faults(self) -> None:
        """End all faults."""
        self.call("DELETE", "/platform/v1/faults")

    def call(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        """Call an admin route; raises when it is not answered with 200."""
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(
            self.url + path, data=body, headers=self.headers, method=method
        )
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            result: dict[str, Any] = json.load(answer)
        return result

    def _send_settings(self, control_fd: int) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        settings = {
            "data_dir": str(self.data_dir),
            "host": "127.0.0.1",
            "port": self.port,
            "secret_key": self.secret_key,
            "allow_faults": self._allow_faults,
            "allow_origins": self._allow_origins,
            "log": {"format": "json", "level": "debug", "fd": None},
            "control_fd": control_fd,
        }
        with self._process.stdin as stdin:
            stdin.write(json.dumps(settings).encode())

    def _await_ready(self) -> None:
        assert self._control is not None
        readable, _, _ = select.select([self._control], [], [], START_S)
        said = self._control.recv(64) if readable else b"nothing in time"
        if said != b"READY\n":
            self.kill()
            raise RuntimeError(f"the gateway did not start: {said!r}\n{self.stderr}")

    def _reap(self) -> int:
        assert self._process is not None
        code = self._process.wait(STOP_S)
        if self._control is not None:
            self._control.close()
        self._process = self._control = None
        return code

    def _create_runs(self) -> None:
        with contextlib.closing(self._open_runs()) as connection, connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS runs"
                " (id TEXT PRIMARY KEY, status TEXT, parent_id TEXT, root_id TEXT, task TEXT)"
            )

    def _open_runs(self) -> sqlite3.Connection:
        return sqlite3.connect(self.data_dir / "runs.db")


@contextlib.contextmanager
def start_gateway(
    data_dir: Path, *, allow_faults: bool = True, allow_origins: tuple[str, ...] = ()
) -> Iterator[GatewayProcess]:
    """A gateway that answers; it is gone when the block is left, however it is left."""
    gateway = GatewayProcess(data_dir, allow_faults=allow_faults, allow_origins=allow_origins)
    os.chmod(data_dir, 0o700)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
