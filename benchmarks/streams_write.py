"""Writing to streams: td_worker beside the official npm SDK and PyPI's s2-sdk, on one gateway.

Each side writes the same chunk from 1 and from 8 processes, in turn, round by round; seconds count
from the first that began to the last ack. Run it with `make bench-streams`, or
`.venv/bin/python benchmarks/streams_write.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count as counter
from pathlib import Path
from statistics import median
from typing import Any

from _figures import print_table

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from tests.gateway_process import GatewayProcess, start_gateway  # noqa: E402  of the project
from tests.interop.node import HERE as INTEROP  # noqa: E402
from tests.interop.node import Node, find, install  # noqa: E402
from tests.interop.s2_python.environment import make  # noqa: E402

ROUNDS = 3
PROCESSES = (1, 8)
RUN = "run_benchmark"
PATIENCE_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one measurement gave."""

    rate: float
    """Chunks a second, from the first that began to the last ack."""
    cpu: float
    """Microseconds of the writing processes' CPU a chunk."""
    enqueue: float | None
    """Microseconds until a chunk was accepted, where that is not the ack."""
    puts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of writing of one side."""

    label: str
    side: str
    mode: str
    chunks: int
    """In all, by so many processes together."""


ROWS = (
    Row(label="awaited, npm: out.append", side="npm", mode="awaited", chunks=240),
    Row(label="awaited, ours: streams.append", side="ours", mode="awaited", chunks=1_600),
    Row(label="awaited, ours: chat.response.write", side="ours", mode="chat_awaited", chunks=1_600),
    Row(label="at once, npm: 300 x out.append", side="npm", mode="at_once", chunks=300),
    Row(label="at once, ours: 300 x streams.append", side="ours", mode="at_once", chunks=300),
    Row(
        label="hot loop, ours: chat.response.write", side="ours", mode="chat_hot_loop",
        chunks=160_000,
    ),
    Row(label="one writer, npm: out.pipe", side="npm", mode="bulk", chunks=40_000),
    Row(label="one writer, s2-sdk: Producer", side="s2", mode="bulk", chunks=160_000),
    Row(label="one writer, ours: streams.writer", side="ours", mode="bulk", chunks=160_000),
)  # fmt: skip


class Sides:
    """How the processes of each side are started."""

    def __init__(self, gateway: GatewayProcess, node: Node | None, s2_python: Path) -> None:
        self._gateway = gateway
        self._node = node
        self._s2_python = s2_python
        self._keys = counter()
        self._credentials = str(gateway.data_dir / "credentials")

    def new_key(self) -> str:
        """Return the key of a stream that nobody has written to."""
        return f"key-{next(self._keys)}"

    def has(self, side: str) -> bool:
        """Say whether this side can be measured here."""
        return side != "npm" or self._node is not None

    def start(self, side: str, mode: str, count: int, key: str) -> subprocess.Popen[str]:
        """Start one process, which says when it is ready to write."""
        return {"npm": self._npm, "ours": self._ours, "s2": self._s2}[side](mode, count, key)

    def puts(self, key: str) -> int:
        """Return how many credentials were minted for it."""
        puts = self._gateway.stats()["puts"]

        return sum(puts.get(slot, 0) for slot in (f"run/{RUN}/{key}", f"session/{key}/main/out"))

    def _ours(self, mode: str, count: int, key: str) -> subprocess.Popen[str]:
        options = {
            "url": self._gateway.url,
            "secret_key": self._gateway.secret_key,
            "credentials": self._credentials,
            "run_id": RUN,
            "key": key,
        }
        script = str(HERE / "writers" / "ours.py")

        return _spawn([sys.executable, script, mode, str(count), json.dumps(options)])

    def _npm(self, mode: str, count: int, key: str) -> subprocess.Popen[str]:
        assert self._node is not None
        environment = self._node.environment(
            TRIGGER_API_URL=self._gateway.url,
            TRIGGER_SECRET_KEY=self._gateway.secret_key,
            OTEL_SDK_DISABLED="true",
        )
        command = [self._node.executable, "--import", "./only_loopback.mjs", "write.mjs"]

        return _spawn([*command, mode, str(count), key], cwd=INTEROP, env=environment)

    def _s2(self, mode: str, count: int, key: str) -> subprocess.Popen[str]:
        options = {
            "url": self._gateway.url,
            "token": self._gateway.secret_key,
            "basin": "td-embedded",
            "stream": f"runs/{RUN}/{key}",
        }
        script = str(HERE / "writers" / "producer.py")

        return _spawn([str(self._s2_python), script, mode, str(count), json.dumps(options)])


def _spawn(command: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )


def measure(sides: Sides, row: Row, processes: int) -> Seen:
    """Have so many processes write at the same time."""
    key, share = sides.new_key(), row.chunks // processes
    with ExitStack() as stack:
        started = [
            stack.enter_context(sides.start(row.side, row.mode, share, key))
            for _ in range(processes)
        ]
        for process in started:
            assert process.stdout is not None
            said = process.stdout.readline()
            if said != "ready\n":
                raise RuntimeError(f"{row.label} said {said!r}")
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [json.loads(process.communicate(timeout=PATIENCE_S)[0]) for process in started]
    chunks = share * processes
    seconds = max(one["ended"] for one in told) - min(one["began"] for one in told)
    enqueued = [one["enqueued"] - one["began"] for one in told if one["enqueued"] is not None]

    return Seen(
        rate=chunks / seconds,
        cpu=sum(one["cpu"] for one in told) / chunks * 1e6,
        enqueue=sum(enqueued) / chunks * 1e6 if enqueued else None,
        puts=sides.puts(key),
    )


@contextmanager
def all_sides() -> Iterator[Sides]:
    """Yield every side, with one gateway for all."""
    node = find()
    if node is None:
        print("no Node: the rows of the npm SDK are left out", file=sys.stderr)
    else:
        install(node)
    with (
        tempfile.TemporaryDirectory(prefix=".td-bench-", dir=Path.cwd()) as folder,
        start_gateway(Path(folder)) as gateway,
    ):
        gateway.add_run(RUN)
        yield Sides(gateway, node, make())


def cells(row: Row, seen: dict[int, list[Seen]]) -> list[str]:
    """Return one row of the table."""
    found = [row.label]
    enqueue = [one.enqueue for one in seen[1] if one.enqueue is not None]
    found.append(f"{median(enqueue):,.1f}" if enqueue else "")
    for rounds in seen.values():
        found += [
            f"{median(one.rate for one in rounds):,.0f}",
            f"{median(one.cpu for one in rounds):,.1f}",
            "/".join(str(puts) for puts in sorted({one.puts for one in rounds})),
        ]

    return found


def rounds_wanted() -> int:
    """Return how many rounds to measure: the first argument says so, if there is one."""
    return int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS


def goals(seen: dict[Row, dict[int, list[Seen]]]) -> list[list[str]]:
    """Return what was promised, and what came of it, with one process."""
    rate = {
        (row.side, row.mode): median(one.rate for one in by_number[1])
        for row, by_number in seen.items()
    }

    def against(ours: str, side: str, mode: str, goal: float) -> list[str]:
        found = rate["ours", ours] / rate[side, mode]
        return [f"{ours} / {side} {mode}", f"{found:,.1f}", f"{goal:g}"]

    rows = [against("bulk", "s2", "bulk", 0.8)]
    if ("npm", "bulk") in rate:
        rows += [
            against("chat_hot_loop", "npm", "at_once", 50),
            against("awaited", "npm", "awaited", 5),
            against("chat_awaited", "npm", "awaited", 5),
            against("bulk", "npm", "bulk", 3),
        ]

    return rows


def main() -> None:
    with all_sides() as sides:
        rows = [row for row in ROWS if sides.has(row.side)]
        seen: dict[Row, dict[int, list[Seen]]] = {
            row: {number: [] for number in PROCESSES} for row in rows
        }
        for _ in range(rounds_wanted()):
            for row, by_number in seen.items():
                for number, rounds in by_number.items():
                    rounds.append(measure(sides, row, number))
    figures = [
        figure for number in PROCESSES for figure in (f"{number} proc.: chunks/s", "CPU µs", "PUTs")
    ]
    print_table(
        "Writing to a stream, ack against ack",
        ["how", "enqueue µs", *figures],
        [cells(row, by_number) for row, by_number in seen.items()],
    )
    print_table("Times as fast, with one process", ["what", "times", "goal"], goals(seen))


if __name__ == "__main__":
    main()
