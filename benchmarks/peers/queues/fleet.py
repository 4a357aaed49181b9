"""Starts, fills, watches and ends task queues, ours and others, each in its own environment."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.arena import BENCHMARKS
from peers.queues.record import SIZE

PYTHON = BENCHMARKS.parent / ".venv/peers-runs/bin/python"
_MEMORY = "/dev/shm"
_CONFIG = """
[runtime]
data_dir = "data"
workers = {workers}

[[tasks]]
id = "noop"
entrypoint = "tasks:noop"

[[tasks]]
id = "nap"
entrypoint = "tasks:nap"
"""
_TASKS = """
import asyncio
import os

from peers.queues import record


async def noop(payload):
    record.record()


async def nap(payload):
    record.record()
    await asyncio.sleep(float(os.environ.get("BENCH_NAP", "4")))
"""
_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A task queue in one of its settings."""

    title: str
    app: str = ""
    command: str = ""
    """What starts so many `{workers}`; empty: ours."""
    environment: dict[str, str] = field(default_factory=dict)
    stop: signal.Signals = signal.SIGTERM
    is_sqlite: bool = False


_HUEY = "huey_consumer peers.queues.huey_app.huey -k process -w {workers} -q"
_CELERY = "celery -A peers.queues.celery_app worker -c {workers} -l warning"
_RQ = "rq worker-pool -n {workers} --url {redis} -q"
_TASKIQ = "taskiq worker peers.queues.taskiq_app:broker -w {workers} --log-level WARNING"
SIDES = {
    "ours": Side(title="td-runtime"),
    "huey-sqlite": Side(
        title="Huey, SQLite",
        app="huey_app",
        command=_HUEY,
        stop=signal.SIGINT,
        is_sqlite=True,
    ),
    "huey-redis": Side(title="Huey, Redis", app="huey_app", command=_HUEY, stop=signal.SIGINT),
    "taskiq-list": Side(title="Taskiq, list", app="taskiq_app", command=_TASKIQ),
    "taskiq-stream": Side(
        title="Taskiq, stream",
        app="taskiq_app",
        command=_TASKIQ,
        environment={"BENCH_STREAM": "1"},
    ),
    "saq": Side(
        title="SAQ",
        app="saq_app",
        command="saq peers.queues.saq_app.settings --workers {workers} -q",
    ),
    "celery": Side(title="Celery", app="celery_app", command=_CELERY),
    "celery-safe": Side(
        title="Celery, acks_late and reject_on_worker_lost",
        app="celery_app",
        command=_CELERY,
        environment={"BENCH_SAFE": "1"},
    ),
    "dramatiq": Side(
        title="Dramatiq",
        app="dramatiq_app",
        command="dramatiq peers.queues.dramatiq_app -p {workers} -t 8",
    ),
    "rq": Side(title="RQ", app="rq_app", command=_RQ),
    "rq-retry": Side(
        title="RQ, Retry(max=3)", app="rq_app", command=_RQ, environment={"BENCH_SAFE": "1"}
    ),
}


