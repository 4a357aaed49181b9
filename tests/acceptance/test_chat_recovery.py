"""What a chat's run does about its own death and about its waits, with a real runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.chat import ChatClient
from tests.runtime_process import RuntimeProcess

TASKS = """
import os
import signal

from td_worker import chat, context


class Hooks:
    async def on_wait(self, wait):
        context.locals.setdefault("seen", []).append(f"waits for {wait.type}")

    async def on_resume(self, wait):
        context.locals["seen"].append("goes on")


@chat.agent(idle_timeout=0)
async def agent(turn):
    attempt = context.attempt.number
    if turn.text == "two" and attempt == 1:
        yield {"type": "text-delta", "id": "t", "delta": "half"}
        await chat.response.write({"type": "data-half"}).wait()
        await chat.messages.once(timeout=60)  # three is there, and in this worker's memory
        os.kill(os.getpid(), signal.SIGKILL)
    yield {"type": "data-seen", "data": list(context.locals.get("seen", []))}
    async for chunk in chat.text([f"{turn.text} in {attempt}"]):
        yield chunk
"""
HOOKS = 'hooks = "tasks:Hooks"\nretry = { max_attempts = 3 }\n'


@pytest.mark.conformance("RBt5")
def test_messages_under_way_are_answered_after_a_death(data_dir: Path) -> None:
    """A worker dies in a turn: its message, and the one behind, get a turn each, and no other."""
    with (
        RuntimeProcess(data_dir, tasks=TASKS, workers=1, task_options={"agent": HOOKS}) as runtime,
        ChatClient(runtime, "agent", "death") as client,
    ):
        first = client.ask("one")
        two, three = client.send("two"), client.send("three")
        second, third = client.answer(two), client.answer(three)

    assert first.text == "one in 1"
    assert second.text.removeprefix("half") == "two in 2"
    assert third.text == "three in 2"


def until_waiting(runtime: RuntimeProcess, times: int) -> None:
    runtime.until(lambda _: len(runtime.find("run.waiting")) >= times, "a wait without a place")


@pytest.mark.conformance("EA20")
def test_hooks_of_the_run_are_called_around_its_waits(data_dir: Path) -> None:
    """`on_wait` and `on_resume` are told of the time a chat's run spends without a place."""
    with (
        RuntimeProcess(data_dir, tasks=TASKS, workers=1, task_options={"agent": HOOKS}) as runtime,
        ChatClient(runtime, "agent", "waits") as client,
    ):
        answers = []
        for number, text in enumerate(["one", "more"], 1):
            until_waiting(runtime, number)
            answers.append(client.ask(text))

    seen = [chunk["data"] for answer in answers for chunk in answer.chunks if "data" in chunk]
    assert seen == [["waits for input", "goes on"], ["waits for input", "goes on"] * 2]
