"""Worker processes write at full speed while something breaks: nothing accepted is lost.

The same troubles as in `tests/integration/streams/test_nothing_lost.py`, here with a whole runtime.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.reading import by_writer, read_stream
from tests.runtime_process import RuntimeProcess

TASKS = """
import os
from td_worker import streams, tasks

async def fan_out(payload):
    children = [{**payload, "writer": n} for n in range(4)]
    results = await tasks.batch_trigger_and_wait("write_until_told", children)
    return [result.unwrap() for result in results]

async def write_until_told(payload):
    number = 0
    async with streams.writer("hot", target="root") as writer:
        while not os.path.exists(payload["stop"]):
            for _ in range(100):
                await writer.write([payload["writer"], number, "x" * 400])
                number += 1
    return number
"""


def expire(runtime: RuntimeProcess) -> None:
    """Let every token be as good as a day old."""
    runtime.fault(kind="expire-tokens")


def kill_gateway(runtime: RuntimeProcess) -> None:
    """Kill the gateway; the supervisor starts another."""
    pid = runtime.event("gateway.ready")["gateway_pid"]
    os.kill(pid, signal.SIGKILL)
    runtime.until(lambda _: len(runtime.find("gateway.ready")) == 2, "a second gateway")


def lose_answers(runtime: RuntimeProcess) -> None:
    """Store batches and cut the connection before the answer."""
    runtime.fault(kind="drop-after", target="stream-store", count=5)


def ask_for_patience(runtime: RuntimeProcess) -> None:
    """Answer that another try is welcome in half a second."""
    runtime.fault(kind="status", status=429, target="stream-store", count=4, retry_after=0.5)


def be_busy(runtime: RuntimeProcess) -> None:
    """Answer 503 for three seconds."""
    runtime.fault(kind="status", status=503, target="stream-store")
    time.sleep(3.0)  # how long it is busy
    with runtime.platform() as client:
        client.clear_faults()


@pytest.mark.parametrize("trouble", [expire, kill_gateway, lose_answers, ask_for_patience, be_busy])
def test_everything_accepted_is_read_back_once(
    data_dir: Path, trouble: Callable[[RuntimeProcess], None]
) -> None:
    """Four runs in two workers complete, and all they wrote is read back once, in order."""
    stop = data_dir / "stop"
    with RuntimeProcess(data_dir, tasks=TASKS, workers=2) as runtime:
        run_id = runtime.trigger("fan_out", {"stop": str(stop)})
        runtime.stored(run_id, "hot", at_least=2000)
        trouble(runtime)
        runtime.stored(run_id, "hot", at_least=runtime.stored(run_id, "hot", at_least=1) + 2000)
        stop.touch()
        counts = runtime.output(run_id)
        chunks = read_stream(runtime, run_id, "hot")
        completed = runtime.find("run.completed")
        failed = runtime.find("stream.write_failed")

    assert by_writer([[name, n] for name, n, _ in chunks]) == {
        writer: list(range(count)) for writer, count in enumerate(counts)
    }
    assert [event["records_lost"] for event in completed] == [0] * 5
    assert not failed
