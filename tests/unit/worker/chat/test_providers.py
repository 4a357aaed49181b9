"""The how-to's agents pass on recorded streams of model providers as they come.

The events are in the shapes that the providers document; their clients are stood for by objects
that behave alike: models with `model_dump`, and plain dataclasses.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from td_worker.encoding import encode_json
from td_worker.testing import FakePlatform, run_platform

HOW_TO = Path(__file__).parents[4] / "docs" / "how-to" / "chat-agent.md"

OPENAI: list[dict[str, Any]] = [
    {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }
    for delta, reason in [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Hel"}, None),
        ({"content": "lo"}, None),
        ({}, "stop"),
    ]
]
ANTHROPIC: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}},
    {"type": "message_stop"},
]


class BaseModel:
    """Behaves as the models of both clients do: knows what was sent, and has the rest as None."""

    def __init__(self, sent: dict[str, Any]) -> None:
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        value = self._sent.get(name)
        if isinstance(value, dict):
            return BaseModel(value)

        return [BaseModel(one) for one in value] if isinstance(value, list) else value

    def model_dump(
        self, *, mode: str, by_alias: bool = False, exclude_unset: bool = False
    ) -> dict[str, Any]:
        unset = {} if exclude_unset else {"never_sent": None}

        return self._sent | unset if mode == "json" else {}


BaseModel.__module__ = "provider._models"


@dataclass
class TextPart:
    content: str
    part_kind: str = "text"


@dataclass
class TextPartDelta:
    content_delta: str
    part_delta_kind: str = "text"


@dataclass
class PartStartEvent:
    index: int
    part: TextPart
    event_kind: str = "part_start"


@dataclass
class PartDeltaEvent:
    index: int
    delta: TextPartDelta
    event_kind: str = "part_delta"


@dataclass
class AgentRunResultEvent:
    result: object = field(default_factory=object)
    event_kind: str = "agent_run_result"


async def _replay(events: list[Any]) -> AsyncIterator[Any]:
    for event in events:
        yield event


class _Calls:
    """Stands for `AsyncOpenAI().chat.completions` and `AsyncAnthropic().messages`."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events

    async def create(self, *, stream: bool, **_: Any) -> AsyncIterator[Any]:
        assert stream
        return _replay([BaseModel(event) for event in self._events])


class _Agent:
    def __init__(self, model: str) -> None:
        self.model = model

    def run_stream_events(self, prompt: str) -> AsyncIterator[Any]:
        return _replay(
            [
                PartStartEvent(0, TextPart("Hel")),
                PartDeltaEvent(0, TextPartDelta("lo")),
                AgentRunResultEvent(),
            ]
        )


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> None:
    openai = SimpleNamespace(completions=_Calls(OPENAI))
    modules: dict[str, dict[str, Any]] = {
        "openai": {"AsyncOpenAI": lambda: SimpleNamespace(chat=openai)},
        "anthropic": {"AsyncAnthropic": lambda: SimpleNamespace(messages=_Calls(ANTHROPIC))},
        "pydantic_ai": {"Agent": _Agent},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with run_platform() as platform:
        yield platform


def _agents() -> list[Any]:
    """Return the `answer` of each code block of the how-to, in order."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", HOW_TO.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    found = []
    for block in blocks:
        names: dict[str, Any] = {"__name__": "agents"}
        exec(compile(block, str(HOW_TO), "exec"), names)
        found.append(names["answer"])

    return found


EXPECTED = {
    0: None,
    1: OPENAI,
    2: ANTHROPIC,
    3: [
        {"index": 0, "part": {"content": "Hel", "part_kind": "text"}, "event_kind": "part_start"},
        {
            "index": 0,
            "delta": {"content_delta": "lo", "part_delta_kind": "text"},
            "event_kind": "part_delta",
        },
    ],
    4: None,
}


@pytest.mark.usefixtures("providers")
@pytest.mark.parametrize("number", EXPECTED)
async def test_an_agent_of_the_how_to_streams(platform: FakePlatform, number: int):
    """The how-to's code runs; a provider's events are read as they were on the wire."""
    message = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
    for payload in (
        {"trigger": "submit-message", "message": message},
        {"trigger": "close"},
    ):
        platform.sessions.send("c", {"kind": "message", "payload": payload})

    with platform.execution(task_id="answer"):
        output = await _agents()[number]({"chatId": "c", "trigger": "preload"})

    chunks = platform.sessions.chunks("c")
    assert output == {"turns": 1, "ended": "close"}
    if EXPECTED[number] is not None:
        assert chunks == EXPECTED[number]
    else:
        text = "".join(chunk.get("delta", "") for chunk in chunks)
        assert text == {0: "You said: hi", 4: "Hello"}[number]


def test_other_models_keep_what_was_not_set():
    """Only events made from what a provider sent lose unset fields; a model of yours does not."""

    class Mine(BaseModel):
        pass

    class Foreign:
        def model_dump(self, *, mode: str) -> dict[str, Any]:
            return {"mode": mode, "kept": None}

    assert encode_json(Mine({"a": 1})) == b'{"a":1}'
    assert encode_json(Foreign()) == b'{"mode":"json","kept":null}'


def test_a_model_class_is_no_value():
    """A class that was meant to be an instance is refused by its name."""
    with pytest.raises(TypeError, match="type"):
        encode_json(BaseModel)
