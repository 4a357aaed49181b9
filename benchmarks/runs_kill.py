"""How soon a run starts again when its worker, or everything, gets SIGKILL.

A run that is to take long is killed shortly after its start. "Worker" is from the kill to the next
start of the run; "everything" from the new start of the head. Run it with `make bench-runs`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from _figures import compile_packages, print_table
from peers.arena import arena
from peers.queues.fleet import SIDES, absence, fleet

ROUNDS = 3
PATIENCE = 10.0
LONG_PATIENCE = 120.0
WORKERS = 2
AGAIN = ("ours", "rq-retry", "celery-safe", "celery", "huey-redis", "taskiq-list")
AFTER_ALL = ("ours", "dramatiq", "rq-retry", "celery-safe")


def kill_worker(name: str, redis: str) -> float | None:
    """Return the seconds from the kill of a worker until its run starts again; None: never."""
    os.environ["BENCH_NAP"] = "4"
    with fleet(name, redis) as side:
        side.fill("nap", 1)
        side.start(WORKERS)
        if not side.wait_for(1, 30):
            return None
        side.wait_until_ready()
        time.sleep(0.2)
        at = time.monotonic()
        os.kill(side.records()[0][1], signal.SIGKILL)
        again = side.wait_for(2, PATIENCE)

        return side.records()[1][0] - at if again else None


def kill_all(name: str, redis: str) -> float | None:
    """Return the seconds from a new start, after the kill of all, until the run starts again."""
    patience = PATIENCE if name == "ours" else LONG_PATIENCE
    with fleet(name, redis) as side:
        side.fill("nap", 1)
        side.start(WORKERS)
        if not side.wait_for(1, 30):
            return None
        time.sleep(0.2)
        side.kill_all()
        side.start(WORKERS)
        again = side.wait_for(2, patience)

        return side.records()[1][0] - side.started_at if again else None


def measure(
    act: Callable[[str, str], float | None], name: str, rounds: int, patience: float
) -> list[str]:
    """Return one row; each side has a Redis of its own, since slow ones run side by side."""
    with arena(python_needed=False) as place:
        if absence(name, place.redis):
            return [SIDES[name].title, absence(name, place.redis)]
        seen = [act(name, place.redis) for _ in range(rounds)]
    found = [each * 1e3 for each in seen if each is not None]
    if len(found) < rounds:
        return [SIDES[name].title, f"never (given up after {patience:.0f} s)"]

    return [SIDES[name].title, f"{median(found):,.1f}"]


def main() -> None:
    compile_packages()
    rows = [measure(kill_worker, name, ROUNDS if name == "ours" else 1, PATIENCE) for name in AGAIN]
    print_table("A worker is killed: its run starts again after", ["queue", "ms"], rows)
    rows = [measure(kill_all, "ours", ROUNDS, PATIENCE)]
    with ThreadPoolExecutor() as pool:
        rows += pool.map(lambda name: measure(kill_all, name, 1, LONG_PATIENCE), AFTER_ALL[1:])
    print_table("Everything is killed, then started: the run starts again", ["queue", "ms"], rows)


if __name__ == "__main__":
    main()
