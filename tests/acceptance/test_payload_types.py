"""Payloads that do not fit a task's type hint are refused at trigger, before there is a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from td_runtime.control import ControlRefusedError
from tests.runtime_process import RuntimeProcess

TASKS = """
from dataclasses import dataclass
from typing import TypedDict
from td_worker import tasks, TriggerRefusedError

@dataclass
class Book:
    title: str
    pages: int = 0

class Point(TypedDict):
    x: float

def read(payload: Book):
    return payload.title

def move(payload: Point):
    return payload["x"]

def anything(payload):
    return payload

async def ask_badly(payload):
    try:
        await tasks.trigger("read", {"pages": 1})
    except TriggerRefusedError as error:
        return str(error)
"""

PYDANTIC = """
from pydantic import BaseModel, Field

class Order(BaseModel):
    lines: list[int]
    count: int = Field(gt=0)

def order(payload: Order):
    return payload.count
"""


def test_a_payload_that_does_not_fit_is_refused(data_dir: Path) -> None:
    """The message names task, key, value and what was expected; nothing of a batch is accepted."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        with pytest.raises(ControlRefusedError) as refused:
            runtime.trigger("read", {"title": 7})
        assert refused.value.what == (
            "task 'read' cannot take this payload: Expected `str`, got `int` - at `$.title`; "
            'got {"title":7}'
        )
        with pytest.raises(ControlRefusedError, match=r"Expected `float`, got `null` - at `\$.x`"):
            runtime.trigger_many("move", [{"x": 1}, {"x": None}])

        assert runtime.find("run.accepted") == []
        assert runtime.output(runtime.trigger("read", {"title": "Emma"})) == "Emma"
        assert runtime.output(runtime.trigger("anything", {"title": 7})) == {"title": 7}
        message = runtime.output(runtime.trigger("ask_badly"))
        assert "Object missing required field `title`" in message


def test_the_process_that_checks_is_replaced(data_dir: Path) -> None:
    """Killed, it is started again at the next trigger; one that was under way may be unchecked."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        os.kill(_checker(runtime), signal.SIGKILL)

        assert _is_refused(runtime) or _is_refused(runtime)


def _checker(runtime: RuntimeProcess) -> int:
    """Return the pid of the youngest child of the supervisor: it is forked after the workers."""
    pid = runtime.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])


def _is_refused(runtime: RuntimeProcess) -> bool:
    try:
        runtime.trigger("read", {"title": 7})
    except ControlRefusedError:
        return True
    return False


def test_pydantic_models(data_dir: Path) -> None:
    """A pydantic hint is decoded by pydantic, at trigger and in the run."""
    pytest.importorskip("pydantic")
    with RuntimeProcess(data_dir, tasks=PYDANTIC, workers=1) as runtime:
        with pytest.raises(ControlRefusedError) as refused:
            runtime.trigger("order", {"lines": [1, "x"], "count": 0})
        assert "at `$.lines[1]`" in refused.value.what
        assert "Input should be greater than 0 - at `$.count`" in refused.value.what

        assert runtime.output(runtime.trigger("order", {"lines": ["1"], "count": 2})) == 2
