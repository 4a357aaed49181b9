"""The warning that a chat agent uses its run's streams."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from td_worker import streams
from td_worker.context import AttemptInfo, Execution, RunInfo, TaskInfo, executing
from td_worker.errors import NotInTaskError, StreamKeyError
from td_worker.streams import blocking

defined = streams.define("k")
defined_blocking = blocking.define("k")

BAD_TARGET = "no/run"
"""Makes every call fail after the check: nothing needs a stream client."""

CALLS: dict[str, tuple[str, Any]] = {
    "pipe": ("pipe", lambda: streams.pipe([1], target=BAD_TARGET)),
    "writer": ("writer", lambda: streams.writer(target=BAD_TARGET)),
    "append": ("append", lambda: asyncio.run(streams.append(1, target=BAD_TARGET))),
    "read": ("read", lambda: streams.read(BAD_TARGET)),
    "define().pipe": ("pipe", lambda: defined.pipe([1], target=BAD_TARGET)),
    "define().writer": ("writer", lambda: defined.writer(target=BAD_TARGET)),
    "define().append": ("pipe", lambda: asyncio.run(defined.append(1, target=BAD_TARGET))),
    "define().read": ("read", lambda: defined.read(BAD_TARGET)),
    "sync pipe": ("pipe", lambda: blocking.pipe([1], target=BAD_TARGET)),
    "sync writer": ("writer", lambda: blocking.writer(target=BAD_TARGET)),
    "sync append": ("append", lambda: blocking.append(1, target=BAD_TARGET)),
    "sync read": ("read", lambda: blocking.read(BAD_TARGET)),
    "sync define().append": ("pipe", lambda: defined_blocking.append(1, target=BAD_TARGET)),
}


@contextmanager
def running(*, in_chat_agent: bool, attempt: int = 1) -> Iterator[Execution]:
    """Let the block be the code of a run, a chat agent's or an ordinary one."""
    execution = Execution(
        run=RunInfo(id="run_1"),
        attempt=AttemptInfo(number=attempt),
        task=TaskInfo(id="t"),
        streams=cast("Any", SimpleNamespace(open=None)),
        in_chat_agent=in_chat_agent,
    )
    with executing(execution):
        yield execution


def call_all() -> list[str]:
    """Make every call; return the methods that a warning named."""
    with capture_logs() as logs:
        for _, call in CALLS.values():
            with pytest.raises(StreamKeyError):
                call()

    return [line["method"] for line in logs if line["event"] == "stream.misdirected"]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.conformance("GW6")
def test_each_call_warns_though_it_fails(name):
    """The warning names the method as upstream does, and comes before the target is resolved."""
    method, call = CALLS[name]
    with running(in_chat_agent=True), capture_logs() as logs, pytest.raises(StreamKeyError):
        call()

    (line,) = [line for line in logs if line["event"] == "stream.misdirected"]
    assert line["method"] == f"streams.{method}"
    assert line["log_level"] == "warning"
    assert f"streams.{method}() was called in a chat.agent run" in line["advice"]
    assert "chat.response.write()" in line["advice"]
    assert "chat.stream" in line["advice"]
    assert "https://trigger.dev/docs/ai-chat/patterns/large-payloads" in line["advice"]
    assert "\n" not in line["advice"]


@pytest.mark.conformance("GW1", "GW4")
def test_one_warning_an_attempt_whatever_is_called():
    """All calls of an attempt warn once, of the first; the next attempt warns again."""
    with running(in_chat_agent=True):
        assert call_all() == ["streams.pipe"]
        assert call_all() == []
    with running(in_chat_agent=True, attempt=2):
        assert call_all() == ["streams.pipe"]


def test_a_copy_of_an_execution_warns_no_second_time():
    """An execution that serves a chat is the same attempt as before."""
    with running(in_chat_agent=False) as execution:
        with executing(execution.serving_chat()):
            assert call_all() == ["streams.pipe"]
        with executing(execution.serving_chat()):
            assert call_all() == []


@pytest.mark.conformance("GW2")
def test_an_ordinary_task_never_warns():
    """Run streams are what ordinary tasks, children of an agent's run too, are to use."""
    with running(in_chat_agent=False):
        assert call_all() == []


@pytest.mark.conformance("GW5")
def test_an_append_of_a_defined_stream_counts_as_a_pipe():
    """The text says `pipe`, as upstream's does."""
    with running(in_chat_agent=True), capture_logs() as logs, pytest.raises(StreamKeyError):
        CALLS["define().append"][1]()

    assert [line["method"] for line in logs] == ["streams.pipe"]


def test_outside_a_task_nothing_warns():
    """Without a run there is no agent: only the error."""
    with capture_logs() as logs, pytest.raises(NotInTaskError):
        streams.writer()

    assert logs == []
