"""The twin of :mod:`td_runtime.client` for programs with an event loop."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from td_runtime import client_calls as calls
from td_runtime.async_control import AsyncControl
from td_runtime.client import ANSWER_S
from td_runtime.client_calls import ListOptions, RunHandle
from td_runtime.control_messages import (
    Accepted,
    AddTags,
    CanceledRuns,
    CancelRuns,
    Done,
    GetRun,
    RunDetails,
    RunItem,
    RunsPage,
    RunView,
    WaitForRun,
)

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Unpack

    from td_worker.tasks import RunResult
    from td_worker.trigger_options import Duration, TriggerOptions

__all__ = ["AsyncClient"]

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


class AsyncClient:
    """
    Triggers runs, and looks at them, from an event loop; any number of calls at a time.

    ```python
    async with AsyncClient(config) as client:
        handle = await client.trigger("hello", {"name": "Ada"}, tags=["user_17"])
        print((await client.wait(handle.id)).unwrap())
    ```

    Arguments and errors are those of :class:`td_runtime.client.Client`. It belongs to one loop at
    a time.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        name: str = "client",
    ) -> None:
        self._control = AsyncControl(calls.find_data_dir(config, data_dir), name=name)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. A call that comes later connects again."""
        self._control.close()

    async def trigger(
        self, task: str, payload: Any = None, **options: Unpack[TriggerOptions]
    ) -> RunHandle:
        """See :meth:`td_runtime.client.Client.trigger`."""
        from td_worker.trigger_options import make_item

        items = [make_item(task, payload, options)]

        return calls.handles(items, await self._ask(calls.trigger_request(items), Accepted))[0]

    async def batch_trigger(
        self, task: str, payloads: Iterable[Any], **options: Unpack[TriggerOptions]
    ) -> list[RunHandle]:
        """See :meth:`td_runtime.client.Client.batch_trigger`."""
        from td_worker.trigger_options import make_items

        items = make_items(task, payloads, options)

        return calls.handles(items, await self._ask(calls.trigger_request(items), Accepted))

    async def retrieve(self, run_id: str) -> RunDetails:
        """See :meth:`td_runtime.client.Client.retrieve`."""
        return await self._ask(GetRun(run_id=run_id), RunDetails)

    async def list(self, **options: Unpack[ListOptions]) -> list[RunItem]:
        """See :meth:`td_runtime.client.Client.list`."""
        return (await self._ask(calls.list_request(options), RunsPage)).runs

    async def cancel(self, *run_ids: str, descendants: bool = False) -> CanceledRuns:
        """See :meth:`td_runtime.client.Client.cancel`."""
        request = CancelRuns(run_ids=[*run_ids], descendants=descendants)

        return await self._ask(request, CanceledRuns)

    async def reschedule(self, run_id: str, delay: Duration | datetime) -> None:
        """See :meth:`td_runtime.client.Client.reschedule`."""
        await self._ask(calls.reschedule_request(run_id, delay), Done)

    async def add_tags(self, run_id: str, *tags: str) -> None:
        """See :meth:`td_runtime.client.Client.add_tags`."""
        await self._ask(AddTags(run_id=run_id, tags=tags), Done)

    async def replay(self, run_id: str, payload: Any = msgspec.UNSET) -> RunHandle:
        """See :meth:`td_runtime.client.Client.replay`."""
        request = calls.replay_request(run_id, payload)
        (new_id,) = (await self._ask(request, Accepted)).run_ids

        return RunHandle(new_id, (await self.retrieve(new_id)).task)

    async def wait(self, run_id: str, *, timeout: float | None = None) -> RunResult:
        """See :meth:`td_runtime.client.Client.wait`."""
        request = WaitForRun(run_id=run_id)
        calls.check(request)

        return calls.result(await self._control.ask(request, RunView, timeout=timeout))

    async def _ask(self, request: msgspec.Struct, kind: type[AnswerT]) -> AnswerT:
        calls.check(request)

        return await self._control.ask(request, kind, timeout=ANSWER_S)
