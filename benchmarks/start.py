"""How long the command line takes before it does anything, beside a bare interpreter.

Run it with `make bench`, or `.venv/bin/python benchmarks/start.py`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from _figures import compile_packages, medians, print_table

ROUNDS = 10
CONFIG = """
[runtime]
data_dir = "data"

[[tasks]]
id = "hello"
entrypoint = "tasks:hello"
"""


def time_command(*command: str) -> float:
    """Return the milliseconds from start to end of a process."""
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)

    return (time.perf_counter() - started) * 1e3


def main() -> None:
    compile_packages()
    python = [sys.executable, "-c"]
    ours = [str(Path(sys.executable).with_name("td-runtime"))]
    with tempfile.TemporaryDirectory(prefix="td-bench-") as folder:
        config = Path(folder, "td-runtime.toml")
        config.write_text(CONFIG)
        # Nothing runs there: the last two end in "no supervisor answers", as late as they can.
        options = ["-c", str(config)]
        commands = {
            "python -c pass": [*python, "pass"],
            "python -c 'import typer'": [*python, "import typer"],
            "td-runtime --version": [*ours, "--version"],
            "td-runtime --help": [*ours, "--help"],
            "td-runtime tasks list": [*ours, "tasks", "list", *options],
            "td-runtime status": [*ours, "status", *options],
            "td-runtime trigger hello": [*ours, "trigger", "hello", *options],
        }
        sides = {name: partial(time_command, *words) for name, words in commands.items()}
        took = medians(sides, rounds=ROUNDS)
    rows = [[name, f"{ms:.0f}"] for name, ms in took.items()]
    print_table("Start of a command", ["command", "ms"], rows)


if __name__ == "__main__":
    main()
