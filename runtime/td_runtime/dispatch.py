"""What becomes of runs from acceptance to end: the heart of the supervisor's loop."""

import asyncio
import contextlib
import time
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, Final

import structlog

from td_runtime import logs
from td_runtime.admission import check_items
from td_runtime.children import Children
from td_runtime.config import LimitsConfig, TaskConfig
from td_runtime.hand_out import HandOut
from td_runtime.outcomes import Outcomes, log_late
from td_runtime.store import (
    READY,
    Accepted,
    Cancellation,
    NewRun,
    Run,
    RunStore,
    RunSummary,
    Status,
)
from td_runtime.suspects import Suspects
from td_runtime.watchers import Watchers
from td_runtime.workers import HeldRun, Worker, WorkerPool
from td_worker import messages
from td_worker.messages import (
    CancelRun,
    Overdue,
    Resumed,
    RunOutcome,
    Suspended,
    Trigger,
    TriggerItem,
)

__all__ = ["Dispatcher"]

log = structlog.get_logger()

_LAST_WORDS: Final = 1.0
"""Seconds that what still waits for a commit gets at the end."""

_LAST_RELEASES: Final = 5.0
"""Seconds that the requeueing of dead workers' runs gets at the end: on a full disk it waits."""


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
        self._limits = limits
        self._concurrency = concurrency
        self._on_fatal = on_fatal
        self._pool: WorkerPool
        self._watchers = Watchers()
        self._suspects = Suspects()
        self._outcomes = Outcomes(
            store,
            tasks,
            suspects=self._suspects,
            on_recorded=self._recorded,
            on_failed=on_fatal,
        )
        self._hand_out = HandOut(
            store,
            tasks,
            concurrency=concurrency,
            suspects=self._suspects,
            requeue=self._outcomes.requeue,
            on_expired=self._gone,
        )
        self._children = Children(
            store,
            accept=self.accept,
            finished=self.finished,
            on_place=self._hand_out.wake,
            on_failed=on_fatal,
        )
        self._stopping = False
        self._releases: set[asyncio.Future[list[Run]]] = set()
        self._background: set[asyncio.Task[None]] = set()

    def reload(
        self, tasks: Mapping[str, TaskConfig], *, limits: LimitsConfig, concurrency: int
    ) -> None:
        """Go by these tasks and limits from now on; runs that execute go on as they are."""
        self._tasks = dict(tasks)
        self._known |= tasks
        self._limits = limits
        self._concurrency = concurrency
        self._outcomes.reload(tasks)
        self._hand_out.reload(tasks, concurrency=concurrency)

    async def run(self, pool: WorkerPool) -> None:
        """Hand out runs until told to stop."""
        self._pool = pool
        await self._hand_out.run(pool)

    def worker_ready(self, workers: Sequence[Worker]) -> None:
        """One more of *workers*, all that are ready, takes runs."""
        self._hand_out.worker_ready(workers)

    def stop(self) -> None:
        """Hand out nothing more, and tell those who wait for a run that nobody has."""
        self._stopping = True
        self._hand_out.stop()
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

    # ------------------------------------------------------------ messages of workers

    def receive(self, worker: Worker, message: messages.FromWorker) -> None:
        """Act on what *worker* says."""
        match message:
            case messages.Outcomes():
                self._end_attempts(worker, message.outcomes)
                self._hand_out.wake()
            case Trigger():
                self._in_background(self._children.trigger(worker, message))
            case Suspended():
                self._children.suspend(worker, message)
            case Resumed():
                self._children.resume(worker, message)
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
            self._hand_out.backlog += 1
            log.info("run.requeued", **run.log_context())
            if self._stopping:
                self._watchers.postponed(run.id)
        self._hand_out.wake()

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
        self._hand_out.wake()

        return done

    async def reschedule(self, run_id: str, run_at: float) -> bool:
        """Let a run that is DELAYED start at another time; False when there is none."""
        is_moved = await self._store.reschedule(run_id, run_at)
        self._hand_out.wake()

        return is_moved

    def _tell_to_stop(self, run: RunSummary) -> None:
        if run.owner is None:
            return  # nobody has it, and before the hand-out begins there are no workers
        for worker in self._pool.workers.values():
            if worker.owner == run.owner:
                worker.channel.send(CancelRun(run_id=run.id, attempt=run.attempt))

    def _gone(self, run: RunSummary) -> None:
        """A run that nobody had has its end."""
        self._hand_out.backlog -= 1
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
            backlog=self._hand_out.backlog,
            now=time.time(),
        )
        if self._check_payloads is not None:
            await self._check_payloads(items)
        accepting = self._store.accept(
            _new_run(item, self._known[item.task], parent_id, triggered_by) for item in items
        )
        # The hand-out, if there is a place, is in the same commit.
        self._hand_out.wake()
        with self._hand_out.paused() if alone else contextlib.nullcontext():
            accepted = await accepting
        info = log.bind().info
        with logs.together():
            for item, answer in zip(items, accepted, strict=True):
                if answer.created:
                    self._hand_out.backlog += 1
                    if alone:
                        self._suspects.caught(answer.id)
                    info("run.accepted", run_id=answer.id, task=item.task, parent_id=parent_id)
        self._hand_out.wake()

        return accepted

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
            self._hand_out.backlog += 1
            if self._stopping:
                self._watchers.postponed(run.id)
        self._hand_out.wake()

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
