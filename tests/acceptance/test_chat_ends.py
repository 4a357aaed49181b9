"""How runs of chat agents end and wait: no message is left, none is answered twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.chat import Answer, ChatClient
from tests.runtime_process import RuntimeProcess

TASKS = '''
import asyncio

from td_worker import chat, context, sessions


@chat.agent(max_turns=2)
async def twice(turn):
    async for chunk in chat.text([turn.text, "|", context.run.id]):
        yield chunk


@chat.agent
async def ending(turn):
    chat.end_run()
    async for chunk in chat.text([turn.text, "|", context.run.id]):
        yield chunk


async def _follow(turn):
    """A client that writes when the turn has ended, and its run is about to."""
    number = int(turn.text)
    if number < 5:
        part = {"type": "text", "text": f"{number + 1}"}
        message = {"id": f"f{number}", "role": "user", "parts": [part]}
        payload = {"chatId": turn.chat_id, "trigger": "submit-message", "message": message}
        await sessions.open(turn.chat_id).in_.send({"kind": "message", "payload": payload})


@chat.agent(max_turns=1, on_turn_complete=_follow)
async def followed(turn):
    async for chunk in chat.text([turn.text, "|", context.run.id]):
        yield chunk


@chat.agent(idle_timeout=600)
async def warm(turn):
    async for chunk in chat.text([turn.text, "|", context.run.id]):
        yield chunk


@chat.agent(idle_timeout=0, turn_timeout=1)
async def brief(turn):
    async for chunk in chat.text([turn.text, "|", context.run.id]):
        yield chunk
'''


def _said(answer: Answer) -> tuple[str, str]:
    """Return what an answer repeats, and the run that gave it."""
    text, _, run_id = answer.text.partition("|")

    return text, run_id


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("ends")
    with RuntimeProcess(folder, tasks=TASKS, workers=1, concurrency=1) as running:
        yield running


@pytest.mark.parametrize(("task", "turns"), [("twice", 2), ("ending", 1)])
def test_messages_that_wait_at_the_end_get_another_run(
    runtime: RuntimeProcess, task: str, turns: int
) -> None:
    """What a run leaves at its end is answered by the next, in order, once, without a new call."""
    texts = ["a", "b", "c", "d", "e"]
    with ChatClient(runtime, task, f"left-{task}") as client:
        for text in texts:
            client.send(text)
        said = [_said(client.answer()) for _ in texts]
        client.send("last")
        said.append(_said(client.answer()))

    assert [text for text, _ in said] == [*texts, "last"]
    assert len({run_id for _, run_id in said}) >= len(texts) / turns


def test_message_at_the_very_end_gets_another_run(runtime: RuntimeProcess) -> None:
    """A message that comes after the last look of a run at its messages is answered, and once."""
    with ChatClient(runtime, "followed", "followed") as client:
        client.send("1")
        said = [_said(client.answer()) for _ in range(5)]

    assert [text for text, _ in said] == ["1", "2", "3", "4", "5"]
    assert len({run_id for _, run_id in said}) == 5


def test_run_that_nobody_writes_to_starts_no_other(runtime: RuntimeProcess) -> None:
    """A run that ends with every message answered ends the chain."""
    with ChatClient(runtime, "brief", "brief") as client:
        client.ask("a")
        assert runtime.output(client.run_id) == {"turns": 1, "ended": "turn_timeout"}

    ended = runtime.event("chat.ended", chat_id="brief")
    assert ended["handed_over"] is False
    assert len(runtime.find("run.accepted", task="brief")) == 1


def test_warm_agents_keep_no_place(runtime: RuntimeProcess) -> None:
    """Two chats and more are answered in turn by a worker with one place, each by its one run."""
    clients = [ChatClient(runtime, "warm", f"warm-{n}") for n in range(4)]
    for text in ("a", "b"):
        for client in clients:
            assert _said(client.ask(text)) == (text, client.run_id)
    for client in clients:
        client.__exit__()


@pytest.mark.parametrize("held", ["in the payload", "on `in`"])
def test_drain_takes_a_warm_agent_at_once(tmp_path: Path, held: str) -> None:
    """A drain requeues an agent that waits; its next attempt answers what is new, and that once."""
    message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "one"}]}
    payload = {"trigger": "submit-message", "message": message} if held == "in the payload" else {}
    options = {"warm": "retry = { max_attempts = 1 }"}
    with RuntimeProcess(
        tmp_path, tasks=TASKS, workers=1, drain_timeout="10m", task_options=options
    ) as runtime:
        with ChatClient(runtime, "warm", "drained", **payload) as client:
            if not payload:
                client.send("one")
            first = client.answer()
            runtime.event("run.waiting", run_id=client.run_id)

        assert runtime.stop() == 0
        runtime.start()

        with ChatClient(runtime, "warm", "drained") as again:
            again.cursor = client.cursor
            second = again.ask("two")
            assert again.run_id == client.run_id

    assert [_said(first), _said(second)] == [("one", client.run_id), ("two", client.run_id)]
