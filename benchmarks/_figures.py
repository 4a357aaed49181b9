"""What every benchmark needs: medians over rounds, and a table that Markdown understands."""

from __future__ import annotations

import compileall
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median

import td_runtime
import td_sharedcache
import td_worker

ROUNDS = 7


def medians(sides: Mapping[str, Callable[[], float]], *, rounds: int = ROUNDS) -> dict[str, float]:
    """Measure all sides in turn, round by round, so that a busy moment does not hit one alone."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            seen[name].append(measure())

    return {name: median(values) for name, values in seen.items()}


def compile_packages() -> None:
    """Have bytecode of what is measured, as an installation has.

    Else every process would compile it anew where PYTHONDONTWRITEBYTECODE is set.
    """
    for package in (td_runtime, td_sharedcache, td_worker):
        compileall.compile_dir(package.__path__[0], quiet=1)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a title, where the figures come from, and a table."""
    rows = [list(header), *(list(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    print(f"\n{title}\n({machine()}; load {os.getloadavg()[0]:.1f})\n")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


@cache
def machine() -> str:
    """Say which machine and which versions."""
    cpus = len(os.sched_getaffinity(0))
    python = f"{platform.python_implementation()} {platform.python_version()}"

    return f"{cpus} x {_processor()}, Linux {platform.release()}, {python}, {_ours()}"


def _ours() -> str:
    return f"td-runtime {version('td-runtime')}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]

    return models[0] if models else platform.machine()
