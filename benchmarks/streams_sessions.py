"""100 sessions in one worker, each at 20 chunks a second: what that costs, and how late acks are.

The process has what a worker has, and a real gateway to write to. Run it with `make bench-streams`,
or `.venv/bin/python benchmarks/streams_sessions.py`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

import msgspec
from _figures import print_table
from writers.ours import execution, worker

from td_sharedcache.credential import Credential
from td_worker import chat
from td_worker.context import executing
from td_worker.stream_store import Ack, Appended, StreamStore
from td_worker.streams.client import StreamClient

sys.path.append(str(Path(__file__).parents[1]))

from tests.gateway_process import start_gateway

ROUNDS = 3
SESSIONS = 100
A_SECOND = 20
SECONDS = 10


class ClockedStore(StreamStore):
    """Notes when each batch was acked."""

    def __init__(self) -> None:
        super().__init__()
        self.acked: list[tuple[float, Sequence[Appended]]] = []

    async def append(self, credential: Credential, records: Sequence[Appended]) -> Ack:
        ack = await super().append(credential, records)
        self.acked.append((time.monotonic(), records))

        return ack

    def latencies(self) -> list[float]:
        """Return the milliseconds from write to ack of every chunk, which says when it was."""
        return [
            (at - msgspec.json.decode(body)["data"]["at"]) * 1000
            for at, records in self.acked
            for body in records
            if isinstance(body, bytes)
        ]


async def talk(client: StreamClient, number: int, prefix: str) -> None:
    """Write as a model does: a chunk, a pause, a chunk."""
    loop = asyncio.get_running_loop()
    with executing(execution(client, "run_benchmark")):
        async with chat.bind(f"{prefix}-{number}"):
            begin = loop.time() + number / SESSIONS / A_SECOND
            for n in range(A_SECOND * SECONDS):
                await asyncio.sleep(begin + n / A_SECOND - loop.time())
                chunk = {"type": "text-delta", "id": "t", "delta": "word ", "at": time.monotonic()}
                await chat.response.write(chunk)


async def talk_all(client: StreamClient, prefix: str) -> tuple[float, float]:
    """Return the seconds of the wall clock and of the CPU; every session has its credential."""
    for number in range(SESSIONS):
        with executing(execution(client, "run_benchmark")):
            async with chat.bind(f"{prefix}-{number}"):
                await chat.response.write({"at": time.monotonic()}).wait()
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.gather(*(talk(client, number, prefix) for number in range(SESSIONS)))

    return time.monotonic() - began, time.process_time() - cpu


def measure(url: str, secret_key: str, credentials: str, prefix: str) -> list[float]:
    """Return the share of a core, p50 and p99 in milliseconds, and records a request."""
    store = ClockedStore()
    with worker(url, secret_key, credentials, store) as client:
        wall, cpu = asyncio.run(talk_all(client, prefix))
    late = quantiles(store.latencies()[SESSIONS:], n=100)

    return [cpu / wall * 100, late[49], late[98], len(store.latencies()) / len(store.acked)]


def main() -> None:
    if len(sys.argv) > 1:
        print(msgspec.json.encode(measure(*sys.argv[1:])).decode())
        return
    rounds: list[list[float]] = []
    with (
        tempfile.TemporaryDirectory(prefix=".td-bench-", dir=Path.cwd()) as folder,
        start_gateway(Path(folder)) as gateway,
    ):
        for number in range(ROUNDS):
            told = [gateway.url, gateway.secret_key, f"{folder}/credentials", f"s{number}"]
            done = subprocess.run(
                [sys.executable, __file__, *told], capture_output=True, check=True
            )
            rounds.append(msgspec.json.decode(done.stdout, type=list[float]))
    share, p50, p99, batch = (median(figures) for figures in zip(*rounds, strict=True))
    print_table(
        f"{SESSIONS} sessions in one worker, {A_SECOND} chunks/s each",
        ["CPU, share of a core", "goal", "write to ack, p50 ms", "p99 ms", "chunks a request"],
        [[f"{share:.0f} %", "60 %", f"{p50:.0f}", f"{p99:.0f}", f"{batch:.1f}"]],
    )


if __name__ == "__main__":
    main()
