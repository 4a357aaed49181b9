"""Which worker has room for what. Looks at workers, and changes nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from td_runtime.config import TaskConfig
from td_runtime.store import Place
from td_runtime.suspects import Suspects
from td_runtime.workers import HeldRun, Worker

__all__ = ["crowded_loops", "free_places", "is_isolated", "loops_of", "place_in"]


def place_in(worker: Worker) -> Place:
    """Return a place in *worker*, as the store wants to know it."""
    return Place(worker.owner, worker.pid, worker.number)


def free_places(
    workers: Iterable[Worker], concurrency: int, most_ahead: Callable[[Worker], int]
) -> list[Place]:
    """Return one entry a free place; the least loaded worker's first, so that work spreads.

    Args:
        workers: Those that take runs.
        concurrency: Places of one worker.
        most_ahead: How many runs a worker may be given beyond its places; those count as places.
    """
    entries = [
        (place, worker.number, place_in(worker))
        for worker in workers
        for place in range(worker.load, concurrency + most_ahead(worker))
    ]

    return [entry[2] for entry in sorted(entries, key=lambda entry: entry[:2])]


def is_isolated(worker: Worker, suspects: Suspects) -> bool:
    """Whether *worker* executes a run that must run alone (R8)."""
    return bool(suspects) and any(
        held.run.id in suspects and not held.waiting for held in worker.runs.values()
    )


def loops_of(worker: Worker, tasks: Mapping[str, TaskConfig]) -> list[HeldRun]:
    """Return the loops that *worker* has and keeps."""
    return [
        held for held in worker.runs.values() if tasks[held.run.task].replicas and not held.moving
    ]


def crowded_loops(
    workers: Sequence[Worker], tasks: Mapping[str, TaskConfig]
) -> list[tuple[Worker, HeldRun]]:
    """Return the loops that should move to workers with more room: other runs end by themselves.

    Only from a worker that has two runs more than another, so that a loop that goes back to the
    queue is handed to that other one and never comes back.
    """
    loads = {worker.owner: worker.load for worker in workers}
    loops = {worker.owner: loops_of(worker, tasks) for worker in workers}
    moving: list[tuple[Worker, HeldRun]] = []
    while len(workers) > 1:
        most = max(workers, key=lambda each: loads[each.owner] * bool(loops[each.owner]))
        least = min(workers, key=lambda each: loads[each.owner])
        if not loops[most.owner] or loads[most.owner] - loads[least.owner] < 2:
            break
        moving.append((most, loops[most.owner].pop()))
        loads[most.owner] -= 1
        loads[least.owner] += 1

    return moving
