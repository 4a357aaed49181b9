"""Hands runs out to workers, and answers what workers ask. The heart of the supervisor's loop."""

import asyncio
import time
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, Final

import structlog

from td_runtime import logs
from td_runtime.admission import TriggerError, check_items
from td_runtime.config import LimitsConfig, TaskConfig
from td_runtime.outcomes import Outcomes, log_late
from td_runtime.queues import queue_limits
from td_runtime.store import (
    READY,
    Accepted,
    Cancellation,
    Due,
    NewRun,
    ParentCanceledError,
    Place,
    Run,
    RunStore,
    RunSummary,
    Status,
    StoreFullError,
)
from td_runtime.suspects import Suspects
from td_runtime.watchers import RunPostponedError, Watchers
from td_runtime.workers import HeldRun, Worker, WorkerPool
from td_worker import messages
from td_worker.messages import (
    Assign,
    AssignedRun,
    CancelRun,
    ChildOutcome,
    ChildrenDone,
    ChildrenPostponed,
    InterruptRun,
    Overdue,
    Resumed,
    RunOutcome,
    Suspended,
    Trigger,
    Triggered,
    TriggerItem,
    TriggerRefused,
    parts,
)

__all__ = ["Dispatcher", "child_outcome"]

log = structlog.get_logger()

_LAST_WORDS: Final = 1.0
"""Seconds that what still waits for a commit gets at the end."""

_LAST_RELEASES: Final = 5.0
"""Seconds that the requeueing of dead workers' runs gets at the end: on a full disk it waits."""

_FULL_PAUSE: Final = 1.0
"""Seconds after which a hand-out is tried again that found the disk full."""

_ALARM: Final = 30.0
"""Seconds after which the next due time is looked up again: the wall clock may be set, and while
the host sleeps the clock that timers go by stands still."""


