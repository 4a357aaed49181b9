"""Loops: tasks of which so many runs are kept alive, over all workers and for ever (design §7).

Each replica is one run at a time, told by its tag `loop:<number>`. When it ends, however it ends,
the next one is accepted: at once where it had lived well, later and later where it ends as soon as
it starts. It never gives up: what a loop is for may come back at any time.

A supervisor that starts finds the run of each replica in the store, requeued, and goes on with it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import structlog

from td_runtime.admission import TriggerError
from td_runtime.dispatch import Dispatcher
from td_runtime.outcomes import WORKER_STALLED
from td_runtime.restart import Deaths, RestartPolicy
from td_runtime.store import Run, RunQuery, RunStore, Status, StoreFullError
from td_runtime.store.records import FINISHED
from td_runtime.watchers import RunPostponedError
from td_worker.messages import TriggerItem

__all__ = ["Loops"]

log = structlog.get_logger()

_UNFINISHED: Final = frozenset(Status) - FINISHED

_REFUSED_PAUSE: Final = 5.0
"""Seconds until a replica that was not accepted, or not canceled, is tried again."""

_ENDS: Final = {
    Status.COMPLETED: "loop.returned",
    Status.FAILED: "loop.raised",
    Status.TIMED_OUT: "loop.timed_out",
    Status.CRASHED: "loop.crashed",
    Status.CANCELED: "loop.canceled",
    Status.EXPIRED: "loop.expired",
}


class Loops:
    """The replicas of one supervisor's loops. All methods belong to its loop.

    Args:
        store: Where runs of earlier supervisors are found.
        dispatcher: Who accepts runs and knows when they end.
        on_failed: Called with what no loop can be kept alive with: an error of the store's.
    """

    def __init__(
        self,
        store: RunStore,
        dispatcher: Dispatcher,
        *,
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._on_failed = on_failed
        self._accepting: set[asyncio.Task[str]] = set()
        self._keepers: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._replicas: dict[str, int] = {}
        self._policy = RestartPolicy()

    async def keep(self, replicas: Mapping[str, int]) -> None:
        """Keep that many runs of each task from now on; what is too many is canceled.

        Args:
            replicas: How many, by task id; tasks that are left out are no loops.
        """
        before, self._replicas = self._replicas, dict(replicas)
        wanted = {(task, n) for task, count in replicas.items() for n in range(1, count + 1)}
        for key in self._keepers.keys() - wanted:
            self._keepers.pop(key).cancel()
        if self._accepting:
            # What its keeper is asking for is accepted all the same, and must be found below.
            await asyncio.wait(self._accepting)
        for task in before | self._replicas:
            await self._cancel_beyond(task, replicas.get(task, 0), before.get(task, 0))
        loop = asyncio.get_running_loop()
        for key in sorted(wanted - self._keepers.keys()):
            keeper = loop.create_task(self._keep(*key), name=f"loop {key[0]} {key[1]}")
            keeper.add_done_callback(self._ended)
            self._keepers[key] = keeper

    def stop(self) -> None:
        """Start no more replicas; those that run are drained like any run."""
        for keeper in self._keepers.values():
            keeper.cancel()
        self._keepers.clear()

    def _ended(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            self._on_failed(error)

    async def _keep(self, task: str, number: int) -> None:
        deaths, crashed = Deaths(), False
        while True:
            began = time.monotonic()
            try:
                run_id = await self._find(task, number)
                if run_id is None:
                    run_id = await self._accept_wholly(task, number, alone=crashed)
                found = await self._dispatcher.finished([run_id])
            except RunPostponedError:
                return
            except (TriggerError, StoreFullError) as error:
                log.error("loop.refused", task=task, replica=number, error_message=str(error))
                await asyncio.sleep(_REFUSED_PAUSE)
                continue
            if not found:  # deleted by now: nobody can say how it ended, or how long it lived
                await asyncio.sleep(_REFUSED_PAUSE)
                continue
            (run,) = found
            # By the wall clock, as it is recorded, but not more than has passed here.
            lived = min(_lived(run), time.monotonic() - began)
            restart = self._policy.after_death(
                deaths, lived=lived, random=random.random, who=f"loop {task}"
            )
            deaths, crashed = restart.deaths, run.status is Status.CRASHED
            _log_end(run, number, lived, restart.delay)
            await asyncio.sleep(restart.delay)

    async def _find(self, task: str, number: int) -> str | None:
        query = RunQuery(statuses=_UNFINISHED, tasks=frozenset({task}), tag=_tag(number), limit=1)
        found = await self._store.find(query)

        return found[0].id if found else None

    async def _accept_wholly(self, task: str, number: int, *, alone: bool) -> str:
        """Accept a run, to the end even where whoever asks is cancelled."""
        accepting = asyncio.create_task(self._accept(task, number, alone=alone))
        self._accepting.add(accepting)
        accepting.add_done_callback(self._accepting.discard)

        return await asyncio.shield(accepting)

    async def _accept(self, task: str, number: int, *, alone: bool) -> str:
        # One attempt: what is tried again, and when, is decided here for every kind of end.
        item = TriggerItem(
            task=task,
            payload=msgspec.json.encode({"replica": number, "replicas": self._replicas[task]}),
            tags=(_tag(number),),
            max_attempts=1,
        )
        # After a crash it must not take its neighbours down once more.
        (accepted,) = await self._dispatcher.accept([item], triggered_by="loop", alone=alone)
        log.info("loop.started", task=task, replica=number, run_id=accepted.id)

        return accepted.id

    async def _cancel_beyond(self, task: str, count: int, before: int) -> None:
        """Cancel the replicas above *count*, those that an earlier supervisor had kept, too."""
        number = count + 1
        while (run_id := await self._find(task, number)) is not None or number <= before:
            if run_id is not None and not await self._cancel(run_id, task, number):
                await asyncio.sleep(_REFUSED_PAUSE)
                continue
            number += 1

    async def _cancel(self, run_id: str, task: str, number: int) -> bool:
        """Cancel one; False on a full disk: given up, it would execute for ever."""
        try:
            await self._dispatcher.cancel([run_id], by="reload: fewer replicas")
        except StoreFullError as error:
            log.error("loop.refused", task=task, replica=number, error_message=str(error))
            return False

        return True


def _tag(number: int) -> str:
    return f"loop:{number}"


def _lived(run: Run) -> float:
    """Return for how many seconds the last attempt of *run* went on."""
    ended = run.finished_at or time.time()

    return max(0.0, ended - (run.started_at or ended))


def _end(run: Run) -> str:
    if run.error is not None and run.error.type == WORKER_STALLED:
        return "loop.hung"

    return _ENDS[run.status]


def _log_end(run: Run, number: int, lived: float, delay: float) -> None:
    log.warning(
        _end(run),
        replica=number,
        lived_s=round(lived, 3),
        delay_s=round(delay, 3),
        error_type=None if run.error is None else run.error.type,
        error_message=None if run.error is None else run.error.message,
        **run.log_context(),
    )
