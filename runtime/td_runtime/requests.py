"""Carries out what clients ask for over the control socket: each request by its kind."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from td_runtime.admission import TriggerError
from td_runtime.config import LimitsConfig, TaskConfig
from td_runtime.control_messages import (
    GetStatus,
    ListSchedules,
    ListTasks,
    Refused,
    Request,
    SchedulesView,
    ScheduleView,
    StatusView,
    Stopping,
    StopRuntime,
    TasksView,
    TaskView,
    WaitForRun,
)
from td_runtime.dispatch import Dispatcher
from td_runtime.errors import TdRuntimeError
from td_runtime.queues import queue_of
from td_runtime.run_requests import RunRequests
from td_runtime.store import RunStore, Status
from td_runtime.watchers import RunPostponedError

__all__ = ["Requests"]

_MOST_TICKS: Final = 100
_LONGEST_DRAIN: Final = 7 * 86_400.0
"""Seconds."""


class Requests:
    """The requests under way. Belongs to the supervisor's loop.

    Args:
        store: Where runs are looked up.
        dispatcher: Who accepts runs, and knows when they end.
        limits: What is refused.
        tasks: Returns the registered tasks, in the order of the config.
        status: Makes the answer to ``status`` from the counts of runs.
        stop: Begins to drain: who asks, and the seconds that running runs get instead of the
            config's.
        on_failed: Called with an error that is no answer to a client: the supervisor's own.
    """

    def __init__(
        self,
        store: RunStore,
        dispatcher: Dispatcher,
        *,
        limits: LimitsConfig,
        tasks: Callable[[], Sequence[TaskConfig]],
        status: Callable[[Mapping[Status, int]], StatusView],
        stop: Callable[[str, float | None], Stopping],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._runs = RunRequests(store, dispatcher, limits)
        self._registered = tasks
        self._status = status
        self._stop = stop
        self._on_failed = on_failed
        self._under_way: set[asyncio.Task[None]] = set()
        self._methods: dict[type, Callable[[Any, str], Awaitable[msgspec.Struct]]] = {
            **self._runs.methods(),
            GetStatus: self._get_status,
            ListTasks: self._list_tasks,
            ListSchedules: self._list_schedules,
            StopRuntime: self._stop_runtime,
        }

    def answer(
        self, request: Request, by: str, send: Callable[[msgspec.Struct], None]
    ) -> Callable[[], object] | None:
        """Carry out *request*; *send* is called with its answer, at once or later.

        Args:
            request: What is asked for.
            by: Who asks, in words.
            send: Takes the answer.

        Returns:
            What ends a request that does nothing but wait; None for one that is to be carried out
            whether somebody hears of it or not.
        """
        task = asyncio.get_running_loop().create_task(self._answer(request, by, send))
        self._under_way.add(task)
        task.add_done_callback(self._done)

        return task.cancel if isinstance(request, WaitForRun) else None

    def reload(self, limits: LimitsConfig) -> None:
        """Refuse by these limits from now on."""
        self._runs.reload(limits)

    def refuse_runs(self) -> None:
        """Accept no more runs; everything else is still answered."""
        self._runs.close()

    async def settled(self) -> None:
        """Return when every request so far has its answer."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failed(error)

    async def _answer(
        self, request: Request, by: str, send: Callable[[msgspec.Struct], None]
    ) -> None:
        try:
            send(await self._methods[type(request)](request, by))
        except TriggerError as error:
            send(Refused(message=str(error), code=error.code))
        except RunPostponedError as error:
            send(Refused(message=str(error)))
        except TdRuntimeError as error:
            send(Refused(message=error.what, advice=error.advice))

    async def _get_status(self, _: GetStatus, __: str) -> StatusView:
        return self._status(await self._store.counts())

    async def _list_tasks(self, _: ListTasks, __: str) -> TasksView:
        return TasksView(tasks=[_view(task) for task in self._registered()])

    async def _list_schedules(self, request: ListSchedules, _: str) -> SchedulesView:
        if not 0 <= request.upcoming <= _MOST_TICKS:
            raise TriggerError(f"upcoming = {request.upcoming}; it must be from 0 to {_MOST_TICKS}")
        last = await self._store.last_ticks()
        views = [
            _view_schedule(task, last.get(task.id), request.upcoming) for task in self._registered()
        ]

        return SchedulesView(schedules=[view for view in views if view is not None])

    async def _stop_runtime(self, request: StopRuntime, by: str) -> Stopping:
        timeout = request.drain_timeout
        if timeout is not None and not 0 <= timeout <= _LONGEST_DRAIN:
            raise TriggerError(
                f"drain_timeout = {timeout:g}; it must be from 0 to {_LONGEST_DRAIN:g} seconds"
            )

        return self._stop(by, timeout)


def _view(task: TaskConfig) -> TaskView:
    return TaskView(
        id=task.id,
        entrypoint=task.entrypoint,
        queue=queue_of(task),
        concurrency=task.concurrency,
        concurrency_per_key=task.concurrency_per_key,
        max_attempts=task.retry.max_attempts,
        max_crashes=task.max_crashes,
        max_duration=task.max_duration,
        ttl=task.ttl,
        replicas=task.replicas,
        cron=task.cron,
        timezone=task.timezone,
    )


def _view_schedule(task: TaskConfig, last: float | None, count: int) -> ScheduleView | None:
    schedule = task.schedule
    if schedule is None:
        return None

    return ScheduleView(
        task=task.id,
        cron=schedule.pattern,
        timezone=schedule.timezone,
        missed_ticks=schedule.missed,
        last=last,
        upcoming=schedule.next_ticks(max(last or 0.0, time.time()), count),
    )
