"""How fast two workers drain a queue of no-op runs, ours and others.

The queue is filled first, then two worker processes are started; the rate is from the first run to
the last. Ours logs as it does by default and has every outcome on the disk; others log warnings.
Run it with `make bench-runs`.
"""

from __future__ import annotations

from statistics import median

from _figures import print_table
from peers.arena import arena
from peers.queues.fleet import SIDES, absence, fleet

ROUNDS = 3
WORKERS = 2
COUNTS = {"ours": 30_000, "taskiq-list": 5_000, "huey-redis": 5_000, "huey-sqlite": 5_000} | {
    "saq": 5_000,
    "taskiq-stream": 5_000,
    "celery": 3_000,
    "dramatiq": 3_000,
    "rq": 200,
}


def drain(name: str, redis: str) -> float:
    """Return runs a second."""
    with fleet(name, redis) as side:
        count = COUNTS[name]
        side.fill("noop", count)
        side.start(WORKERS)
        side.wait_for(count, 60)
        seen = [at for at, _ in side.records()]
        if len(seen) < 2:
            return 0.0

        return (len(seen) - 1) / (seen[-1] - seen[0])


def main() -> None:
    rows = []
    with arena(python_needed=False) as place:
        seen: dict[str, list[float]] = {name: [] for name in COUNTS}
        for _ in range(ROUNDS):
            for name, rates in seen.items():
                if not absence(name, place.redis):
                    rates.append(drain(name, place.redis))
        for name, rates in seen.items():
            shown = f"{median(rates):,.0f}" if rates else absence(name, place.redis)
            rows.append([SIDES[name].title, shown])
    print_table("No-op runs drained by 2 workers", ["queue", "runs/s"], rows)


if __name__ == "__main__":
    main()
