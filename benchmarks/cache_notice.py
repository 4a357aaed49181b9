"""How soon 15 other workers know that a credential is dead.

A real `td-runtime run` with 16 workers: a task mints credentials, and evicts them one by one on the
runtime loop, as a failed write does. Measured from the call of `evict` to the return of `receive`
in each other worker; between them are the write to the shared file, the supervisor's relay and two
sockets. "Without the file" counts from when the notice is sent.

"All busy": each worker also runs a task that never waits, 16 of them on the CPUs there are.

"A bare byte" is what the machine needs for the same way without us: one process writes a byte to
another, which writes one to each of 15 that do nothing but read, and note when they did.
Run it with `make bench-cache`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from _figures import print_table

WORKERS = 16
EVICTIONS = 200
EVICTIONS_BUSY = 60
ROUNDS = 3
CONFIG = f"""
[runtime]
data_dir = "data"
workers = {WORKERS}
concurrency = 2
[credentials]
dir = "credentials"
[[tasks]]
id = "evict"
entrypoint = "tasks:evict"
[[tasks]]
id = "spin"
entrypoint = "tasks:spin"
"""
TASKS = '''
"""Evicts credentials, and notes in each worker when it knew."""

import asyncio
import os
import time
from functools import cache
from pathlib import Path

from td_sharedcache import CredentialCache, Slot
from td_worker import context, tasks

HERE = Path(__file__).parent
receive = CredentialCache.receive


def receive_and_note(self, notice):
    dropped = receive(self, notice)
    on_the_way, at = time.time() - notice.at, time.monotonic()
    os.write(notes(), f"{notice.credential_id} {at} {on_the_way}\\n".encode())
    return dropped


@cache
def notes():
    return os.open(HERE / f"seen.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


CredentialCache.receive = receive_and_note


async def evict(payload):
    streams = context.current().streams
    spinning = [await tasks.trigger("spin") for _ in range(payload["spinning"])]
    while len(list(HERE.glob("spins.*"))) < len(spinning):
        await asyncio.sleep(0.05)
    work = evict_all(streams._cache, context.run.id, payload["evictions"])
    evicted = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, streams._loop))
    await asyncio.sleep(1)
    (HERE / "stop").touch()
    return evicted


async def evict_all(credentials, run_id, count):
    slots = [Slot.run(run_id, f"{number}") for number in range(count)]
    held = [(slot, await credentials.get(slot)) for slot in slots]
    evicted = {}
    for slot, credential in held:
        await asyncio.sleep(0.01)
        evicted[credential.id] = time.monotonic()
        assert await credentials.evict(slot, credential.id, reason="benchmark")
    return evicted


def spin(payload):
    (HERE / f"spins.{os.getpid()}.{context.run.id}").touch()
    stop = str(HERE / "stop")
    while not os.path.exists(stop):
        sum(range(10_000))
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one eviction took to one worker, in ms."""

    since_call: float
    since_notice: float


def main() -> None:
    rows = [
        describe("idle", EVICTIONS, spinning=0, goal="p99 2 ms"),
        describe_floor(),
        describe("all busy", EVICTIONS_BUSY, spinning=WORKERS, goal=""),
    ]
    header = ["workers", "p50, ms", "p99, ms", "without the file: p50", "p99", "arrived", "goal"]
    print_table(f"An eviction, until {WORKERS - 1} other workers know", header, rows)


def measure(evictions: int, *, spinning: int) -> list[Seen]:
    """Evict in a runtime of its own, with so many tasks that never wait."""
    with tempfile.TemporaryDirectory(prefix="td-bench-") as name:
        folder = Path(name)
        (folder / "td-runtime.toml").write_text(CONFIG)
        (folder / "tasks.py").write_text(TASKS)
        evicted = _run(folder, {"evictions": evictions, "spinning": spinning})
        notes = [
            line.split() for file in folder.glob("seen.*") for line in file.read_text().splitlines()
        ]

    return [
        Seen(since_call=(float(at) - evicted[name]) * 1e3, since_notice=float(on_the_way) * 1e3)
        for name, at, on_the_way in notes
    ]


def describe(label: str, evictions: int, *, spinning: int, goal: str) -> list[str]:
    """Return a row of medians over rounds."""
    rounds = [measure(evictions, spinning=spinning) for _ in range(ROUNDS)]
    expected = evictions * (WORKERS - 1)
    arrived = "all" if all(len(seen) == expected for seen in rounds) else "NOT ALL"
    since_call = [[one.since_call for one in seen] for seen in rounds]
    since_notice = [[one.since_notice for one in seen] for seen in rounds]

    return [label, *_percentiles(since_call), *_percentiles(since_notice), arrived, goal]


def describe_floor() -> list[str]:
    """Return the row of a byte that goes the same way."""
    rounds = [ping(EVICTIONS) for _ in range(ROUNDS)]
    arrived = "all" if all(len(seen) == EVICTIONS * (WORKERS - 1) for seen in rounds) else "NOT ALL"

    return ["a bare byte", "", "", *_percentiles(rounds), arrived, ""]


def ping(count: int) -> list[float]:
    """Return the ms that each of so many bytes takes to each of 15 readers."""
    ours, relayed = socket.socketpair()
    reported, reporting = os.pipe()
    readers = [socket.socketpair() for _ in range(WORKERS - 1)]
    pids = [_fork(partial(_read, end, count, reporting)) for _, end in readers]
    # Of the readers alone: their end is the end of what is read below.
    os.close(reporting)
    pids.append(_fork(lambda: _relay(relayed, [end for end, _ in readers])))
    sent = []
    with closing(ours):
        for _ in range(count):
            time.sleep(0.01)
            sent.append(time.monotonic())
            ours.send(b".")
        with os.fdopen(reported, "rb") as source:
            notes = [struct.unpack("<Id", note) for note in iter(lambda: source.read(12), b"")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for end in (relayed, *(end for pair in readers for end in pair)):
        end.close()

    return [(at - sent[number]) * 1e3 for number, at in notes]


def _fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            work()
        os._exit(0)

    return pid


def _relay(source: socket.socket, targets: list[socket.socket]) -> None:
    while source.recv(1):
        for target in targets:
            target.send(b".")


def _read(source: socket.socket, count: int, reporting: int) -> None:
    seen = [struct.pack("<Id", number, _next(source)) for number in range(count)]
    os.write(reporting, b"".join(seen))


def _next(source: socket.socket) -> float:
    source.recv(1)

    return time.monotonic()


def _percentiles(rounds: list[list[float]]) -> list[str]:
    cuts = [quantiles(took, n=100) for took in rounds]

    return [f"{median(cut[49] for cut in cuts):.2f}", f"{median(cut[98] for cut in cuts):.1f}"]


def _run(folder: Path, payload: dict[str, int]) -> dict[str, float]:
    config = str(folder / "td-runtime.toml")
    command = [sys.executable, "-m", "td_runtime", "run", "-c", config, "--json", "evict"]
    with open(folder / "log", "wb") as log:
        done = subprocess.run(
            [*command, "--payload", json.dumps(payload)],
            stdout=subprocess.PIPE,
            stderr=log,
            check=True,
            timeout=90,
        )

    return {name: float(at) for name, at in json.loads(done.stdout)["output"].items()}


if __name__ == "__main__":
    main()
