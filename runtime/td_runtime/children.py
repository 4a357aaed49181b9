"""Runs that ask for other runs, and runs that wait: for their children, or for input (R9)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import structlog

from td_runtime.admission import TriggerError
from td_runtime.store import (
    Accepted,
    ParentCanceledError,
    Run,
    RunNotFoundError,
    RunStore,
    StoreFullError,
)
from td_runtime.watchers import RunPostponedError
from td_runtime.workers import Worker
from td_worker.messages import (
    ChildOutcome,
    ChildrenDone,
    ChildrenPostponed,
    Resumed,
    Suspended,
    Trigger,
    Triggered,
    TriggerItem,
    TriggerRefused,
    parts,
)

__all__ = ["Children", "child_outcome"]

log = structlog.get_logger()


class _Accept(Protocol):
    """Accepts runs, as `Dispatcher.accept` does."""

    async def __call__(
        self, items: list[TriggerItem], *, parent_id: str | None
    ) -> list[Accepted]: ...


class Children:
    """Answers the calls of runs, and counts which of them hold no place. On the supervisor's loop.

    Args:
        store: The run store.
        accept: Accepts runs.
        finished: Returns runs once all have an outcome.
        on_place: Called when a run has freed its place, or takes it again.
        on_failed: Called with the error when the store cannot record it.
    """

    def __init__(
        self,
        store: RunStore,
        *,
        accept: _Accept,
        finished: Callable[[list[str]], Awaitable[list[Run]]],
        on_place: Callable[[], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._accept = accept
        self._finished = finished
        self._on_place = on_place
        self._on_failed = on_failed

    async def trigger(self, worker: Worker, message: Trigger) -> None:
        """Answer a run that asks for others; with ``wait``, a second time when they are done."""
        try:
            accepted = await self._accept(message.items, parent_id=message.run_id)
        except TriggerError as error:
            worker.channel.send(TriggerRefused(request=message.request, message=str(error)))
            return
        except (ParentCanceledError, RunNotFoundError, StoreFullError) as error:
            # Not found: what a run has left behind may ask when the run itself is deleted.
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
                return _unknown_outcome(each.id)

        return None

    async def _wait_for_children(
        self, worker: Worker, message: Trigger, run_ids: list[str]
    ) -> None:
        attempt = (message.run_id, message.attempt, worker.owner)
        if self._count_wait(worker, message, 1):
            await self._store.wait(*attempt)
        try:
            children = await self._finished(run_ids)
        except RunPostponedError:
            worker.channel.send(
                ChildrenPostponed(
                    request=message.request, run_id=message.run_id, attempt=message.attempt
                )
            )
            return
        if self._count_wait(worker, message, -1):
            await self._store.resume(*attempt)
        if gone := set(run_ids) - {run.id for run in children}:
            text = _unknown_outcome(gone.pop())
            worker.channel.send(TriggerRefused(request=message.request, message=text))
            return
        *others, last = parts(child_outcome(run) for run in children)
        for part in others:
            worker.channel.send(ChildrenDone(request=message.request, outcomes=part, last=False))
        worker.channel.send(ChildrenDone(request=message.request, outcomes=last))

    def suspend(self, worker: Worker, message: Suspended) -> None:
        """Free the place of a run that waits for input."""
        if self._count_wait(worker, message, 1):
            self._track(self._store.wait(message.run_id, message.attempt, worker.owner))

    def resume(self, worker: Worker, message: Resumed) -> None:
        """Take the place again."""
        if self._count_wait(worker, message, -1):
            self._track(self._store.resume(message.run_id, message.attempt, worker.owner))

    def _track(self, change: "asyncio.Future[bool]") -> None:
        def done(future: "asyncio.Future[bool]") -> None:
            if not future.cancelled() and (error := future.exception()) is not None:
                self._on_failed(error)

        change.add_done_callback(done)

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
        self._on_place()

        return True


def _unknown_outcome(run_id: str) -> str:
    return (
        f"run {run_id}, which the idempotency key stands for, has ended and was deleted: its "
        "outcome is not known any more"
    )


def child_outcome(run: Run) -> ChildOutcome:
    """Return how *run* ended, for whom waited for it."""
    return ChildOutcome(
        id=run.id,
        task=run.task,
        status=str(run.status),
        output=run.output,
        error=run.error,
    )
