"""How fast the quickstart streams with 1, 2 and 4 workers, and how many PUTs that takes.

Every round is a whole `td-runtime run`: supervisor, workers, gateway, a parent run and eight child
runs that write 65,501 words to one stream, which the command reads back. Seconds are those from the
trigger to the last chunk read. Run it with `make bench`, or
`.venv/bin/python benchmarks/quickstart.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from _figures import print_table

CONFIG = str(Path(__file__).parents[1] / "configs/quickstart/td-runtime.toml")
ROUNDS = 5
WORKERS = (1, 2, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one run of the quickstart said."""

    written: int
    read: int
    puts: int
    seconds: float


@contextmanager
def fresh_folders() -> Iterator[dict[str, str]]:
    """Yield an environment whose data folder and credential folder are new."""
    with tempfile.TemporaryDirectory(prefix="td-bench-") as folder:
        yield {
            **os.environ,
            "TD_RUNTIME_RUNTIME__DATA_DIR": f"{folder}/data",
            "TD_RUNTIME_CREDENTIALS__DIR": f"{folder}/credentials",
        }


def run_quickstart(workers: int) -> Round:
    """Run it once."""
    command = [
        sys.executable,
        "-m",
        "td_runtime",
        "run",
        "-c",
        str(CONFIG),
        "--json",
        "stream-book",
    ]
    with fresh_folders() as environment:
        environment["TD_RUNTIME_RUNTIME__WORKERS"] = str(workers)
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    said = json.loads(done.stdout)

    return Round(
        written=sum(said["streams"].values()),
        read=said["chunks_read"],
        puts=said["puts"],
        seconds=said["duration_s"],
    )


def describe(workers: int, rounds: list[Round]) -> list[str]:
    """Return one row of the table."""
    return [
        str(workers),
        f"{rounds[0].written:,}",
        "all" if all(one.read == one.written for one in rounds) else "NOT ALL",
        "/".join(str(puts) for puts in sorted({one.puts for one in rounds})),
        f"{median(one.seconds for one in rounds):.2f}",
        f"{median(one.written / one.seconds for one in rounds):,.0f}",
    ]


def main() -> None:
    seen: dict[int, list[Round]] = {workers: [] for workers in WORKERS}
    for _ in range(ROUNDS):
        for workers, rounds in seen.items():
            rounds.append(run_quickstart(workers))
    print_table(
        "The quickstart's loop: word by word to one stream",
        ["workers", "chunks", "read back", "PUTs", "seconds", "chunks/s"],
        [describe(workers, rounds) for workers, rounds in seen.items()],
    )


if __name__ == "__main__":
    main()
