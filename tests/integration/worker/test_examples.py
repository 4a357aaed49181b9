"""The examples in the docstrings of `sessions` run as they stand."""

from __future__ import annotations

import pytest

from td_worker import blocking_sessions, sessions
from td_worker.context import Execution
from td_worker.testing import FakePlatform
from tests.docstrings import Example, find_examples, find_unexampled, run_example

PAYLOAD = {"sessionId": "order-17"}


@pytest.fixture(autouse=True)
def order(platform: FakePlatform, execution: Execution) -> None:
    """A session with something said in it: the examples read what there is."""
    platform.sessions.add("order-17")
    for number in range(3):
        platform.sessions.send("order-17", {"text": f"message {number}"})


@pytest.mark.parametrize("example", find_examples(sessions), ids=str)
def test_an_async_example_runs(example: Example):
    """Every example is a task's code, and imports nothing but what it shows."""
    run_example(example, {"sessions": sessions, "payload": PAYLOAD})


def test_the_plain_example_runs():
    """The twin's example runs in a plain thread."""
    [example] = [one for one in find_examples(blocking_sessions) if "blocking" in one.name]
    run_example(example, {"payload": PAYLOAD})


def test_each_public_name_has_an_example():
    """A name without one would be described and never shown."""
    assert find_unexampled(sessions) == []
