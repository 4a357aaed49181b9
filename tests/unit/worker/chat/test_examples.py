"""Every public name of `chat` has an example in its docstring, and the example runs."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from td_worker import chat
from td_worker.sync import chat as sync_chat
from td_worker.testing import FakePlatform, run_platform

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NO_CODE = {"UIMessage"}
"""A name for a type: there is nothing to call."""


def _documented() -> dict[str, str]:
    """Return the docstring of each public name: functions, classes, and methods of the objects."""
    found = {"chat": inspect.getdoc(chat) or ""}
    for name in sorted(set(chat.__all__) - NO_CODE):
        value = getattr(chat, name)
        if inspect.isclass(value) or inspect.isfunction(value) or name in {"bind", "text"}:
            found[name] = inspect.getdoc(value) or ""
            continue
        for method, function in inspect.getmembers(type(value), inspect.isfunction):
            if not method.startswith("_"):
                found[f"{name}.{method}"] = inspect.getdoc(function) or ""

    return found


DOCUMENTED = _documented()


class _Model:
    """What `ask_model` stands for: it streams to loops of both kinds."""

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])

    async def __aiter__(self) -> AsyncIterator[str]:
        for token in self:
            yield token


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with run_platform() as platform:
        for number in range(3):
            _send(platform, trigger="submit-message", message=_message(number))
        yield platform


def _message(number: int) -> dict[str, Any]:
    return {"id": f"u{number}", "role": "user", "parts": [{"type": "text", "text": "hi"}]}


def _send(platform: FakePlatform, **payload: Any) -> None:
    platform.sessions.send("chat-17", {"kind": "message", "payload": payload})


@pytest.mark.parametrize("name", DOCUMENTED)
async def test_the_example_of_a_public_name_runs(platform: FakePlatform, name: str):
    """The docstring has an example that does what it says without an error."""
    blocks = BLOCK.findall(DOCUMENTED[name])
    assert blocks, f"chat.{name} has no example"
    for block in blocks:
        with platform.execution(task_id="example"):
            await _run(block, platform)


async def _run(block: str, platform: FakePlatform) -> None:
    names: dict[str, Any] = {"chat": chat, "ask_model": lambda _messages: _Model()}
    if not re.search(r"^(@|async def|def|from)", block, re.MULTILINE):
        block = f"async def example(payload):\n{textwrap.indent(block, '    ')}"
        exec(block, names)
        async with chat.bind("chat-17"):
            await names["example"](None)
        return
    exec(block, names)
    if (agent := _agent_in(names)) is None:
        (task,) = [v for v in names.values() if inspect.iscoroutinefunction(v)]
        await task({"chatId": "chat-17"})
        return
    _send(platform, trigger="close")
    output = await agent({"chatId": "chat-17", "trigger": "preload"})
    assert output["turns"] >= 1
    chunks = platform.sessions.chunks("chat-17")
    assert not [c for c in chunks if isinstance(c, dict) and c.get("type") == "error"], chunks


def _agent_in(names: dict[str, Any]) -> chat.Agent | None:
    return next((value for value in names.values() if isinstance(value, chat.Agent)), None)


def test_the_twin_for_plain_code_has_the_same_names():
    """Whatever `chat` has, `td_worker.sync.chat` has, but for what belongs to the async half."""
    assert set(chat.__all__) - set(sync_chat.__all__) == {"Observing", "WriteHandle"}
    assert set(sync_chat.__all__) <= set(chat.__all__)
    for name in sync_chat.__all__:
        assert name == "UIMessage" or inspect.getdoc(getattr(sync_chat, name)), name
