"""What the runtime thread does with requests for runs that are under way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from td_worker.messages import CancelRun
from td_worker.runtime import RuntimeThread, WorkerSettings


class _Nobody:
    """Stands for the channel and the inbox: hears everything, does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: (name, args)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[RuntimeThread]:
    """A runtime thread that was not started: its loop's part is the test's."""
    settings = WorkerSettings(
        number=1,
        tasks=(),
        import_path=str(tmp_path),
        lock_file=str(tmp_path / "workers.lock"),
        control_plane_url="http://127.0.0.1:9",
        credentials_dir=tmp_path,
        max_age=60.0,
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        runtime: Any = RuntimeThread(settings, ours)
        runtime._channel = runtime._inbox = _Nobody()
        yield runtime
        runtime._loop.close()


def test_runs_may_be_asked_for_while_another_is_canceled(runtime: RuntimeThread):
    """A cancellation gives up what its run waits for, whoever asks for runs in that moment."""
    given_up = [runtime.trigger_and_wait("run_1", 1, []) for _ in range(2)]
    for done in given_up:
        done.add_done_callback(lambda _: runtime.trigger("run_2", 1, []))
    runtime._cancel(CancelRun(run_id="run_1", attempt=1))

    assert [type(done.exception(timeout=0)) for done in given_up] == [asyncio.CancelledError] * 2
