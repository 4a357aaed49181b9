"""What is asked of the supervisor about runs, and how its refusals are said over HTTP."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from td_runtime.gateway.exchange import Reply, json_reply
from td_runtime.gateway.platform import answers
from td_runtime.gateway.platform.answers import RefusalError
from td_runtime.gateway.supervisor_link import SupervisorLink

if TYPE_CHECKING:
    from td_runtime.control import ControlRefusedError
    from td_runtime.control_messages import Accepted
    from td_worker.messages import TriggerItem

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)

RETRY_AFTER_S: Final = 1
"""Seconds after which a client may ask again whose run found no room."""


class RunLink:
    """The supervisor, for routes: every refusal is an answer."""

    def __init__(self, link: SupervisorLink) -> None:
        self._link = link

    async def trigger(self, items: list[TriggerItem]) -> Accepted:
        """Have runs accepted.

        Raises:
            RefusalError: With the answer.
        """
        from td_runtime.control_messages import Accepted, TriggerRuns

        return await self.ask(TriggerRuns(items=items), Accepted)

    async def ask(self, request: msgspec.Struct, kind: type[AnswerT]) -> AnswerT:
        """Send one request; raises as :meth:`trigger`."""
        from td_runtime.control import ControlRefusedError, NotRunningError

        try:
            return await self._link.ask(request, kind)
        except ControlRefusedError as error:
            raise RefusalError(_refuse(error)) from error
        except NotRunningError as error:
            raise RefusalError(answers.no_supervisor(error.advice)) from error


def _refuse(error: ControlRefusedError) -> Reply:
    document = {"error": error.what}
    match error.code:
        case "queue_full":
            return json_reply(429, document, _limited())
        case "draining":
            return json_reply(503, document, [("retry-after", str(RETRY_AFTER_S))])
        case "too_large":
            return json_reply(413, document)
        case "unknown_run":
            return json_reply(404, {"error": "Run not found"})

    return json_reply(422, document)


def _limited() -> list[tuple[str, str]]:
    """Return the headers by which official clients know when to ask again."""
    reset_ms = int((time.time() + RETRY_AFTER_S) * 1000)

    return [
        ("retry-after", str(RETRY_AFTER_S)),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", str(reset_ms)),
    ]
