"""What a tree of 8 idle workers has in memory and uses of a CPU, and how fast it starts and stops.

"Start" is from the command to the first line of a run that is queued already; "stop" from one
signal to an idle head until it is gone. Run it with `make bench-runs`.
"""

from __future__ import annotations

import time
from statistics import median

from _figures import compile_packages, print_table
from peers.arena import arena
from peers.queues.fleet import SIDES, Fleet, absence, cpu_seconds, fleet, pss, switches

ROUNDS = 3
WORKERS = 8
SETTLED = 3.0
WATCHED = 8.0
LONGEST_STOP = 10.0
NAMES = ("ours", "huey-sqlite", "huey-redis", "celery", "dramatiq", "rq", "taskiq-list", "saq")
Figures = list[float]


def measure(name: str, redis: str) -> tuple[Figures, list[str]]:
    """Return start, MiB, CPU in thousandths, wake-ups a second, stop; and what else there is."""
    with fleet(name, redis) as side:
        side.fill("noop", 1)
        side.start(WORKERS)
        side.wait_for(1, 30)
        start = side.records()[0][0] - side.started_at if side.count else float("nan")
        side.wait_until_ready()
        time.sleep(SETTLED)
        pids = side.tree()
        apart = _apart(side, pids)
        memory = sum(pss(pid) for pid in pids if pid not in apart)
        notes = [f"{kind} {pss(pid):.0f} MiB" for pid, kind in apart.items()]
        cpu, woken = _watch(side)
        stop = side.stop(LONGEST_STOP)
        figures = [start, memory, cpu / WATCHED * 1e3, woken / WATCHED]

        return [*figures, LONGEST_STOP if stop is None else stop], notes


def _watch(side: Fleet) -> tuple[float, int]:
    """Return what the tree uses while nothing happens: seconds of CPU, and wake-ups.

    Some queues replace their processes meanwhile: new ones count with all they have had.
    """
    before = {pid: (cpu_seconds(pid), switches(pid)) for pid in side.tree()}
    time.sleep(WATCHED)
    cpu, woken = 0.0, 0
    for pid in side.tree():
        cpu_then, woken_then = before.get(pid, (0.0, 0))
        cpu += max(0.0, cpu_seconds(pid) - cpu_then)
        woken += max(0, switches(pid) - woken_then)

    return cpu, woken


def _apart(side: Fleet, pids: list[int]) -> dict[int, str]:
    """Return our gateway and log sink, which are not in the sum."""
    if not side.is_ours:
        return {}
    from td_runtime.control import GetStatus, StatusView

    with side.control() as client:
        status = client.ask(GetStatus(), StatusView)
    workers = {worker.pid for worker in status.workers}
    others = [pid for pid in pids if pid not in {status.pid, status.gateway_pid, *workers}]
    kinds = dict.fromkeys(others, "log sink")
    if status.gateway_pid is not None:
        kinds[status.gateway_pid] = "gateway"

    return kinds


def main() -> None:
    compile_packages()
    rows = []
    notes: list[str] = []
    with arena(python_needed=False) as place:
        seen: dict[str, list[Figures]] = {name: [] for name in NAMES}
        for _ in range(ROUNDS):
            for name, rounds in seen.items():
                if not absence(name, place.redis):
                    figures, more = measure(name, place.redis)
                    rounds.append(figures)
                    notes = more or notes
        for name, rounds in seen.items():
            if not rounds:
                rows.append([SIDES[name].title, absence(name, place.redis), "", "", "", ""])
                continue
            start, memory, cpu, woken, stop = (median(each) for each in zip(*rounds, strict=True))
            shown = f"> {LONGEST_STOP:.0f}" if stop >= LONGEST_STOP else f"{stop:.2f}"
            others = [f"{cpu:.1f}", f"{woken:.1f}"]
            rows.append([SIDES[name].title, f"{memory:.0f}", f"{start:.2f}", shown, *others])
    header = ["queue", "PSS, MiB", "start, s", "stop, s", "CPU, ms/s", "wake-ups/s"]
    print_table(f"A tree of {WORKERS} idle workers", header, rows)
    print(f"Not in the sum of td-runtime: {', '.join(notes)}.")


if __name__ == "__main__":
    main()
