"""The official SDK's chat transport, as a web page has it, talks with a Python agent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.interop.node import HERE, Node
from tests.runtime_process import RuntimeProcess

pytestmark = pytest.mark.interop

PATIENCE_S = 90
TASKS = """
import asyncio

from td_worker import chat


async def _words(turn):
    for word in ["You ", "said ", turn.text]:
        yield word
    if turn.text == "go on":
        await asyncio.Event().wait()


@chat.agent
async def agent(turn):
    yield {"type": "start"}
    yield {"type": "data-progress", "id": "p", "data": 1}
    yield {"type": "tool-input-start", "toolCallId": "c", "toolName": "clock"}
    yield {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '{"zone":'}
    yield {"type": "tool-input-available", "toolCallId": "c", "toolName": "clock", "input": {}}
    yield {"type": "tool-output-available", "toolCallId": "c", "output": "noon"}
    async for chunk in chat.text(_words(turn)):
        yield chunk
    yield {"type": "data-progress", "id": "p", "data": 2}
    if turn.text == "bye":
        yield {"type": "data-history", "data": turn.messages, "transient": True}
"""


def test_a_page_holds_a_conversation_with_an_agent(data_dir: Path, node: Node) -> None:
    """Three turns, one stopped in mid-answer: one run answers, and knows what the page knows."""
    asked: list[dict[str, Any]] = [
        {"ask": "hello"},
        {"ask": "go on", "stopAfter": 3},
        {"ask": "bye"},
    ]
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1, drain_timeout="1s") as runtime:
        *turns, last = _converse(runtime, node, "agent", "page-1", asked)

    assert _texts(turns) == ["You said hello", "You said go on", "You said bye"]
    assert all(turn["token"] for turn in turns)
    (history,) = (c["data"] for c in turns[2]["chunks"] if c["type"] == "data-history")
    assert [message["role"] for message in history] == ["user", "assistant"] * 2 + ["user"]
    assert history[1] == turns[0]["message"]
    assert last["events"].count("turn-completed") == 2


def test_a_page_sees_an_errored_turn(data_dir: Path, node: Node) -> None:
    """A turn that fails arrives as an error chunk, and the next is fine."""
    tasks = (
        "from td_worker import chat\n\n"
        "@chat.agent\nasync def agent(turn):\n"
        "    if turn.text == 'fail':\n        raise ValueError('no model today')\n"
        "    async for chunk in chat.text([turn.text]):\n        yield chunk\n"
    )
    with RuntimeProcess(data_dir, tasks=tasks, workers=1, drain_timeout="1s") as runtime:
        failed, fine, _ = _converse(
            runtime, node, "agent", "page-2", [{"ask": "fail"}, {"ask": "fine"}]
        )

    assert failed["chunks"] == [{"type": "error", "errorText": "no model today"}]
    assert _texts([fine]) == ["fine"]


def _converse(
    runtime: RuntimeProcess, node: Node, task: str, chat_id: str, asked: list[dict[str, Any]]
) -> list[Any]:
    """Return what the page printed: one object a turn, then the transport's events."""
    environment = node.environment(
        TRIGGER_API_URL=runtime.url, TRIGGER_SECRET_KEY=runtime.secret_key, OTEL_SDK_DISABLED="true"
    )
    done = subprocess.run(
        [node.executable, "--import", "./only_loopback.mjs", "chat.mjs", task, chat_id],
        cwd=HERE,
        env=environment,
        input="\n".join(json.dumps(one) for one in asked),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    return [json.loads(line) for line in done.stdout.split("\n") if line]


def _texts(turns: list[Any]) -> list[str]:
    return [
        "".join(chunk["delta"] for chunk in turn["chunks"] if chunk["type"] == "text-delta")
        for turn in turns
    ]
