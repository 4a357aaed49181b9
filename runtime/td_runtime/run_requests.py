"""Carries out what clients ask about runs."""

import functools
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog

from td_runtime.admission import TriggerError, check_metadata, check_moment, check_tags
from td_runtime.children import child_outcome
from td_runtime.config import LimitsConfig
from td_runtime.control_messages import (
    Accepted,
    AddTags,
    CanceledRuns,
    CancelRuns,
    Done,
    GetRun,
    GetTree,
    ListRuns,
    ReplayRun,
    RescheduleRun,
    RunDetails,
    RunItem,
    RunsPage,
    RunView,
    SetMetadata,
    TreeView,
    TriggerRuns,
    WaitForRun,
)
from td_runtime.dispatch import Dispatcher
from td_runtime.replays import repeat
from td_runtime.store import Run, RunQuery, RunStore, RunSummary, Status
from td_worker.messages import TriggerItem

__all__ = ["RunRequests", "read_details", "read_query"]

log = structlog.get_logger()

_MOST_LISTED: Final = 1000
_MOST_CANCELED: Final = 10_000


class RunRequests:
    """One method a request; each takes the request and who asks.

    Args:
        store: Where runs are looked up.
        dispatcher: Who accepts and cancels runs, and knows when they end.
        limits: What is refused.
    """

    def __init__(self, store: RunStore, dispatcher: Dispatcher, limits: LimitsConfig) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._limits = limits
        self._is_closed = False

    def close(self) -> None:
        """Accept no more runs; everything else is still answered."""
        self._is_closed = True

    def reload(self, limits: LimitsConfig) -> None:
        """Refuse by these limits from now on."""
        self._limits = limits

    def methods(self) -> dict[type, Callable[[Any, str], Awaitable[msgspec.Struct]]]:
        """Return what carries out each kind of request."""
        return {
            TriggerRuns: self._trigger,
            ReplayRun: self._replay,
            CancelRuns: self._cancel,
            SetMetadata: self._set_metadata,
            AddTags: self._add_tags,
            RescheduleRun: self._reschedule,
            GetRun: self._get,
            ListRuns: self._list,
            WaitForRun: self._wait_for,
            GetTree: self._tree,
        }

    async def _trigger(self, request: TriggerRuns, by: str) -> Accepted:
        return await self._accept(request.items, by)

    async def _accept(self, items: list[TriggerItem], by: str) -> Accepted:
        if self._is_closed:
            raise TriggerError("the supervisor is draining and takes no more runs", code="draining")
        accepted = await self._dispatcher.accept(items, triggered_by=by)

        return Accepted(
            run_ids=[each.id for each in accepted], created=[each.created for each in accepted]
        )

    async def _replay(self, request: ReplayRun, by: str) -> Accepted:
        run = await self._find(request.run_id)

        item = repeat(run)
        if request.payload is not None:
            item = msgspec.structs.replace(item, payload=request.payload)

        return await self._accept([item], by)

    async def _cancel(self, request: CancelRuns, by: str) -> CanceledRuns:
        if len(request.run_ids) > _MOST_CANCELED:
            raise TriggerError(
                f"{len(request.run_ids)} runs to cancel; at most {_MOST_CANCELED} at once"
            )
        done = await self._dispatcher.cancel(
            request.run_ids, by=by, descendants=request.descendants
        )

        return CanceledRuns(
            canceled=[run.id for run in done.canceled],
            requested=[run.id for run in done.requested],
            finished=list(done.finished),
            unknown=list(done.unknown),
        )

    async def _set_metadata(self, request: SetMetadata, _: str) -> Done:
        check_metadata(request.metadata, f"run {request.run_id!r}", self._limits)
        if not await self._store.set_metadata(request.run_id, request.metadata):
            raise _unknown(request.run_id)

        return Done()

    async def _add_tags(self, request: AddTags, _: str) -> Done:
        run = await self._find(request.run_id)
        check_tags({*run.tags, *request.tags}, f"run {run.id!r}", self._limits)
        await self._store.add_tags(run.id, request.tags)

        return Done()

    async def _reschedule(self, request: RescheduleRun, _: str) -> Done:
        check_moment(request.run_at, f"run {request.run_id!r}", time.time())
        run = await self._find(request.run_id)
        if not await self._dispatcher.reschedule(run.id, request.run_at):
            raise TriggerError(f"run {run.id!r} is not DELAYED, so it cannot be rescheduled")
        log.info("run.rescheduled", run_id=run.id, task=run.task, run_at=request.run_at)

        return Done()

    async def _get(self, request: GetRun, _: str) -> RunDetails:
        return read_details(await self._find(request.run_id))

    async def _list(self, request: ListRuns, _: str) -> RunsPage:
        runs = await self._store.find(read_query(request))

        return RunsPage(runs=[RunItem(**_common(run)) for run in runs])

    async def _wait_for(self, request: WaitForRun, _: str) -> RunView:
        await self._find(request.run_id)
        found = await self._dispatcher.finished([request.run_id])
        if not found:  # deleted in the moment of its end
            raise _unknown(request.run_id)

        return _view(found[0])

    async def _tree(self, request: GetTree, _: str) -> TreeView:
        runs = await self._store.tree(request.root_id)

        return TreeView(runs=[_outline(run) for run in runs])

    async def _find(self, run_id: str) -> Run:
        run = await self._store.get(run_id)
        if run is None:
            raise _unknown(run_id)

        return run


def read_query(request: ListRuns) -> RunQuery:
    """Return what the store is asked.

    Raises:
        TriggerError: A status that there is not, a moment that is none, or too many runs at once.
    """
    known = frozenset(str(status) for status in Status)
    if strange := sorted(request.statuses - known):
        raise TriggerError(
            f"there is no status {strange[0]!r}; one of {', '.join(map(str, Status))}"
        )
    if not 1 <= request.limit <= _MOST_LISTED:
        raise TriggerError(f"limit = {request.limit}; it must be from 1 to {_MOST_LISTED}")
    for name, moment in (("since", request.since), ("until", request.until)):
        if moment is not None and not math.isfinite(moment):
            raise TriggerError(f"{name} = {moment}; it must be seconds since the epoch")
    fields = msgspec.structs.asdict(request)
    fields["statuses"] = frozenset(Status(status) for status in request.statuses)

    return RunQuery(**fields)


def read_details(run: Run) -> RunDetails:
    """Return a run of the store as clients get it."""
    return RunDetails(
        **_common(run),
        payload_json=run.payload,
        output_json=run.output,
        metadata_json=run.metadata,
        error=run.error,
        log_tail=run.log_tail,
        records_lost=run.records_lost,
    )


@functools.cache
def _common_fields() -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(RunItem))


def _common(run: RunSummary) -> dict[str, Any]:
    fields = {name: getattr(run, name) for name in _common_fields()}
    fields["status"] = str(run.status)

    return fields


def _unknown(run_id: str) -> TriggerError:
    return TriggerError(f"there is no run {run_id!r}", code="unknown_run")


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
