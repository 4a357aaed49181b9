"""How long an idle queue takes from the call of `trigger` to the first line of the task.

Run it with `make bench-runs`.
"""

from __future__ import annotations

import time
from statistics import median, quantiles

from _figures import print_table
from peers.arena import arena
from peers.queues.fleet import SIDES, Fleet, absence, fleet
from runs_trigger import sync_ms

ROUNDS = 3
COUNT = 100
APART = 0.05
WORKERS = 2


def paced(side: Fleet) -> list[float]:
    """Trigger one run after another, each when the one before is long done; return when."""
    if not side.is_ours:
        return side.client("pace", "noop", COUNT)
    from td_runtime.control import Accepted, TriggerRuns
    from td_worker.messages import TriggerItem

    seen = []
    request = TriggerRuns(items=[TriggerItem(task="noop", payload=b"null")])
    with side.control() as client:
        for _ in range(COUNT):
            time.sleep(APART)
            seen.append(time.monotonic())
            client.ask(request, Accepted)

    return seen


def measure(name: str, redis: str, syncs: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile, in milliseconds."""
    with fleet(name, redis) as side:
        side.fill("noop", 1)
        side.start(WORKERS)
        side.wait_for(1, 30)
        side.wait_until_ready()
        if side.is_ours:
            syncs.append(sync_ms(side))
        asked = paced(side)
        side.wait_for(COUNT + 1, 10)
        begun = [at for at, _ in side.records()][1:]
        waits = [(at - since) * 1e3 for since, at in zip(asked, begun, strict=False)]

        return median(waits), quantiles(waits, n=100)[98]


def main() -> None:
    rows = []
    syncs: list[float] = []
    names = ("ours", "huey-redis", "celery", "taskiq-list", "saq")
    with arena(python_needed=False) as place:
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name in names:
                if not absence(name, place.redis):
                    seen[name].append(measure(name, place.redis, syncs))
        for name, pairs in seen.items():
            shown = [f"{median(each):.2f}" for each in zip(*pairs, strict=True)]
            rows.append([SIDES[name].title, *(shown or [absence(name, place.redis), ""])])
    print_table(
        f"From trigger to start, idle (one sync of this disk: {median(syncs):.2f} ms)",
        ["queue", "p50, ms", "p99, ms"],
        rows,
    )


if __name__ == "__main__":
    main()
