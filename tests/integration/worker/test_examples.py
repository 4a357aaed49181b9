"""The examples in the docstrings of what task authors import run as they stand.

Those of `streams` are with the tests of streams, those of async `chat` with the tests of chat.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import Future
from types import ModuleType
from typing import Any

import pytest

from td_worker import (
    blocking_inputs,
    blocking_sessions,
    blocking_tasks,
    chat,
    context,
    inputs,
    sessions,
    streams,
    sync,
    tasks,
)
from td_worker.chat import Agent
from td_worker.chat import blocking as blocking_chat
from td_worker.context import Execution, Unsupervised
from td_worker.messages import ChildOutcome, TriggerItem
from td_worker.testing import FakePlatform
from tests.docstrings import Example, find_examples, find_unexampled, run_example

RUN = "run_1"
PAYLOAD = {"sessionId": "order-17"}
CHAT = "chat-17"
MODULES = [
    blocking_chat,
    blocking_inputs,
    blocking_sessions,
    blocking_tasks,
    inputs,
    sessions,
    tasks,
]


class Children(Unsupervised):
    """A supervisor whose runs have all completed."""

    def trigger(self, run_id: str, attempt: int, items: list[TriggerItem]) -> Future[list[str]]:
        return done([f"run_{n}" for n in range(len(items))])

    def trigger_and_wait(
        self, run_id: str, attempt: int, items: list[TriggerItem]
    ) -> Future[list[ChildOutcome]]:
        return done(
            [
                ChildOutcome(id=f"run_{n}", task=item.task, status="COMPLETED", output=b"1")
                for n, item in enumerate(items)
            ]
        )


def done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


@pytest.fixture
def execution(platform: FakePlatform) -> Iterator[Execution]:
    """The test is the code of a run that may trigger others."""
    with platform.execution(run_id=RUN, messenger=Children()) as execution:
        yield execution


@pytest.fixture(autouse=True)
def said(platform: FakePlatform, execution: Execution) -> None:
    """A session and an input stream with something said in them: the examples read it."""
    execution.init["database"] = "a connection"
    platform.sessions.add("order-17")
    for number in range(3):
        platform.sessions.send("order-17", {"text": f"message {number}"})
        platform.sessions.send_input(RUN, "approvals", True)
        platform.sessions.send(CHAT, {"kind": "message", "payload": message(number)})


def message(number: int) -> dict[str, Any]:
    parts = [{"type": "text", "text": "hi"}]
    return {
        "trigger": "submit-message",
        "message": {"id": f"u{number}", "role": "user", "parts": parts},
    }


def asynchronous(*modules: ModuleType) -> list[Example]:
    return [example for module in modules for example in find_examples(module)]


def plain(module: ModuleType, twin: ModuleType) -> list[Example]:
    return find_examples(module, beside=twin)


@pytest.mark.parametrize("example", asynchronous(sessions, inputs, tasks), ids=str)
def test_an_async_example_runs(example: Example):
    """Every example is a task's code, and imports nothing but what it shows."""
    names = {"sessions": sessions, "streams": streams, "tasks": tasks}
    run_example(example, {**names, "payload": PAYLOAD, "run_id": RUN}, on_loop=True)


@pytest.mark.parametrize(
    "example",
    [
        *plain(blocking_sessions, sessions),
        *plain(blocking_inputs, inputs),
        *plain(blocking_tasks, tasks),
    ],
    ids=str,
)
def test_a_plain_example_runs(example: Example):
    """The twins' examples run in a plain thread."""
    names = {"sessions": sync.sessions, "streams": sync.streams, "tasks": sync.tasks}
    run_example(example, {**names, "payload": PAYLOAD, "run_id": RUN})


@pytest.mark.parametrize(
    "example",
    plain(blocking_chat, chat),
    ids=str,
)
def test_a_plain_example_of_chat_runs(platform: FakePlatform, example: Example):
    """An agent of an example answers; any other example is code that serves a chat."""
    names: dict[str, Any] = {"chat": blocking_chat}
    if "def " not in example.code and "chat.bind" not in example.code:
        with blocking_chat.bind(CHAT):
            run_example(example, names)
        return
    run_example(example, names)
    if agent := next((one for one in names.values() if isinstance(one, Agent)), None):
        platform.sessions.send(CHAT, {"kind": "message", "payload": {"trigger": "close"}})
        output = asyncio.run(agent({"chatId": CHAT, "trigger": "preload"}))
        assert output["turns"] == 3


@pytest.mark.parametrize("example", find_examples(context, names=["is_cancelled"]), ids=str)
def test_an_example_of_context_runs(example: Example):
    """What a task asks of itself has an answer."""
    names = run_example(example, {"context": context, "session": "a session"})

    for function in filter(inspect.isfunction, names.values()):
        function(["a row"])


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_each_public_name_has_an_example(module: ModuleType):
    """A name without one would be described and never shown."""
    assert find_unexampled(module) == []
