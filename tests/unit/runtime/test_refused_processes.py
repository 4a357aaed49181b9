"""A start for which the system has no process, memory or descriptor left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from td_runtime.config import load_config
from td_runtime.errors import TdRuntimeError
from td_runtime.inspector import inspect_tasks
from td_runtime.log_sink import LogSink

_NEXT = (
    "  next: Raise what limits processes, memory and descriptors (`ulimit -a`; a unit's "
    "TasksMax= and MemoryMax=), then start again."
)


@pytest.fixture(autouse=True)
def _full(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)


def test_a_log_sink_that_cannot_be_forked_is_told_in_words() -> None:
    """The start ends with what the system said and what to do about it."""
    with pytest.raises(TdRuntimeError) as caught:
        LogSink.start(format="json", host="h")

    assert str(caught.value) == (
        f"the log sink could not be forked: Resource temporarily unavailable\n{_NEXT}"
    )


def test_tasks_that_nobody_can_be_forked_to_import_are_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is where tasks are looked at, and no descriptor is left."""
    monkeypatch.setattr("td_runtime.fork.require_single_thread", lambda: None)
    path = tmp_path / "td-runtime.toml"
    path.write_text('[[tasks]]\nid = "hello"\nentrypoint = "hello:hello"\n')
    config = load_config(path)
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(TdRuntimeError) as caught:
        inspect_tasks(config)

    assert str(caught.value) == (
        "the child that imports the tasks could not be forked: "
        f"Resource temporarily unavailable\n{_NEXT}"
    )
    assert len(os.listdir("/proc/self/fd")) == before
