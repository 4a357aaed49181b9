"""Runs contenders, each in the environment it needs, and has a Redis for those that need one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.contenders import CONTENDERS, Contender, OursBlocking

BENCHMARKS = Path(__file__).parents[1]
PYTHON = BENCHMARKS.parent / ".venv/peers/bin/python"
_PATIENCE = 60
"""Seconds after which a round is given up."""

Outcome = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """Where experiments are run."""

    redis: str = ""
    """A URL; empty if there is no Redis on this machine."""

    def absence(self, name: str) -> str:
        """Say why a contender cannot take part; empty if it can."""
        needs_redis = "redis" in "".join(CONTENDERS[name].modules)

        return "skipped: redis-server is not installed" if needs_redis and not self.redis else ""

    def run(self, experiment: str, name: str, **options: Any) -> Outcome:
        """Run one round in a process of its own, and return what it measured."""
        environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
        arguments = json.dumps({"redis": self.redis, **options})
        command = [_python_of(CONTENDERS[name]), "-m", "peers.experiments", experiment, name]
        with subprocess.Popen(
            [*command, arguments], env=environment, stdout=subprocess.PIPE, process_group=0
        ) as process:
            try:
                report, _ = process.communicate(timeout=_PATIENCE)
            finally:
                # Whatever it has forked must not outlive it.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode != 0:
            raise RuntimeError(f"{name} has failed in {experiment}")

        return dict(json.loads(report))

    def run_all(
        self, experiment: str, rounds: Mapping[str, int], **options: Any
    ) -> dict[str, list[Outcome]]:
        """Run contenders in turn, round by round, so that a busy moment does not hit one alone.

        Args:
            experiment: Which.
            rounds: How many of each contender.
            options: Of the experiment.
        """
        seen: dict[str, list[Outcome]] = {name: [] for name in rounds}
        for number in range(max(rounds.values())):
            for name, wanted in rounds.items():
                if number < wanted and not self.absence(name):
                    seen[name].append(self.run(experiment, name, **options))

        return seen

    def run_beside(
        self, experiment: str, rounds: Mapping[str, int], **options: Any
    ) -> dict[str, list[Outcome]]:
        """Run contenders that mostly wait, all at the same time."""
        with ThreadPoolExecutor(len(rounds)) as pool:
            futures: dict[str, Future[dict[str, list[Outcome]]]] = {
                name: pool.submit(self.run_all, experiment, {name: wanted}, **options)
                for name, wanted in rounds.items()
            }
            return {name: future.result()[name] for name, future in futures.items()}


@contextmanager
def arena(*, python_needed: bool = True) -> Iterator[Arena]:
    """Yield an arena; with a Redis of its own, if there is one to start."""
    if python_needed and not PYTHON.exists():
        sys.exit(f"no {PYTHON}: `make bench-cache` makes it")
    program = shutil.which("redis-server")
    if program is None:
        yield Arena()
        return

    port = _free_port()
    options = f"--bind 127.0.0.1 --port {port} --appendonly no --logfile /dev/null"
    process = subprocess.Popen([program, *options.split(), "--save", ""], cwd="/")
    try:
        _wait_for(port, process)
        yield Arena(redis=f"redis://127.0.0.1:{port}/0")
    finally:
        process.terminate()
        process.wait()


def _python_of(contender: type[Contender]) -> str:
    return sys.executable if issubclass(contender, OursBlocking) else str(PYTHON)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            continue
        return

    raise RuntimeError("redis-server has ended at once")
