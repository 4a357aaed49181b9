"""What the supervisor asks of a run store, whatever database is behind it.

One supervisor is the only writer. A **change** is queued the moment its method is called, in the
order of the calls, and the returned future is done once the change is committed, never before. To
cancel the waiter does not withdraw the change. A **read** shows what is committed.

An attempt is named by three facts: run id, attempt number, owner. A change to a run that a worker
has is *fenced* by them: it applies only while that very attempt has the run, so a late message of
a dead worker changes nothing and is answered with False.
"""

from asyncio import Future
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from td_runtime.store.records import Accepted, NewRun, Outcome, Place, Run, RunError, Status

__all__ = ["RunReader", "RunStore"]


class RunReader(Protocol):
    """The reads, which need no supervisor.

    Raises:
        StoreError: From any method, when the database cannot answer.
    """

    async def get(self, run_id: str) -> Run | None:
        """Return a run, None if there is none with that id."""
        ...

    async def get_many(self, run_ids: Iterable[str]) -> list[Run]:
        """Return the runs with these ids in the order asked for; unknown ids are left out."""
        ...

    async def tree(self, root_id: str) -> list[Run]:
        """Return a root run and everything below it, in the order of acceptance."""
        ...

    async def counts(self) -> dict[Status, int]:
        """Return how many runs there are in each status, zeros included."""
        ...

    async def close(self) -> None:
        """Let go of the database; a second call does nothing."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class RunStore(RunReader, Protocol):
    """Where runs are queued and recorded.

    Leaving the context commits what is queued and closes the database.

    Raises:
        StoreError: From any method or its future, when the database cannot do it. Nothing of that
            change is then stored.
    """

    # -- entering the queue

    def accept(self, runs: Iterable[NewRun]) -> Future[list[Accepted]]:
        """Store new runs, all or none; the answers are in the order of the requests.

        Raises:
            RunNotFoundError: A parent is not in the store.
        """
        ...

    # -- hand-out

    def claim(
        self,
        places: Sequence[Place],
        *,
        limits: Mapping[str, int],
        now: float,
        only: Collection[str] | None = None,
        hold: Collection[str] = (),
    ) -> Future[list[Run]]:
        """Hand out a run to each place, the longest ready first: each counts one attempt.

        Args:
            places: Where there is room; the first place gets the run that is ready longest.
            limits: How many more runs of each task may start. A task that is not named here is
                not handed out.
            now: Runs whose `run_at` is later than this stay.
            only: Hand out none but the runs with these ids.
            hold: Do not hand out the runs with these ids.
        """
        ...

    async def next_ready_at(self, after: float) -> float | None:
        """Return the earliest `run_at` later than `after`, None if nothing is waiting for one.

        With the `now` of the last claim as `after` no run is missed: whatever was due at that
        moment that claim has seen.
        """
        ...

    async def unfinished(self) -> int:
        """Return how many runs have no outcome yet."""
        ...

    # -- while a worker has the run (all fenced)

    def wait(self, run_id: str, attempt: int, owner: str) -> Future[bool]:
        """EXECUTING → WAITING: the run waits for its children and frees its place."""
        ...

    def resume(self, run_id: str, attempt: int, owner: str) -> Future[bool]:
        """WAITING → EXECUTING: the run takes a place again."""
        ...

    # -- the end of an attempt (all fenced)

    def finish(
        self, run_id: str, attempt: int, owner: str, outcome: Outcome, *, records_lost: int = 0
    ) -> Future[bool]:
        """Record the outcome, once: False is a late result, and changed nothing."""
        ...

    def retry(
        self,
        run_id: str,
        attempt: int,
        owner: str,
        *,
        run_at: float,
        error: RunError,
        crashed: bool = False,
    ) -> Future[bool]:
        """→ RETRYING: the attempt failed and counts, the next may start from `run_at` on.

        Args:
            run_id: The run.
            attempt: The attempt that failed.
            owner: Who had it.
            run_at: When the next attempt may start.
            error: Why this one failed.
            crashed: The attempt took its worker down; it counts as a crash, too.
        """
        ...

    def requeue(
        self, run_id: str, attempt: int, owner: str, *, excused: bool, crashed: bool = False
    ) -> Future[bool]:
        """→ QUEUED, at its old place in the queue.

        Args:
            run_id: The run.
            attempt: The attempt that ended.
            owner: Who had it.
            excused: The attempt does not count (drain, reload, a neighbour's crash).
            crashed: The attempt took its worker down.
        """
        ...

    # -- the end of a worker, or of a supervisor

    def release(self, owner: str, *, blamed: str | None = None) -> Future[list[Run]]:
        """Requeue every run that a dead worker had, and return them as they are now.

        The run `blamed` counts the attempt and a crash; all others are excused.
        """
        ...

    def requeue_unfinished(self) -> Future[list[Run]]:
        """Requeue, excused, every run that any worker had, and return them as they are now.

        For a supervisor that starts. Its caller holds `workers.lock` exclusively: no worker of an
        earlier supervisor lives.
        """
        ...
