"""Assistant messages rebuilt from UI-message chunks."""

from __future__ import annotations

from typing import Any

import pytest

from td_worker.chat.accumulator import MessageAccumulator
from td_worker.chat.history import put_message, submit_message, through, without_trailing_answer


def _message(*chunks: dict[str, Any], complete: bool = True) -> Any:
    accumulator = MessageAccumulator("m1")
    for chunk in chunks:
        accumulator.add(chunk)

    return accumulator.message(complete=complete)


def test_text_is_put_together_by_its_id():
    """Deltas of two texts under way at once end up in their own parts."""
    message = _message(
        {"type": "start", "messageId": "m2", "messageMetadata": {"a": {"b": 1}}},
        {"type": "text-start", "id": "1"},
        {"type": "reasoning-start", "id": "1"},
        {"type": "text-delta", "id": "1", "delta": "Hel"},
        {"type": "reasoning-delta", "id": "1", "delta": "hm"},
        {"type": "text-delta", "id": "1", "delta": "lo"},
        {"type": "text-end", "id": "1"},
        {"type": "finish", "messageMetadata": {"a": {"c": 2}}},
    )

    assert message == {
        "id": "m2",
        "role": "assistant",
        "metadata": {"a": {"b": 1, "c": 2}},
        "parts": [
            {"type": "text", "text": "Hello", "state": "done"},
            {"type": "reasoning", "text": "hm", "state": "done"},
        ],
    }


def test_a_tool_call_goes_through_its_states():
    """A tool's input and output land in one part, named after the tool."""
    message = _message(
        {"type": "start-step"},
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "clock"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '{"z":'},
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "clock", "input": {"z": 1}},
        {"type": "tool-output-available", "toolCallId": "c", "output": 5},
    )

    part = {"type": "tool-clock", "toolCallId": "c", "state": "output-available"}
    assert message["parts"] == [{"type": "step-start"}, part | {"input": {"z": 1}, "output": 5}]


def test_a_message_cut_short_keeps_text_and_drops_open_calls():
    """What a model would refuse as history, a call without result, is gone; text stays."""
    call = {"type": "tool-input-available", "toolCallId": "c", "toolName": "t", "input": 1}
    text = {"type": "text-delta", "id": "1", "delta": "half"}

    assert len(_message(text, call)["parts"]) == 2
    assert _message(text, call, complete=False)["parts"] == [
        {"type": "text", "text": "half", "state": "done"}
    ]
    assert _message(call, complete=False) is None


def test_data_parts_replace_each_other_by_id():
    """A data part with a known id is brought up to date; a transient one is no part at all."""
    message = _message(
        {"type": "data-p", "id": "1", "data": 1},
        {"type": "data-p", "id": "1", "data": 2},
        {"type": "data-p", "id": "2", "data": 3, "transient": True},
    )

    assert message["parts"] == [{"type": "data-p", "id": "1", "data": 2}]


@pytest.mark.parametrize(
    "chunk",
    [
        {"type": "response.output_text.delta", "delta": "x"},
        {"type": 7},
        {"no": "type"},
        {"type": "tool-output-available", "toolCallId": "unknown"},
    ],
)
def test_other_chunks_change_nothing(chunk: dict[str, Any]):
    """What is no UI-message chunk, or belongs to nothing, makes no message."""
    assert _message(chunk) is None


def test_files_and_sources_are_parts_as_they_come():
    """A file or a source is one part, which the chunk's later fate does not change."""
    chunk = {"type": "file", "url": "data:,x", "mediaType": "text/plain"}
    message = _message(chunk, {"type": "source-url", "sourceId": "s", "url": "u"})

    assert message["parts"] == [chunk, {"type": "source-url", "sourceId": "s", "url": "u"}]
    assert message["parts"][0] is not chunk


def test_an_edited_message_drops_what_followed():
    """A user's message of a known id is an edit: what was said after it is gone."""
    said = [{"id": "1", "role": "user"}, {"id": "2", "role": "assistant"}]

    assert submit_message(said, {"id": "1", "role": "user", "parts": []}) == [
        {"id": "1", "role": "user", "parts": []}
    ]
    assert len(said) == 2


def test_a_tool_result_of_the_client_lands_in_its_call():
    """A slim assistant message resolves the call of the known one and keeps its text."""
    call = {"type": "tool-t", "toolCallId": "c", "state": "input-available", "input": 1}
    text = {"type": "text", "text": "hi"}
    known = {"id": "2", "role": "assistant", "parts": [text, call]}
    result = {"type": "tool-t", "toolCallId": "c", "state": "output-available", "output": 9}

    (merged,) = submit_message([known], {"id": "2", "role": "assistant", "parts": [result]})

    assert merged["parts"] == [text, call | result]
    assert known["parts"][1] is call


def test_a_regeneration_begins_at_the_last_question():
    """The trailing answer is dropped; with an id, everything behind that message is as well."""
    said = [{"id": str(n), "role": "user" if n % 2 else "assistant"} for n in range(1, 5)]

    assert [m["id"] for m in without_trailing_answer(said)] == ["1", "2", "3"]
    assert [m["id"] for m in without_trailing_answer(through(said, "2"))] == ["1"]
    assert through(said, "unknown") == said


def test_an_answer_takes_the_place_of_its_id():
    """An answer whose id is known replaces that message; any other is appended."""
    said = [{"id": "1", "role": "user"}, {"id": "2", "role": "assistant"}]

    assert put_message(said, {"id": "2", "parts": []})[1] == {"id": "2", "parts": []}
    assert len(put_message(said, {"id": "3"})) == 3
