"""The examples in the docstrings of `streams` run as they stand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from td_worker import streams
from td_worker.streams import blocking
from td_worker.testing import FakePlatform
from tests.docstrings import Example, find_examples, find_unexampled, run_example
from tests.integration.streams.conftest import RUN


class AsyncModel:
    """What examples call a model; its answer is two tokens."""

    async def stream(self, prompt: str) -> AsyncIterator[str]:
        for token in (prompt, "world"):
            yield token


class Model:
    """The same for plain `def` code."""

    def stream(self, prompt: str) -> Iterator[str]:
        yield from (prompt, "world")


def names(model: Any) -> dict[str, Any]:
    """Return what an example may take for given."""
    return {"model": model, "prompt": "hello", "run_id": RUN}


@pytest.fixture(autouse=True)
def decision(platform: FakePlatform) -> None:
    """Somebody has approved: an example waits for it."""
    platform.sessions.send_input(RUN, "approvals", True)


@pytest.mark.parametrize("example", find_examples(streams), ids=str)
def test_an_async_example_runs(execution, example: Example):
    """Every example is a task's code, and imports nothing but what it shows."""
    run_example(example, {"streams": streams, **names(AsyncModel())})


@pytest.mark.parametrize("example", find_examples(blocking), ids=str)
def test_a_plain_example_runs(execution, example: Example):
    """The twin's examples run in a plain thread."""
    run_example(example, {"streams": blocking, **names(Model())})


def test_each_public_name_has_an_example():
    """A name without one would be described and never shown."""
    assert find_unexampled(streams) == find_unexampled(blocking) == []
