"""A real ``td-runtime start`` for tests: the installed command, real workers, a real gateway.

::

    with RuntimeProcess(data_dir, tasks=SOURCE) as runtime:
        run_id = runtime.trigger("hello", {"a": 1})
        assert runtime.result(run_id).status == "COMPLETED"
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec

from td_runtime.control import (
    Accepted,
    ControlClient,
    GetStatus,
    GetTree,
    RunView,
    StatusView,
    TreeView,
    TriggerRuns,
    WaitForRun,
)
from td_runtime.data_dir import DataDir
from td_runtime.gateway.client import PlatformClient, Stats
from td_worker.messages import ChildOutcome, TriggerItem

PATIENCE = 30.0
"""Seconds after which a test that waits for something says that it did not come."""


class RuntimeProcess:
    """One supervisor over one folder; can be stopped, killed, and started again.

    Attributes:
        folder: Holds the config file, ``tasks.py``, the data folder and the credential cache.
        events: Every log line so far, decoded; those of earlier starts, too.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tasks: str,
        workers: int = 4,
        concurrency: int = 10,
        level: str = "info",
        drain_timeout: str = "20s",
        task_options: dict[str, str] | None = None,
        options: str = "",
        allow_faults: bool = True,
    ) -> None:
        self.folder = folder
        self.config = folder / "td-runtime.toml"
        self.data_dir = DataDir(folder / "data")
        self.credentials = folder / "credentials"
        self.events: list[dict[str, Any]] = []
        self.raw_log = b""
        self._allow_faults = allow_faults
        self._changed = threading.Condition()
        (folder / "tasks.py").write_text(tasks)
        self.config.write_text(
            _config_text(
                folder,
                tasks,
                workers,
                concurrency,
                level,
                drain_timeout,
                task_options or {},
                options,
            )
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def start(self) -> None:
        """Start it and return once it takes runs."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "td_runtime", "start", "-c", str(self.config)]
        command += ["--owner-fd", str(theirs.fileno())]
        if self._allow_faults:
            command.append("--allow-faults")
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, process_group=0
        )
        theirs.close()
        self._reader = threading.Thread(target=self._read_log, args=(self.process.stdout,))
        self._reader.start()
        self._owner = ours
        ours.settimeout(PATIENCE)
        try:
            is_ready = ours.recv(6) == b"ready\n"
        except TimeoutError:
            is_ready = False
            self.process.kill()
        if not is_ready:
            self.wait_for_exit()
            raise AssertionError(f"not ready; log: {self.raw_log.decode()[-6000:]}")

    def stop(self) -> int:
        """Drain it; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_for_exit()

    def kill(self) -> None:
        """End the supervisor with SIGKILL, in the middle of whatever it does."""
        self.process.kill()
        self.wait_for_exit()

    def wait_for_exit(self) -> int:
        """Return the exit code, once every log line has been read."""
        code = self.process.wait(PATIENCE)
        self._owner.close()
        self._reader.join(PATIENCE)
        return code

    def trigger(self, task: str, payload: Any = None) -> str:
        """Ask for a run; returns its id."""
        return self.trigger_many(task, [payload])[0]

    def trigger_many(self, task: str, payloads: list[Any]) -> list[str]:
        """Ask for runs in one request."""
        items = [TriggerItem(task=task, payload=msgspec.json.encode(p)) for p in payloads]
        with ControlClient(self.data_dir) as client:
            return client.ask(TriggerRuns(items=items), Accepted).run_ids

    def result(self, run_id: str) -> ChildOutcome:
        """Return the outcome of a run, once it has one."""
        return self.view(run_id).outcome

    def view(self, run_id: str) -> RunView:
        """Return a run once it has an outcome."""
        with ControlClient(self.data_dir) as client:
            client.send(WaitForRun(run_id=run_id))
            answered, _, _ = select.select([client], [], [], PATIENCE)
            assert answered, f"no outcome of {run_id}; log: {self.raw_log.decode()[-6000:]}"
            return client.receive(RunView)

    def output(self, run_id: str) -> Any:
        """Return the output of a run that must complete."""
        outcome = self.result(run_id)
        assert outcome.status == "COMPLETED", outcome
        assert outcome.output is not None
        return msgspec.json.decode(outcome.output)

    def tree(self, root_id: str) -> list[RunView]:
        """Return a root run and all below it."""
        with ControlClient(self.data_dir) as client:
            return client.ask(GetTree(root_id=root_id), TreeView).runs

    def status(self) -> StatusView:
        """Return what the supervisor says of itself."""
        with ControlClient(self.data_dir) as client:
            return client.ask(GetStatus(), StatusView)

    @property
    def url(self) -> str:
        """The gateway's address."""
        return f"http://127.0.0.1:{self.data_dir.read_port()}"

    @property
    def secret_key(self) -> str:
        """The API key."""
        return self.data_dir.read_secret().reveal()

    def platform(self) -> PlatformClient:
        """Return a client of the gateway's admin routes."""
        return PlatformClient(self.url, self.data_dir.read_secret())

    def stats(self) -> Stats:
        """Return what the gateway counts."""
        with self.platform() as client:
            return client.stats()

    def fault(self, **fault: Any) -> None:
        """Break the platform on purpose."""
        with self.platform() as client:
            client.add_fault(fault)

    def until(self, holds: Callable[[list[dict[str, Any]]], bool], what: str) -> None:
        """Return once *holds* is true of the log; looks again at each line."""
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self.events), PATIENCE), (
                f"never seen: {what}; log: {self.raw_log.decode()[-4000:]}"
            )

    def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """Return the first log line of that event with those fields, once it is there."""
        self.until(lambda _: bool(self.find(name, **fields)), f"{name} {fields}")
        return self.find(name, **fields)[0]

    def find(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the log lines of that event with those fields."""
        return [
            line
            for line in self.events
            if line["event"] == name and all(line.get(k) == v for k, v in fields.items())
        ]

    def stored(self, run_id: str, key: str, at_least: int) -> int:
        """Return how many records a stream has, once there are *at_least* so many."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            count = self.stats().records.get(f"{run_id}/{key}", 0)
            if count >= at_least:
                return count
        raise AssertionError(f"{run_id}/{key} never had {at_least} records")

    def _read_log(self, stream: Any) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    self.raw_log += line
                    self.events.append(json.loads(line))
                    self._changed.notify_all()


def _config_text(
    folder: Path,
    tasks: str,
    workers: int,
    concurrency: int,
    level: str,
    drain_timeout: str,
    options: dict[str, str],
    runtime_options: str,
) -> str:
    """Register every top-level function of the source that does not begin with an underscore."""
    names = [
        line.removeprefix("async ").removeprefix("def ").partition("(")[0]
        for line in tasks.splitlines()
        if line.startswith(("def ", "async def ")) and "def _" not in line
    ]
    runtime = (
        f'[runtime]\ndata_dir = "data"\nworkers = {workers}\nconcurrency = {concurrency}\n'
        f'drain_timeout = "{drain_timeout}"\n{runtime_options}\n'
        f'[credentials]\ndir = "{folder}/credentials"\n'
        f'[log]\nformat = "json"\nlevel = "{level}"\n'
    )
    parts = [runtime]
    parts += [
        f'[[tasks]]\nid = "{name}"\nentrypoint = "tasks:{name}"\n{options.get(name, "")}\n'
        for name in names
    ]

    return "\n".join(parts)


def is_alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pids: list[int], within_s: float) -> list[int]:
    """Return those of *pids* that still live when *within_s* seconds are over."""
    deadline = time.monotonic() + within_s
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            os.close(pidfd)
    return [pid for pid in pids if is_alive(pid)]
