"""The gateway's line to the supervisor: how an HTTP request starts a run.

What is said over the control socket is imported with the first request: a gateway that only hands
out credentials starts without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

if TYPE_CHECKING:
    from td_runtime.async_control import AsyncControl
    from td_worker.messages import TriggerItem

ANSWER_S: Final = 30.0

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


class SupervisorLink:
    """Asks the supervisor of a data folder.

    Args:
        data_dir: The data folder.
    """

    def __init__(self, data_dir: str) -> None:
        self._data_dir = data_dir
        self._control: AsyncControl | None = None

    async def trigger(self, items: list[TriggerItem]) -> list[str]:
        """Have runs accepted; returns their ids, in order, once they are durable.

        Raises:
            NotRunningError: No supervisor answers. It may have accepted the runs and died: give
                an idempotency key to be able to ask again.
            ControlRefusedError: The supervisor says no, and why; nothing was accepted.
        """
        from td_runtime.control_messages import Accepted, TriggerRuns

        return (await self.ask(TriggerRuns(items=items), Accepted)).run_ids

    async def ask(self, request: msgspec.Struct, kind: type[AnswerT]) -> AnswerT:
        """Send one request and return its answer; raises as :meth:`trigger`."""
        from td_runtime.control import NotRunningError

        try:
            return await self._connected().ask(request, kind, timeout=ANSWER_S)
        except TimeoutError as error:
            raise NotRunningError(
                f"the supervisor gave no answer for {ANSWER_S:g} s", where=self._data_dir
            ) from error

    def close(self) -> None:
        """Hang up."""
        if self._control is not None:
            self._control.close()

    def _connected(self) -> AsyncControl:
        from td_runtime.async_control import AsyncControl
        from td_runtime.data_dir import DataDir

        if self._control is None:
            self._control = AsyncControl(DataDir(Path(self._data_dir)), name="HTTP API")

        return self._control
