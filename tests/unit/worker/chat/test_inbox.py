"""Which message is next, and which cursor a turn-complete carries."""

from __future__ import annotations

from typing import Any

import pytest

from td_worker.chat.inbox import Inbox
from td_worker.chat.payload import InputRecord, parse_input


def _message(text: str) -> InputRecord:
    return parse_input(
        {"kind": "message", "payload": {"trigger": "submit-message", "chatId": text}}
    )


STOP = InputRecord(kind="stop")


def _taken(inbox: Inbox) -> str | None:
    pending = inbox.take()

    return None if pending is None else pending.payload.chat_id


def _ends(inbox: Inbox) -> list[int | None]:
    return [inbox.cursor, inbox.consumed]


def test_messages_are_taken_in_order():
    """Each message is handed out once, oldest first, then none."""
    inbox = Inbox()
    for seq, text in enumerate("abc"):
        assert not inbox.receive(seq, _message(text), in_turn=False)

    assert [_taken(inbox) for _ in range(4)] == ["a", "b", "c", None]


def test_the_cursor_stays_below_what_waits():
    """The cursor names the last record before the first message that waits, whatever came after."""
    inbox = Inbox()
    assert _ends(inbox) == [None, None]
    inbox.receive(0, _message("a"), in_turn=False)
    assert _ends(inbox) == [None, None]
    inbox.take()
    inbox.receive(1, _message("b"), in_turn=True)
    assert inbox.receive(2, STOP, in_turn=True)

    assert _ends(inbox) == [0, 2]
    inbox.take()
    assert _ends(inbox) == [2, 2]


def test_a_run_goes_on_behind_the_cursor():
    """What an earlier run has dealt with is neither answered nor applied a second time."""
    inbox = Inbox()
    inbox.resume(resume_from=4, applied_through=6)
    inbox.receive(4, _message("old"), in_turn=False)
    inbox.receive(5, _message("new"), in_turn=False)

    assert not inbox.receive(6, STOP, in_turn=True)
    assert inbox.receive(7, STOP, in_turn=True)
    assert [_taken(inbox), _taken(inbox)] == ["new", None]


def test_a_stop_before_its_turn_has_begun_counts():
    """A stop right behind a message that still waits stops that one, and none that follows."""
    inbox = Inbox()
    inbox.receive(0, _message("a"), in_turn=False)
    inbox.receive(1, STOP, in_turn=False)
    inbox.receive(2, _message("b"), in_turn=False)

    first, second = inbox.take(), inbox.take()
    assert first is not None
    assert second is not None
    assert (first.stopped, second.stopped) == (True, False)


def test_a_stop_with_nothing_to_stop_is_spent():
    """A stop between turns stops nothing that comes after it."""
    inbox = Inbox()
    assert not inbox.receive(0, STOP, in_turn=False)
    inbox.receive(1, _message("a"), in_turn=False)

    pending = inbox.take()
    assert pending is not None
    assert not pending.stopped


def test_records_are_understood_as_text_too():
    """A record that the control plane has stored as text means the same."""
    record = parse_input('{"kind": "message", "payload": {"chatId": "c", "trigger": "close"}}')

    assert record.payload is not None
    assert record.payload.trigger == "close"


def test_what_cannot_be_understood_says_why():
    """Nonsense never raises; a message that is nonsense names the key that is wrong."""
    assert parse_input("no json").problem is not None
    assert parse_input(7).kind == "unknown"
    problem = parse_input({"kind": "message", "payload": {"chatId": 7}}).problem
    assert problem is not None
    assert "chatId" in problem


@pytest.mark.parametrize("text", ["[" * 100_000, '"\ud800'])
def test_text_that_cannot_be_read_is_a_problem_and_no_error(text: str):
    """Text that is nested too deep, or no Unicode, does not end the run that reads it."""
    assert parse_input(text).problem is not None


@pytest.mark.parametrize("parts", [7, None, ["text"], [{"type": "tool-a", "toolCallId": []}]])
def test_a_message_whose_parts_are_none_is_a_problem(parts: Any):
    """Parts that nobody can go through fail their turn, and never the runs that read them."""
    message = {"id": "m", "role": "assistant", "parts": parts}
    record = parse_input({"kind": "message", "payload": {"message": message}})

    assert record.kind == "message"
    assert record.problem is not None
    assert "parts" in record.problem
