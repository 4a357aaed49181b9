"""How many runs a second are accepted, each on the disk when its client hears of it.

Clients are processes that wait for each answer before they ask again. No worker takes part: the
runs are delayed by a day. Run it with `make bench-runs`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median

from _figures import print_table
from peers.arena import arena
from peers.processes import Child, Gate, reports
from peers.queues.fleet import Fleet, absence, fleet

ROUNDS = 3
CLIENTS = 16
SINGLES = 200
BATCHES = 20
BATCH = 500


def trigger(side: Fleet, clients: int, asks: int, batch: int) -> float:
    """Return runs accepted a second."""
    gate = Gate()

    def work() -> None:
        from td_runtime.control import Accepted, TriggerRuns
        from td_worker.messages import TriggerItem

        item = TriggerItem(task="noop", payload=b"null", run_at=time.time() + 86_400)
        request = TriggerRuns(items=[item] * batch)
        with side.control() as client:
            gate.wait()
            for _ in range(asks):
                client.ask(request, Accepted)

    children = [Child(work) for _ in range(clients)]
    gate.wait_for(children)
    started = time.monotonic()
    gate.open()
    reports(children)

    return clients * asks * batch / (time.monotonic() - started)


def sync_ms(side: Fleet) -> float:
    """Return the milliseconds of one small write that is synced."""
    with Path(side.folder, "sync").open("wb") as file:
        started = time.monotonic()
        for _ in range(SINGLES):
            file.write(b"x" * 4096)
            file.flush()
            os.fdatasync(file.fileno())

        return (time.monotonic() - started) / SINGLES * 1e3


def main() -> None:
    sides = {
        f"td-runtime, {CLIENTS} clients, one at a time": (CLIENTS, SINGLES, 1),
        f"td-runtime, {CLIENTS} clients, batches of {BATCH}": (CLIENTS, BATCHES // 4, BATCH),
        "td-runtime, one client, one at a time": (1, SINGLES, 1),
    }
    seen: dict[str, list[float]] = {name: [] for name in sides}
    syncs: list[float] = []
    rows = []
    with arena(python_needed=False) as place:
        for _ in range(ROUNDS):
            with fleet("ours", place.redis) as side:
                side.start(1)
                side.wait_until_ready()
                for name, (clients, asks, batch) in sides.items():
                    syncs.append(sync_ms(side))
                    seen[name].append(trigger(side, clients, asks, batch))
        missing = absence("huey-redis", place.redis)
        huey = []
        for _ in range(0 if missing else ROUNDS):
            with fleet("huey-redis", place.redis) as side:
                huey.append(5_000 / side.fill("noop", 5_000))
    rows = [[name, f"{median(rates):,.0f}"] for name, rates in seen.items()]
    rows.append(["Huey, Redis, one client, not durable", missing or f"{median(huey):,.0f}"])
    print_table(
        f"Runs accepted (one sync of this disk: {median(syncs):.2f} ms)", ["side", "runs/s"], rows
    )


if __name__ == "__main__":
    main()
