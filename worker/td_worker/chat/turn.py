"""One turn of a conversation, as the agent's handler and hooks see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from td_worker.chat.payload import UIMessage
from td_worker.chat.stop import StopSignal
from td_worker.session_channels import SessionHandle

__all__ = ["Turn"]


@dataclass(slots=True, kw_only=True, eq=False)
class Turn:
    """
    One request of a client, and everything said before it.

    ```python
    @chat.agent
    async def answer(turn: chat.Turn):
        async for chunk in chat.text(ask_model(turn.messages)):
            yield chunk
    ```
    """

    chat_id: str
    number: int
    """Counts from 1 within the run; 0 for an action before the first turn."""
    trigger: str
    """`submit-message`, `regenerate-message` or `action`."""
    message: UIMessage | None
    """The user's message; None for a regeneration or an action."""
    messages: list[UIMessage]
    """Everything said in this run so far, this message included: UI messages, oldest first."""
    metadata: Any = None
    """What the client sent along with the request."""
    action: Any = None
    """What an action is about."""
    message_id: str | None = None
    """The message that is to be answered anew, where a client names it."""
    continuation: bool = False
    """An earlier run has served this chat: `messages` begins with this run."""
    previous_run_id: str | None = None
    stop: StopSignal = field(default_factory=StopSignal)
    """Set once the client asks to stop this turn."""
    response_id: str = ""
    """The id of the answer's message, unless the handler's `start` chunk names another."""
    response: UIMessage | None = None
    """The answer as far as UI-message chunks tell it; there in `on_turn_complete`."""
    error: Exception | None = None
    """What the turn failed of; there in `on_turn_complete`."""
    last_event_id: str | None = None
    """The number of the record that ended the turn; there in `on_turn_complete`."""

    @property
    def session(self) -> SessionHandle:
        """The chat's session, for its side channels and whatever `chat` does not offer."""
        return SessionHandle(self.chat_id)

    @property
    def stopped(self) -> bool:
        """Say whether the client has stopped this turn."""
        return self.stop.is_set()

    @property
    def text(self) -> str:
        """The text of the user's message, its parts joined; empty without one."""
        parts = (self.message or {}).get("parts", [])

        return "".join(
            part["text"]
            for part in parts
            if isinstance(part, dict)
            and part.get("type") == "text"
            and isinstance(part.get("text"), str)
        )
