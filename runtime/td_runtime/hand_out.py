"""Hands runs out to workers: which runs, to whom, and which of them alone."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import structlog

from td_runtime.config import TaskConfig
from td_runtime.placement import crowded_loops, free_places, is_isolated, loops_of, place_in
from td_runtime.queues import queue_limits
from td_runtime.store import Due, Place, Run, RunStore, RunSummary, StoreFullError
from td_runtime.suspects import Suspects
from td_runtime.workers import HeldRun, Worker, WorkerPool
from td_worker.messages import Assign, AssignedRun, InterruptRun, parts

__all__ = ["HandOut"]

log = structlog.get_logger()

_FULL_PAUSE: Final = 1.0
"""Seconds after which a hand-out is tried again that found the disk full."""

_ALARM: Final = 30.0
"""Seconds after which the next due time is looked up again: the wall clock may be set, and while
the host sleeps the clock that timers go by stands still."""


class HandOut:
    """Gives runs that are ready to workers that have room. Belongs to the supervisor's loop.

    Args:
        store: The run store.
        tasks: The registered tasks by id.
        concurrency: Places of one worker.
        suspects: Runs that must run alone (R8).
        requeue: Called with a run whose worker cannot take it any more.
        on_expired: Called with a run that did not start in time.

    Attributes:
        backlog: How many runs wait to be handed out. Whoever accepts, releases or cancels runs
            counts them here: asking the store at each accept would cost more than the accept.
    """

    def __init__(
        self,
        store: RunStore,
        tasks: Mapping[str, TaskConfig],
        *,
        concurrency: int,
        suspects: Suspects,
        requeue: Callable[[Run], None],
        on_expired: Callable[[RunSummary], None],
    ) -> None:
        self._store = store
        self._known = dict(tasks)
        """Those of earlier configs, too: runs of theirs may still execute."""
        self._ids = frozenset(tasks)
        self._claimable: frozenset[str] | None = self._ids
        """The tasks that the last hand-out went by; None when limits are others, too, since."""
        self._queues = queue_limits(tasks.values())
        self._concurrency = concurrency
        self._suspects = suspects
        self._requeue = requeue
        self._on_expired = on_expired
        self._pool: WorkerPool
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._pauses = 0
        self.backlog = 0

    def reload(self, tasks: Mapping[str, TaskConfig], *, concurrency: int) -> None:
        """Go by these tasks and limits from now on.

        Runs of tasks that are gone wait in their queues until a config has them again; those of new
        ones, until every worker knows them.
        """
        self._known |= tasks
        self._ids = frozenset(tasks)
        self._queues = queue_limits(tasks.values())
        self._concurrency = concurrency
        # Not here: on a full disk it must be tried again, and half a reload is none.
        self._claimable = None
        self.wake()

    def wake(self) -> None:
        """There may be something to hand out, or a place for it."""
        self._wake.set()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hand out none but suspects in the block: what it accepts is one once its id is known."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self.wake()

    def worker_ready(self, workers: Sequence[Worker]) -> None:
        """One more of *workers*, all that are ready, takes runs: some loops of the others do."""
        self._balance(workers)
        self.wake()

    async def run(self, pool: WorkerPool) -> None:
        """Hand out runs to the workers of *pool* until told to stop."""
        self._pool = pool
        # Not the counts by status: they read one index entry for every run there ever was.
        self.backlog = await self._store.unfinished()
        await self._store.reconsider(self._queues)
        self.wake()
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._stopping:
                return
            try:
                await self._hand_out()
            except StoreFullError:
                self._set_alarm(_FULL_PAUSE)

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopping = True
        self.wake()

    async def _hand_out(self) -> None:
        now = time.time()
        await self._pass_time(now)
        await self._look_at_tasks()
        workers = await self._open_workers(now)
        places = free_places(workers, self._concurrency, self._most_ahead)
        if places and not self._pauses:
            await self._claim(places, now, hold=self._suspects)
        await self._wake_when_due()

    async def _pass_time(self, now: float) -> None:
        """Let the time of runs come: they are queued, or it is too late for them."""
        while (due := await self._store.next_due_at()) is not None and due <= now:
            self._passed(await self._store.pass_time(now))

    def _passed(self, due: Due) -> None:
        for run in due.queued:
            log.info("run.queued", **run.log_context())
        for run in due.expired:
            log.warning("run.expired", **run.log_context())
            self._suspects.cleared(run.id)
            self._on_expired(run)

    async def _look_at_tasks(self) -> None:
        """Put runs back that hand-outs have moved aside by the tasks and limits there were."""
        before, self._claimable = self._claimable, self._find_claimable()
        if before == self._claimable:
            return
        try:
            await self._store.reconsider(self._queues)
        except StoreFullError:
            self._claimable = None
            raise

    def _find_claimable(self) -> frozenset[str]:
        """Return the tasks of the config that every worker knows.

        While workers are replaced after a reload, some know the tasks of the config before.
        """
        tasks = self._ids
        for worker in self._pool.ready():
            if worker.tasks is not None and worker.tasks != tasks:
                tasks &= worker.tasks

        return tasks

    async def _claim(
        self,
        places: list[Place],
        now: float,
        *,
        only: Collection[str] | None = None,
        hold: Collection[str] = (),
    ) -> list[Run]:
        runs = await self._store.claim(
            places,
            queues=self._queues,
            tasks=self._find_claimable(),
            now=now,
            only=only,
            hold=tuple(hold),
        )
        self.backlog -= len(runs)
        self._assign(runs)
        if any(self._known[run.task].replicas for run in runs):
            self._balance(list(self._pool.ready()))
        if self._store.is_behind:
            self.wake()

        return runs

    async def _open_workers(self, now: float) -> list[Worker]:
        """Hand out runs that must run alone (R8); return the workers that take any other run."""
        reserved = await self._hand_out_suspects(now) if self._suspects else []

        return [
            worker
            for worker in self._pool.ready()
            if worker not in reserved and not self._is_isolated(worker)
        ]

    async def _hand_out_suspects(self, now: float) -> list[Worker]:
        """Give each idle worker one; return the workers that are to become idle for the rest.

        Those are up to half of all, since the queue must go on as well.
        """
        held = {run_id for worker in self._pool.workers.values() for run_id in worker.runs}
        waiting = self._suspects.waiting(now, held=held)
        workers = sorted(self._pool.ready(), key=lambda worker: (worker.load, len(worker.runs)))
        idle = [place_in(worker) for worker in workers if not worker.load]
        if waiting and idle:
            await self._claim(idle, now, only=waiting)
        busy = [worker for worker in workers if worker.load and not self._is_isolated(worker)]
        lanes = max(1, len(workers) // 2) - sum(map(self._is_isolated, workers))
        reserved = busy[: max(0, min(lanes, await self._count_startable(waiting)))]
        for worker in reserved:
            # It would never become idle with them.
            for loop in loops_of(worker, self._known):
                _move_out(worker, loop)

        return reserved

    async def _count_startable(self, run_ids: list[str]) -> int:
        """Count those that only lack a worker: no place helps one whose task or queue has none."""
        if not run_ids:
            return 0

        return await self._store.startable(
            run_ids, queues=self._queues, tasks=self._find_claimable()
        )

    def _is_isolated(self, worker: Worker) -> bool:
        return is_isolated(worker, self._suspects)

    def _most_ahead(self, worker: Worker) -> int:
        # Who waited in a worker that dies would be a suspect along with those that executed.
        return 0 if self._suspects else worker.ahead.most(self._concurrency)

    def _assign(self, runs: Iterable[Run]) -> None:
        """Send claimed runs to their workers.

        A worker that died while the claim was committed is not there any more; its release was
        queued behind the claim and takes these runs back.
        """
        by_owner: dict[str | None, list[Run]] = {}
        for run in runs:
            by_owner.setdefault(run.owner, []).append(run)
        ready = self._pool.ready()
        for worker in ready:
            given = by_owner.pop(worker.owner, ())
            if not given:
                continue
            room = max(0, self._concurrency - worker.load)
            for run in given:
                worker.runs[run.id] = HeldRun(run)
                if run.id in self._suspects and self._known[run.task].replicas:
                    self._put_on_probation(worker, run)
            for part in parts([_assigned(run) for run in given]):
                worker.channel.send(Assign(runs=part[:room], ahead=part[room:]))
                room = max(0, room - len(part))
        for worker in self._pool.workers.values():
            for run in by_owner.get(worker.owner, ()):
                # It was told to leave meanwhile, and might not hear of a run any more.
                self._requeue(run)

    def _balance(self, workers: Sequence[Worker]) -> None:
        if self._suspects:
            return
        for worker, held in crowded_loops(workers, self._known):
            _move_out(worker, held)

    def _put_on_probation(self, worker: Worker, run: Run) -> None:
        def end() -> None:
            held = worker.runs.get(run.id)
            if held is not None and held.run.attempt == run.attempt:
                self._suspects.cleared(run.id)
                self.wake()

        asyncio.get_running_loop().call_later(self._suspects.probation(run.id), end)

    async def _wake_when_due(self) -> None:
        due = await self._store.next_due_at()
        self._set_alarm(None if due is None else due - time.time())

    def _set_alarm(self, delay: float | None) -> None:
        """Hand out again after so many seconds; None: not before something happens."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay is not None:
            delay = min(max(0.0, delay), _ALARM)
            self._timer = asyncio.get_running_loop().call_later(delay, self.wake)


def _move_out(worker: Worker, held: HeldRun) -> None:
    """Have a run of *worker* go back to the queue, to start wherever there is most room."""
    held.moving = True
    worker.channel.send(InterruptRun(run_id=held.run.id, attempt=held.run.attempt))


def _assigned(run: Run) -> AssignedRun:
    return AssignedRun(
        id=run.id,
        task=run.task,
        payload=run.payload,
        attempt=run.attempt,
        parent_id=run.parent_id,
        root_id=run.root_id,
        max_attempts=run.max_attempts,
        max_duration=run.max_duration,
        tags=run.tags,
        metadata=run.metadata,
        stream_run_id=run.stream_run_id,
        attempts_used=run.attempts_used,
    )
