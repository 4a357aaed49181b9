"""Carries out what clients ask for over the control socket."""

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from td_runtime.admission import TriggerError
from td_runtime.control import (
    Accepted,
    GetStatus,
    GetTree,
    Refused,
    Request,
    RunView,
    StatusView,
    TreeView,
    TriggerRuns,
    WaitForRun,
)
from td_runtime.dispatch import Dispatcher, child_outcome
from td_runtime.errors import TdRuntimeError
from td_runtime.store import Run, RunStore, Status
from td_runtime.watchers import RunPostponedError

__all__ = ["Requests"]


class Requests:
    """The requests under way. Belongs to the supervisor's loop.

    Args:
        store: Where runs are looked up.
        dispatcher: Who accepts runs, and knows when they end.
        status: Makes the answer to ``status`` from the counts of runs.
        on_failed: Called with an error that is no answer to a client: the supervisor's own.
    """

    def __init__(
        self,
        store: RunStore,
        dispatcher: Dispatcher,
        *,
        status: Callable[[Mapping[Status, int]], StatusView],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._status = status
        self._on_failed = on_failed
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    def answer(self, request: Request, send: Callable[[msgspec.Struct], None]) -> None:
        """Carry out *request*; *send* is called with its answer, at once or later."""
        task = asyncio.get_running_loop().create_task(self._answer(request, send))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def refuse_runs(self) -> None:
        """Accept no more runs; everything else is still answered."""
        self._draining = True

    async def settled(self) -> None:
        """Return when every request so far has its answer."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failed(error)

    async def _answer(self, request: Request, send: Callable[[msgspec.Struct], None]) -> None:
        try:
            send(await self._carry_out(request))
        except (TriggerError, RunPostponedError) as error:
            send(Refused(message=str(error)))
        except TdRuntimeError as error:
            send(Refused(message=error.what, advice=error.advice))

    async def _carry_out(self, request: Request) -> msgspec.Struct:
        match request:
            case TriggerRuns():
                return await self._accept(request)
            case WaitForRun():
                return await self._wait_for(request.run_id)
            case GetTree():
                runs = await self._store.tree(request.root_id)
                return TreeView(runs=[_outline(run) for run in runs])
            case GetStatus():
                return self._status(await self._store.counts())
            case _:
                raise AssertionError(f"not a request: {request!r}")

    async def _accept(self, request: TriggerRuns) -> Accepted:
        if self._draining:
            raise TriggerError("the supervisor is draining and takes no more runs")

        return Accepted(run_ids=await self._dispatcher.accept(request.items))

    async def _wait_for(self, run_id: str) -> RunView:
        if await self._store.get(run_id) is None:
            raise TriggerError(f"there is no run {run_id!r}")
        (run,) = await self._dispatcher.finished([run_id])

        return _view(run)


def _outline(run: Run) -> RunView:
    """Return *run* without what may be large: a tree has any number of runs, a frame 16 MiB."""
    error = None if run.error is None else msgspec.structs.replace(run.error, traceback="")

    return _view(msgspec.structs.replace(run, output=None, error=error))


def _view(run: Run) -> RunView:
    return RunView(
        outcome=child_outcome(run),
        attempt=run.attempt,
        pid=run.pid,
        records_lost=run.records_lost,
    )
