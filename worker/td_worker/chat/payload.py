"""What a chat client sends: the payload of an agent's run, and the records on a session's `in`."""

from typing import Any, Final, Literal

import msgspec

__all__ = [
    "ChatPayload",
    "InputRecord",
    "Trigger",
    "UIMessage",
    "parse_input",
    "parse_payload",
]

UIMessage = dict[str, Any]
"""A message as the AI SDK has it: `{"id", "role", "parts": [...], "metadata"?}`."""

Trigger = Literal[
    "submit-message",
    "regenerate-message",
    "preload",
    "close",
    "action",
    "handover-prepare",
]
"""Why a payload was sent, in the official SDK's words."""


class ChatPayload(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One request of a chat client, and what a run of an agent starts with.

    ```python
    request = (await chat.messages.once(timeout=5)).unwrap()
    print(request.trigger, request.message, request.metadata)
    ```

    Unknown keys are kept out: a client may send more than this runtime knows of.
    """

    chat_id: str = ""
    trigger: str = ""
    """One of `Trigger`; empty when the control plane continues a session."""
    message: UIMessage | None = None
    message_id: str | None = None
    metadata: Any = None
    action: Any = None
    action_source: str | None = None
    continuation: bool = False
    previous_run_id: str | None = None
    idle_timeout_in_seconds: float | None = None
    session_id: str | None = None

    @property
    def asks_for_turn(self) -> bool:
        """Say whether it is something to answer, and not only a start or an end."""
        if self.trigger in ("regenerate-message", "action"):
            return True

        return self.message is not None and self.trigger in ("submit-message", "")


class InputRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One record of a session's `in`, understood."""

    kind: str
    """`message`, `stop`, or a word of the official SDK that this runtime has no use for."""
    payload: ChatPayload | None = None
    """What a `message` carries; None when that cannot be understood."""
    text: str | None = None
    """What a `stop` says."""
    problem: str | None = None
    """Why the record cannot be understood, in one sentence."""


_UNKNOWN: Final = "unknown"


def parse_payload(value: Any) -> ChatPayload:
    """
    Return `value`, plain data, as a payload; a key that is null counts as absent.

    Raises:
        ValueError: It is none; the message names the key that is wrong.
    """
    if isinstance(value, dict):
        value = {key: fact for key, fact in value.items() if fact is not None}
    try:
        payload = msgspec.convert(value, ChatPayload)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    if payload.message is not None:
        _check_parts(payload.message)

    return payload


def _check_parts(message: UIMessage) -> None:
    """Refuse parts that nobody can go through: they would end a run, and each run after it."""
    parts = message.get("parts", [])
    if not isinstance(parts, list):
        raise ValueError(f"expected an array, got {type(parts).__name__} - at `$.message.parts`")
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(part.get("toolCallId", ""), str):
            raise ValueError(
                "expected an object whose toolCallId, if there, is text - at "
                f"`$.message.parts[{number}]`"
            )


def parse_input(data: Any) -> InputRecord:
    """Return what a record of `in` means; never raises, for anybody may write there."""
    if isinstance(data, str):
        # The control plane's append stores the body it got as text.
        try:
            data = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return InputRecord(kind=_UNKNOWN, problem="it is text and not JSON")
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        return InputRecord(kind=_UNKNOWN, problem="it is no object with a `kind`")
    if data["kind"] != "message":
        text = data.get("message")
        return InputRecord(kind=data["kind"], text=text if isinstance(text, str) else None)
    try:
        return InputRecord(kind="message", payload=parse_payload(data.get("payload")))
    except ValueError as error:
        return InputRecord(kind="message", problem=str(error))
