"""Workers that die by the hundred; `make restarts` has ten thousand of them die."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_dead_workers_leave_nothing_behind() -> None:
    """No zombie, no descriptor, no process they had started, no memory; one thread at each fork."""
    judged = subprocess.run(
        [sys.executable, "-m", "tests.chaos.restarts", "--count", "100"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert judged.returncode == 0, judged.stdout + judged.stderr
