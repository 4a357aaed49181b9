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

from td_runtime.store.records import (
    Accepted,
    Cancellation,
    Due,
    Finish,
    NewRun,
    Outcome,
    Place,
    Pruned,
    QueueLimits,
    Run,
    RunError,
    RunQuery,
    RunSummary,
    Status,
)

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

    async def are_finished(self, run_ids: Sequence[str]) -> bool:
        """Return whether all of these have their outcome; unknown ids do.

        Nothing that may be large is read, and others get their turn while many ids are looked at.
        """
        ...

    async def tree(self, root_id: str) -> list[Run]:
        """Return a root run and everything below it, in the order of acceptance."""
        ...

    async def find(self, query: RunQuery) -> list[RunSummary]:
        """Return a page of runs, newest first."""
        ...

    async def ids_beginning_with(self, prefix: str, *, limit: int) -> list[str]:
        """Return the first ids that begin so, in the order of acceptance."""
        ...

    async def counts(self) -> dict[Status, int]:
        """Return how many runs there are in each status, zeros included.

        The history is not counted for it, only what waits and what executes.
        """
        ...

    async def counts_by_task(self) -> dict[str, dict[Status, int]]:
        """Return how many runs of each task there are in each status; no zeros.

        As `counts`: the history is not counted for it.
        """
        ...

    async def last_ticks(self) -> dict[str, float]:
        """Return up to when the ticks of each scheduled task are dealt with."""
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
        queues: Mapping[str, QueueLimits],
        now: float,
        tasks: Collection[str] | None = None,
        only: Collection[str] | None = None,
        hold: Collection[str] = (),
    ) -> Future[list[Run]]:
        """Hand out a run to each place, the longest ready first: each counts one attempt.

        Runs are in the order of the moment they were ready, less their priority, then of
        acceptance. Fewer runs than places may also mean that many were passed over: then
        `is_behind` says so, and the next claim goes on.

        Args:
            places: Where there is room; the first place gets the run that is ready longest.
            queues: What is handed out from, and how many runs may execute at once. A run in a
                queue that is not named here stays.
            now: The start of these attempts.
            tasks: The registered tasks; runs of others stay. None: any task.
            only: Hand out none but the runs with these ids.
            hold: Do not hand out the runs with these ids.
        """
        ...

    async def startable(
        self,
        run_ids: Collection[str],
        *,
        queues: Mapping[str, QueueLimits],
        tasks: Collection[str] | None = None,
    ) -> int:
        """Return how many of these runs would be handed out if there were a place for each.

        Args:
            run_ids: The runs; those that are not ready do not count.
            queues: As for `claim`.
            tasks: As for `claim`.
        """
        ...

    @property
    def is_behind(self) -> bool:
        """Whether the last hand-out ended before it had looked at all that is ready."""
        ...

    def reconsider(self, queues: Mapping[str, QueueLimits]) -> Future[None]:
        """Look again at the runs that hand-outs have passed over: limits or tasks have changed."""
        ...

    def pass_time(self, now: float) -> Future[Due]:
        """Queue the runs whose `run_at` has come, and expire those whose time to start is over.

        At most a few hundred at once: repeat it while `next_due_at` is not later than `now`.
        """
        ...

    async def next_due_at(self) -> float | None:
        """Return when `pass_time` has something to do next, None if never."""
        ...

    async def unfinished(self) -> int:
        """Return how many runs have no outcome yet."""
        ...

    # -- from outside

    def cancel(
        self, run_ids: Collection[str], *, by: str | None = None, descendants: bool = False
    ) -> Future[Cancellation]:
        """Cancel runs: at once those that do not execute, by their workers those that do.

        A run that executes is not tried again, however its attempt ends, and if its worker dies it
        is CANCELED.

        Args:
            run_ids: The runs.
            by: Who asks for it, in words.
            descendants: Whether everything below them is canceled, too; they then accept no more
                children.
        """
        ...

    def set_metadata(self, run_id: str, metadata: bytes) -> Future[bool]:
        """Replace a run's metadata; False when there is no such run."""
        ...

    def add_tags(self, run_id: str, tags: tuple[str, ...]) -> Future[bool]:
        """Give a run these tags, too; False when there is no such run.

        Those that it has already stay, and are not there twice.
        """
        ...

    def reschedule(self, run_id: str, run_at: float) -> Future[bool]:
        """Let a run that is DELAYED start at another time; False when there is none.

        It stays DELAYED until `pass_time`, also when that time has come; the time by which it must
        have started moves with it.
        """
        ...

    def record_tick(self, task: str, at: float) -> Future[None]:
        """Keep that the ticks of a scheduled task up to *at* are dealt with; never moves back."""
        ...

    def forget_ticks(self, tasks: Collection[str]) -> Future[None]:
        """Forget how far the ticks of these tasks are dealt with: they have no schedule."""
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

    def finish_all(self, ends: Sequence[Finish]) -> Future[list[bool]]:
        """Record outcomes as :meth:`finish` does, all or none; the answers are in their order."""
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
    ) -> Future[Status | None]:
        """→ RETRYING: the attempt failed and counts, the next may start from `run_at` on.

        A run that was to be canceled is CANCELED instead. The answer is what the run is now, None
        for a late message.

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
    ) -> Future[Status | None]:
        """→ QUEUED, at its old place in the queue.

        A run that was to be canceled is CANCELED instead. The answer is what the run is now, None
        for a late message.

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

        Those that were to be canceled are CANCELED. The run `blamed` counts the attempt and a
        crash; all others are excused.
        """
        ...

    def requeue_unfinished(self) -> Future[list[Run]]:
        """Requeue, excused, every run that any worker had, and return them as they are now.

        For a supervisor that starts. Its caller holds `workers.lock` exclusively: no worker of an
        earlier supervisor lives.
        """
        ...

    # -- the past

    def prune(self, *, finished_before: float | None, keep: int | None) -> Future[Pruned]:
        """Delete a few of the oldest finished runs; repeat it while there are more.

        A run stays while the unfinished parent that has waited for it may ask for it again (R9).

        Args:
            finished_before: Runs whose outcome is older than this go.
            keep: So many finished runs may stay, the newest.
        """
        ...