@dataclass(slots=True)
class Fleet:
    """One side in a folder of its own: its queue, and its processes while they run."""

    side: Side
    folder: Path
    environment: dict[str, str]
    redis: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0

    @property
    def is_ours(self) -> bool:
        return not self.side.command

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    # -- the queue

    def fill(self, task: str, count: int) -> float:
        """Enqueue so many while nobody works; return the seconds."""
        if self.is_ours:
            return asyncio.run(self._fill_store(task, count))

        return float(self.client("fill", task, count)[0])

    async def _fill_store(self, task: str, count: int) -> float:
        from td_runtime.store import NewRun, open_store

        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        new = NewRun(task=task)
        async with open_store(self.data_dir / "runs.db") as store:
            started = time.monotonic()
            for at in range(0, count, _BATCH):
                await store.accept([new] * min(_BATCH, count - at))
            return time.monotonic() - started

    def client(self, act: str, task: str, count: int) -> list[float]:
        """Have a client in the peer's environment do something."""
        done = subprocess.run(
            [PYTHON, "-m", "peers.queues.client", self.side.app, act, task, str(count)],
            env={**self.environment, "BENCH_CLIENT": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=True,
        )

        return [float(each) for each in json.loads(done.stdout)]

    @contextmanager
    def control(self) -> Iterator[Any]:
        """Yield a client of our supervisor."""
        from td_runtime.control import ControlClient
        from td_runtime.data_dir import DataDir

        with ControlClient(DataDir(self.data_dir)) as client:
            yield client

    # -- what the tasks said

    @property
    def count(self) -> int:
        path = self.environment["BENCH_RECORDS"]

        return Path(path).stat().st_size // SIZE if Path(path).exists() else 0

    def records(self) -> list[tuple[float, int]]:
        """Return when each task began, in seconds, and in which process."""
        if not self.count:
            return []
        lines = Path(self.environment["BENCH_RECORDS"]).read_text().splitlines()

        return sorted((int(line[:20]) / 1e9, int(line[21:])) for line in lines)

    def wait_for(self, count: int, within: float) -> bool:
        """Wait until so many have begun."""
        deadline = time.monotonic() + within
        while self.count < count:
            if time.monotonic() > deadline or (self.process and self.process.poll() is not None):
                return False
            time.sleep(0.005)

        return True

    # -- the processes

    def start(self, workers: int) -> None:
        command = self.side.command.format(workers=workers, redis=self.redis).split()
        if self.is_ours:
            (self.folder / "td-runtime.toml").write_text(_CONFIG.format(workers=workers))
            (self.folder / "tasks.py").write_text(_TASKS)
            words = [sys.executable, "-m", "td_runtime", "start"]
        else:
            words = [str(PYTHON.with_name(command[0])), *command[1:]]
        self.started_at = time.monotonic()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                words,
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait_until_ready(self, within: float = 20.0) -> None:
        """Wait until all of ours have booted; the others do not say, so they get a second."""
        if not self.is_ours:
            time.sleep(1.0)
            return
        from td_runtime.control import GetStatus, NotRunningError, StatusView

        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            with suppress(NotRunningError), self.control() as client:
                status = client.ask(GetStatus(), StatusView)
                states = {worker.state for worker in status.workers}
                if status.state == "running" and states == {"ready"}:
                    return
            time.sleep(0.02)

    def stop(self, within: float) -> float | None:
        """Ask the head to end; return the seconds until it has, None if it has not."""
        if self.process is None:
            return None
        started = time.monotonic()
        self.process.send_signal(self.side.stop)
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill_all()
            return None

        return time.monotonic() - started

    def kill_all(self) -> float:
        """Kill every process of the tree at once; return when."""
        if self.process is None:
            return 0.0
        pids = self.tree()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        at = time.monotonic()
        for pid in {*pids, *self.tree()}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

        return at

    def tree(self) -> list[int]:
        """Return the processes of the tree, the head first."""
        if self.process is None or self.process.poll() is not None:
            return []
        parents = dict(_parents())
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]

        return found


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                stat = Path("/proc", name, "stat").read_text()
                yield int(name), int(stat.rpartition(")")[2].split()[1])


def pss(pid: int) -> float:
    """Return the MiB that a process has of its own, and its share of what it shares."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024

    return 0.0


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has had; 0 for one that is gone."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    return 0.0


def switches(pid: int) -> int:
    """Return how often the threads of a process were woken up; 0 for one that is gone."""
    total = 0
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for line in (thread / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])

    return total


def absence(name: str, redis: str) -> str:
    """Say why a side cannot take part; empty if it can."""
    side = SIDES[name]
    if not side.command:
        return ""
    if not PYTHON.exists():
        return f"skipped: no {PYTHON.name} of the peers; `make bench-runs` makes it"
    if not side.is_sqlite and not redis:
        return "skipped: redis-server is not installed"

    return ""


@contextmanager
def fleet(name: str, redis: str) -> Iterator[Fleet]:
    """Yield a side with an empty queue; whatever it has started is gone afterwards."""
    side = SIDES[name]
    # On the disk of the working folder: /tmp may be memory, where a sync costs nothing.
    with (
        tempfile.TemporaryDirectory(
            prefix=".td-bench-", dir=Path.cwd(), ignore_cleanup_errors=True
        ) as folder,
        tempfile.TemporaryDirectory(prefix="td-bench-", dir=_MEMORY) as memory,
    ):
        if redis:
            _flush(redis)
        environment = {
            **os.environ,
            **side.environment,
            "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]),
            "BENCH_RECORDS": f"{memory}/records",
            "BENCH_REDIS": redis,
            "TD_RUNTIME_CREDENTIALS__DIR": f"{folder}/credentials",
        }
        if side.is_sqlite:
            environment["BENCH_SQLITE"] = f"{folder}/huey.db"
        ready = Fleet(side, Path(folder), environment, redis)
        try:
            yield ready
        finally:
            ready.kill_all()


def _flush(redis: str) -> None:
    import socket
    from urllib.parse import urlsplit

    address = urlsplit(redis)
    with socket.create_connection((address.hostname, address.port or 6379)) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        connection.recv(64)
