"""What is kept of an answer, whole or cut short, and what a client's requests look like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest

from td_worker import chat
from td_worker.chat.payload import Trigger, parse_payload
from td_worker.testing import FakePlatform, run_platform

CALL = {"type": "tool-input-available", "toolCallId": "c", "toolName": "clock", "input": {}}


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with run_platform() as platform:
        yield platform


async def converse(platform: FakePlatform, agent: chat.Agent, *texts: str) -> None:
    """Have the agent answer each text."""
    for text in texts:
        message = {"id": text, "role": "user", "parts": [{"type": "text", "text": text}]}
        send(platform, {"trigger": "submit-message", "message": message})
    send(platform, {"trigger": "close"})
    with platform.execution(task_id="agent"):
        await agent({"chatId": "c", "trigger": "preload"})


def send(platform: FakePlatform, payload: dict[str, Any]) -> None:
    platform.sessions.send("c", {"kind": "message", "payload": payload})


def parts(message: chat.UIMessage | None) -> list[Any]:
    return [part.get("text", part["type"]) for part in (message or {"parts": []})["parts"]]


@pytest.mark.conformance("PC1", "PC2", "PC3")
async def test_a_turn_says_what_became_of_its_answer(platform: FakePlatform):
    """A whole answer, one that failed and one that was stopped are told apart, with their text."""
    told: list[Any] = []

    def note(turn: chat.Turn) -> None:
        told.append((parts(turn.response), turn.error is not None, turn.stopped))

    @chat.agent(on_turn_complete=note)
    async def agent(turn: chat.Turn) -> Any:
        yield {"type": "text-delta", "id": "t", "delta": turn.text}
        if turn.text == "fails":
            raise ValueError
        if turn.text == "stops":
            turn.stop.set()
        yield {"type": "text-delta", "id": "t", "delta": "!"}

    await converse(platform, agent, "whole", "fails", "stops")

    assert told[0] == (["whole!"], False, False)
    assert told[1] == (["fails"], True, False)
    assert told[2][1:] == (False, True)
    assert told[2][0][0].startswith("stops")


@pytest.mark.conformance("SE3")
async def test_a_failing_hook_takes_no_answer_back(platform: FakePlatform):
    """What was answered is in the next turn's history, whatever `on_turn_complete` raises."""
    histories: list[Any] = []

    def refuse(turn: chat.Turn) -> None:
        raise ValueError(turn.text)

    @chat.agent(on_turn_complete=refuse)
    async def agent(turn: chat.Turn) -> Any:
        histories.append([parts(message) for message in turn.messages])
        yield {"type": "text-delta", "id": "t", "delta": f"to {turn.text}"}

    await converse(platform, agent, "a", "b")

    assert histories[1] == [["a"], ["to a"], ["b"]]


@pytest.mark.conformance("SE5", "SE6")
async def test_a_partial_answer_is_fit_for_a_model(platform: FakePlatform):
    """Of an answer that failed the text and the data parts stay; a call without result goes."""
    histories: list[Any] = []

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        histories.append([parts(message) for message in turn.messages])
        yield {"type": "text-delta", "id": "t", "delta": "half"}
        chat.response.write({"type": "data-note", "data": 1})
        yield CALL
        if turn.text == "a":
            raise ValueError

    await converse(platform, agent, "a", "b")

    assert histories[1] == [["a"], ["half", "data-note"], ["b"]]


@pytest.mark.conformance("wire-shape")
@pytest.mark.parametrize("trigger", get_args(Trigger))
def test_every_trigger_makes_the_round_trip(trigger: str):
    """What a client sends is the same after it was understood and written as JSON again."""
    sent = {
        "chatId": "c",
        "trigger": trigger,
        "message": {"id": "u", "role": "user", "parts": [{"type": "text", "text": "\u00fc"}]},
        "messageId": "a",
        "metadata": {"userId": 1},
        "action": {"type": "undo"},
        "continuation": True,
        "previousRunId": "run_1",
        "sessionId": "session_1",
    }

    written = msgspec.json.encode(parse_payload(json.loads(json.dumps(sent))))

    assert json.loads(written) == sent
