"""A client of a queue: `python -m peers.queues.client APP fill noop 5000`, or `pace noop 50`."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable

_APART = 0.05


def fill(enqueue: Callable[[str], object], task: str, count: int) -> list[float]:
    """Enqueue so many as fast as one client can; return the seconds."""
    started = time.monotonic()
    for _ in range(count):
        enqueue(task)

    return [time.monotonic() - started]


def pace(enqueue: Callable[[str], object], task: str, count: int) -> list[float]:
    """Enqueue one after another, each when the one before is long done; return when."""
    seen = []
    for _ in range(count):
        time.sleep(_APART)
        seen.append(time.monotonic())
        enqueue(task)

    return seen


def main() -> None:
    app, act, task, count = sys.argv[1:]
    enqueue = importlib.import_module(f"peers.queues.{app}").enqueue
    print(json.dumps({"fill": fill, "pace": pace}[act](enqueue, task, int(count))))


if __name__ == "__main__":
    main()