class Dispatcher:
    """Who runs what. All methods belong to the supervisor's loop.

    Args:
        store: The run store.
        tasks: The registered tasks by id.
        limits: What is refused.
        concurrency: Places of one worker.
        pool: The workers; set before :meth:`run`.
        on_fatal: Called when the store fails: nothing can be promised any more.
        check_payloads: Raises TriggerError for a payload that does not fit its task's type.
    """

    def __init__(
        self,
        store: RunStore,
        tasks: Mapping[str, TaskConfig],
        *,
        limits: LimitsConfig,
        concurrency: int,
        on_fatal: Callable[[BaseException], None],
        check_payloads: Callable[[list[TriggerItem]], Awaitable[None]] | None = None,
    ) -> None:
        self._check_payloads = check_payloads
        self._store = store
        self._tasks = dict(tasks)
        self._known = dict(tasks)
        """Those of earlier configs, too: runs of theirs may still execute."""
        self._ids = frozenset(tasks)
        self._claimable: frozenset[str] | None = self._ids
        """The tasks that the last hand-out went by; None when limits are others, too, since."""
        self._queues = queue_limits(tasks.values())
        self._limits = limits
        self._concurrency = concurrency
        self._on_fatal = on_fatal
        self._pool: WorkerPool
        self._wake = asyncio.Event()
        self._watchers = Watchers()
        self._suspects = Suspects()
        self._outcomes = Outcomes(
            store,
            tasks,
            suspects=self._suspects,
            on_recorded=self._recorded,
            on_failed=on_fatal,
        )
        self._stopping = False
        self._releases: set[asyncio.Future[list[Run]]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._backlog = 0
        """Runs that wait to be handed out, counted here: asking the store at each accept would
        cost more than the accept."""

    def reload(
        self, tasks: Mapping[str, TaskConfig], *, limits: LimitsConfig, concurrency: int
    ) -> None:
        """Go by these tasks and limits from now on.

        Runs that execute go on as they are. Those of tasks that are gone wait in their queues until
        a config has them again; those of new ones, until every worker knows them.
        """
        self._tasks = dict(tasks)
        self._ids = frozenset(tasks)
        self._known |= tasks
        self._outcomes.reload(tasks)
        self._queues = queue_limits(tasks.values())
        self._limits = limits
        self._concurrency = concurrency
        # Not here: on a full disk it must be tried again, and half a reload is none.
        self._claimable = None
        self.wake()

    def wake(self) -> None:
        """There may be something to hand out, or a place for it."""
        self._wake.set()

    async def run(self, pool: WorkerPool) -> None:
        """Hand out runs until told to stop."""
        self._pool = pool
        # Not the counts by status: they read one index entry for every run there ever was.
        self._backlog = await self._store.unfinished()
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
        """Hand out nothing more, and tell those who wait for a run that nobody has."""
        self._stopping = True
        self.wake()
        self._in_background(self._postpone_ready())

    async def close(self) -> None:
        """Return when the ends of all runs of dead workers are committed and told."""
        self._outcomes.flush()
        if self._releases:
            await asyncio.wait(self._releases, timeout=_LAST_RELEASES)
        if self._background:
            await asyncio.wait(self._background, timeout=_LAST_WORDS)
        for task in list(self._background):
            task.cancel()

    async def _postpone_ready(self) -> None:
        for run_id in list(self._watchers):
            await self._tell_watchers(run_id)

    # ------------------------------------------------------------ hand-out

    async def _hand_out(self) -> None:
        now = time.time()
        await self._pass_time(now)
        await self._look_at_tasks()
        places = self._free_places(await self._open_workers(now))
        if places:
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
            self._gone(run)

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
        self._backlog -= len(runs)
        self._assign(runs)
        if any(self._known[run.task].replicas for run in runs):
            self._balance_loops(list(self._pool.ready()))
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
        idle = [_place(worker) for worker in workers if not worker.load]
        if waiting and idle:
            await self._claim(idle, now, only=waiting)
        busy = [worker for worker in workers if worker.load and not self._is_isolated(worker)]
        lanes = max(1, len(workers) // 2) - sum(map(self._is_isolated, workers))
        reserved = busy[: max(0, min(lanes, await self._count_startable(waiting)))]
        for worker in reserved:
            # It would never become idle with them.
            _move_out(worker, _loops_of(worker, self._known))

        return reserved

    async def _count_startable(self, run_ids: list[str]) -> int:
        """Count those that only lack a worker: no place helps one whose task or queue has none."""
        if not run_ids:
            return 0

        return await self._store.startable(
            run_ids, queues=self._queues, tasks=self._find_claimable()
        )

    def worker_ready(self, workers: Sequence[Worker]) -> None:
        """One more of *workers*, all that are ready, takes runs: some loops of the others do."""
        self._balance_loops(workers)
        self.wake()

    def _balance_loops(self, workers: Sequence[Worker]) -> None:
        """Move loops to workers with more room: other runs end, and make room by themselves.

        Only where a worker has two runs more than another, so that a loop that goes back to the
        queue is handed to that other one and never comes back.
        """
        if self._suspects or len(workers) < 2:
            return
        loads = {worker.owner: worker.load for worker in workers}
        loops = {worker.owner: _loops_of(worker, self._known) for worker in workers}
        while True:
            most = max(workers, key=lambda each: loads[each.owner] * bool(loops[each.owner]))
            least = min(workers, key=lambda each: loads[each.owner])
            if not loops[most.owner] or loads[most.owner] - loads[least.owner] < 2:
                return
            _move_out(most, [loops[most.owner].pop()])
            loads[most.owner] -= 1
            loads[least.owner] += 1

    def _is_isolated(self, worker: Worker) -> bool:
        """Whether it executes a run that must run alone."""
        return bool(self._suspects) and any(
            held.run.id in self._suspects and not held.waiting for held in worker.runs.values()
        )

    def _free_places(self, workers: Iterable[Worker]) -> list[Place]:
        """One entry a free place; the least loaded worker's first, so that work spreads.

        What a worker of tiny runs may be given ahead counts as places, too.
        """
        entries = [
            (place, worker.number, _place(worker))
            for worker in workers
            for place in range(worker.load, self._concurrency + self._most_ahead(worker))
        ]

        return [entry[2] for entry in sorted(entries, key=lambda entry: entry[:2])]

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
                self._outcomes.requeue(run)

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

    # ------------------------------------------------------------ messages of workers

    def receive(self, worker: Worker, message: messages.FromWorker) -> None:
        """Act on what *worker* says."""
        match message:
            case messages.Outcomes():
                self._end_attempts(worker, message.outcomes)
                self.wake()
            case Trigger():
                self._in_background(self._trigger_for(worker, message))
            case Suspended():
                self._suspend(worker, message)
            case Resumed():
                self._resume(worker, message)
            case Overdue():
                self._end_overdue(worker, message)
            case _:
                raise AssertionError(f"not the dispatcher's message: {message!r}")

    def _end_attempts(self, worker: Worker, outcomes: Iterable[RunOutcome]) -> None:
        for outcome in outcomes:
            held = worker.runs.get(outcome.run_id)
            if held is None or held.run.attempt != outcome.attempt:
                log_late(outcome.run_id, outcome.attempt)
                continue
            del worker.runs[outcome.run_id]
            worker.ahead.ended(outcome.took)
            if outcome.took is not None:
                worker.has_worked = True
            self._outcomes.record(held.run, outcome)

    def _end_overdue(self, worker: Worker, message: Overdue) -> None:
        """Kill the worker of a run that ignores its end. Its death ends the run; nobody is blamed.

        Nothing is recorded, and no neighbour starts again, before the process is gone: until then
        they are executed.
        """
        held = worker.runs.get(message.run_id)
        if held is None or held.run.attempt != message.attempt:
            return
        ignored = "cancellation" if message.status == "CANCELED" else "max_duration"
        log.warning(
            "worker.killed",
            number=worker.number,
            worker_pid=worker.pid,
            reason=f"a run ignored its {ignored}",
            **held.run.log_context(),
        )
        held.overdue = message.status
        worker.is_condemned = True
        worker.kill()

    # ------------------------------------------------------------ a worker died

    def release(self, worker: Worker, *, blame: bool) -> None:
        """Start the runs of a dead *worker* again elsewhere, at once (R2).

        Args:
            worker: Nothing more will come from it.
            blame: Whether it died by itself. Only a run that was alone in it is blamed (R8).
        """
        held = list(worker.runs.values())
        worker.runs.clear()
        for each in held:
            if each.overdue is not None:
                self._outcomes.overdue(each.run, each.overdue)
        if blame and not worker.is_condemned:
            # Those that wait for their children execute nothing, and of those that were given
            # ahead none has begun but for the places of outcomes that the death has swallowed.
            executing = [each for each in held if not each.waiting][: 2 * self._concurrency]
            self._suspect(executing or held, worker)
        self._outcomes.flush()
        released = self._store.release(worker.owner)
        self._releases.add(released)
        released.add_done_callback(self._releases.discard)
        released.add_done_callback(self._released)

    def _suspect(self, held: list[HeldRun], worker: Worker) -> None:
        if len(held) == 1:
            run = held[0].run
            self._outcomes.blame(
                run,
                worker.exit_status,
                stuck=worker.stuck,
                log_tail=worker.last_lines(run.id),
            )
        else:
            now = time.monotonic()
            lived = max((now - each.since for each in held), default=0.0)
            self._suspects.died_together((each.run.id for each in held), lived=lived)

    def _released(self, future: "asyncio.Future[list[Run]]") -> None:
        if self._failed(future):
            return
        for run in future.result():
            if run.status is Status.CANCELED:
                log.warning("run.canceled", **run.log_context())
                self._suspects.cleared(run.id)
                self._watchers.ended(run.id)
                continue
            self._backlog += 1
            log.info("run.requeued", **run.log_context())
            if self._stopping:
                self._watchers.postponed(run.id)
        self.wake()

    # ------------------------------------------------------------ canceling

    async def cancel(
        self, run_ids: list[str], *, by: str | None = None, descendants: bool = False
    ) -> Cancellation:
        """Cancel runs; those that execute are told to stop, and end when they have.

        Args:
            run_ids: The runs.
            by: Who asks, in words.
            descendants: Whether all runs below them are canceled, too.

        Raises:
            StoreError: The store cannot do it.
        """
        done = await self._store.cancel(run_ids, by=by, descendants=descendants)
        for run in done.canceled:
            log.warning("run.canceled", canceled_by=run.canceled_by, **run.log_context())
            self._suspects.cleared(run.id)
            if run.owner is None:
                self._gone(run)
            else:
                self._watchers.ended(run.id)
        for run in done.requested:
            log.info("run.cancel_requested", canceled_by=run.canceled_by, **run.log_context())
        for run in (*done.canceled, *done.requested):
            self._tell_to_stop(run)
        self.wake()

        return done

    def _tell_to_stop(self, run: RunSummary) -> None:
        if run.owner is None:
            return  # nobody has it, and before the hand-out begins there are no workers
        for worker in self._pool.workers.values():
            if worker.owner == run.owner:
                worker.channel.send(CancelRun(run_id=run.id, attempt=run.attempt))

    def _gone(self, run: RunSummary) -> None:
        """A run that nobody had has its end."""
        self._backlog -= 1
        self._watchers.ended(run.id)

    # ------------------------------------------------------------ accepting

    async def accept(
        self,
        items: list[TriggerItem],
        *,
        parent_id: str | None = None,
        triggered_by: str | None = None,
        alone: bool = False,
    ) -> list[Accepted]:
        """Accept runs; they are durable when this returns (R1).

        Args:
            items: What is asked for.
            parent_id: The run that asks.
            triggered_by: Who asks, in words, if no run does.
            alone: Whether they run alone at first, since others of their kind took a worker down.

        Raises:
            TriggerError: Nothing was accepted: an unknown task, a payload or a batch too large, a
                payload that does not fit its task, or no room in the queue.
            ParentCanceledError: The run that asks was canceled with its children.
            StoreError: The store cannot take them.
        """
        check_items(
            items,
            tasks=self._tasks,
            limits=self._limits,
            backlog=self._backlog,
            now=time.time(),
        )
        if self._check_payloads is not None:
            await self._check_payloads(items)
        accepting = self._store.accept(
            _new_run(item, self._known[item.task], parent_id, triggered_by) for item in items
        )
        if not alone:
            # The hand-out, if there is a place, is in the same commit.
            self.wake()
        accepted = await accepting
        info = log.bind().info
        with logs.together():
            for item, answer in zip(items, accepted, strict=True):
                if answer.created:
                    self._backlog += 1
                    if alone:
                        self._suspects.caught(answer.id)
                    info("run.accepted", run_id=answer.id, task=item.task, parent_id=parent_id)
        self.wake()

        return accepted

    async def _trigger_for(self, worker: Worker, message: Trigger) -> None:
        """Answer a run that asks for others; with ``wait``, a second time when they are done."""
        try:
            accepted = await self.accept(message.items, parent_id=message.run_id)
        except TriggerError as error:
            worker.channel.send(TriggerRefused(request=message.request, message=str(error)))
            return
        except (ParentCanceledError, StoreFullError) as error:
            worker.channel.send(TriggerRefused(request=message.request, message=error.what))
            return
        if message.wait and (gone := await self._find_gone(accepted)) is not None:
            worker.channel.send(TriggerRefused(request=message.request, message=gone))
            return
        run_ids = [each.id for each in accepted]
        worker.channel.send(Triggered(request=message.request, run_ids=run_ids))
        if message.wait:
            await self._wait_for_children(worker, message, run_ids)

    async def _find_gone(self, accepted: Iterable[Accepted]) -> str | None:
        """Say which run cannot be waited for: its key has outlived it, and so nobody ends it."""
        for each in accepted:
            if not each.created and await self._store.get(each.id) is None:
                return (
                    f"run {each.id}, which the idempotency key stands for, has ended and was "
                    "deleted: its outcome is not known any more"
                )

        return None

    async def _wait_for_children(
        self, worker: Worker, message: Trigger, run_ids: list[str]
    ) -> None:
        attempt = (message.run_id, message.attempt, worker.owner)
        if self._count_wait(worker, message, 1):
            await self._store.wait(*attempt)
        try:
            children = await self.finished(run_ids)
        except RunPostponedError:
            worker.channel.send(
                ChildrenPostponed(
                    request=message.request, run_id=message.run_id, attempt=message.attempt
                )
            )
            return
        if self._count_wait(worker, message, -1):
            await self._store.resume(*attempt)
        *others, last = parts(child_outcome(run) for run in children)
        for part in others:
            worker.channel.send(ChildrenDone(request=message.request, outcomes=part, last=False))
        worker.channel.send(ChildrenDone(request=message.request, outcomes=last))

    def _suspend(self, worker: Worker, message: Suspended) -> None:
        if self._count_wait(worker, message, 1):
            self._track(self._store.wait(message.run_id, message.attempt, worker.owner))

    def _resume(self, worker: Worker, message: Resumed) -> None:
        if self._count_wait(worker, message, -1):
            self._track(self._store.resume(message.run_id, message.attempt, worker.owner))

    def _track(self, change: "asyncio.Future[bool]") -> None:
        change.add_done_callback(self._failed)

    def _count_wait(
        self, worker: Worker, message: Trigger | Suspended | Resumed, change: int
    ) -> bool:
        """Count a waiting call that begins or ends; say whether the run's place is freed or taken.

        A run may wait in several calls at once, and has its place again when none is left: with
        the first answer it would hold the place that the children of the others need.
        """
        held = worker.runs.get(message.run_id)
        if held is None or held.run.attempt != message.attempt:
            return False
        before = held.waiting
        held.waits += change
        if held.waiting is before:
            return False
        log.info("run.waiting" if held.waiting else "run.resumed", **held.run.log_context())
        self.wake()

        return True

    async def finished(self, run_ids: list[str]) -> list[Run]:
        """Return these runs, in this order, once all have an outcome.

        Raises:
            RunPostponedError: One of them is not started any more: the supervisor stops.
        """
        with self._watchers.watch(run_ids) as watched:
            for run_id in watched:
                await self._tell_watchers(run_id)
            await asyncio.gather(*watched.values())

        return await self._store.get_many(run_ids)

    async def _tell_watchers(self, run_id: str) -> None:
        """Tell whoever waits for a run what the store says of it."""
        run = await self._store.get(run_id)
        if run is not None and run.status.is_finished:
            self._watchers.ended(run_id)
        elif run is not None and run.status in READY and self._stopping:
            self._watchers.postponed(run_id)

    # ------------------------------------------------------------ afterwards

    def _recorded(self, run: Run, is_end: bool) -> None:
        """The end of an attempt is committed: somebody may wait for it, and a place is free."""
        if is_end:
            self._watchers.ended(run.id)
        else:
            self._backlog += 1
            if self._stopping:
                self._watchers.postponed(run.id)
        self.wake()

    def _failed(self, future: "asyncio.Future[Any]") -> bool:
        if future.cancelled():
            return True
        error = future.exception()
        if error is not None:
            self._on_fatal(error)

        return error is not None

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        self._failed(task)


def child_outcome(run: Run) -> ChildOutcome:
    """Return how *run* ended, for whom waited for it."""
    return ChildOutcome(
        id=run.id,
        task=run.task,
        status=str(run.status),
        output=run.output,
        error=run.error,
    )


def _place(worker: Worker) -> Place:
    return Place(worker.owner, worker.pid, worker.number)


def _new_run(
    item: TriggerItem, task: TaskConfig, parent_id: str | None, triggered_by: str | None
) -> NewRun:
    return NewRun(
        task=item.task,
        payload=item.payload,
        parent_id=parent_id,
        idempotency_key=item.idempotency_key,
        idempotency_ttl=item.idempotency_ttl,
        run_at=item.run_at,
        ttl=task.ttl if item.ttl is None else item.ttl,
        priority=item.priority,
        queue=task.queue if item.queue is None else item.queue,
        concurrency_key=item.concurrency_key,
        tags=item.tags,
        max_attempts=item.max_attempts,
        max_duration=item.max_duration,
        metadata=item.metadata,
        replay_of=item.replay_of,
        stream_run_id=item.stream_run_id,
        triggered_by=triggered_by,
    )


def _loops_of(worker: Worker, tasks: Mapping[str, TaskConfig]) -> list[HeldRun]:
    """Return the loops that *worker* has and keeps."""
    return [
        held for held in worker.runs.values() if tasks[held.run.task].replicas and not held.moving
    ]


def _move_out(worker: Worker, loops: Iterable[HeldRun]) -> None:
    """Have these runs of *worker* go back to the queue, to start wherever there is most room."""
    for held in loops:
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
