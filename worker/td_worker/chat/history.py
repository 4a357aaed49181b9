"""What was said so far: UI messages, oldest first. Pure; nothing that is given is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from td_worker.chat.payload import UIMessage

__all__ = ["put_message", "submit_message", "through", "without_trailing_answer"]

_RESOLVED: Final = frozenset(
    {"output-available", "output-error", "output-denied", "approval-responded"}
)


def put_message(messages: Sequence[UIMessage], message: UIMessage) -> list[UIMessage]:
    """Return `messages` with `message` in the place of the one with its id, else at the end."""
    place = _place(messages, message.get("id"))
    if place is None:
        return [*messages, message]

    return [*messages[:place], message, *messages[place + 1 :]]


def submit_message(messages: Sequence[UIMessage], message: UIMessage) -> list[UIMessage]:
    """
    Return `messages` with what a client has sent.

    A message of the user's with a known id is that one, edited: what was said after it is gone. One
    of the assistant's is the answer to a tool call, and clients send it without the rest: its
    resolved tool parts are put into the message that is known.
    """
    place = _place(messages, message.get("id"))
    if place is None:
        return [*messages, message]
    if message.get("role") != "assistant":
        return [*messages[:place], message]

    return put_message(messages, _resolved(messages[place], message))


def through(messages: Sequence[UIMessage], message_id: str | None) -> list[UIMessage]:
    """Return `messages` up to and with that one; all of them when there is no such one."""
    place = _place(messages, message_id)

    return list(messages if place is None else messages[: place + 1])


def without_trailing_answer(messages: Sequence[UIMessage]) -> list[UIMessage]:
    """Return `messages` up to the last one that is not the assistant's: what to answer anew."""
    kept = list(messages)
    while kept and kept[-1].get("role") == "assistant":
        kept.pop()

    return kept


def _place(messages: Sequence[UIMessage], message_id: Any) -> int | None:
    if not message_id:
        return None
    places = (n for n, message in enumerate(messages) if message.get("id") == message_id)

    return next(places, None)


def _resolved(message: UIMessage, answer: UIMessage) -> UIMessage:
    answers = {
        part.get("toolCallId"): part
        for part in answer.get("parts", [])
        if isinstance(part, dict) and part.get("state") in _RESOLVED
    }
    if not answers:
        return answer
    parts = [
        part | answers[part["toolCallId"]] if part.get("toolCallId") in answers else part
        for part in message.get("parts", [])
    ]

    return message | {"parts": parts}
