"""Sessions and input in a real runtime: real workers, a real gateway, a supervisor that counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtime_process import RuntimeProcess

TASKS = """
import asyncio
from contextlib import aclosing
from td_worker import context, sessions, streams
from td_worker.sync import sessions as sync_sessions
from td_worker.sync import streams as sync_streams

async def echo(payload):
    session = sessions.open(payload["sessionId"])
    message = (await session.in_.wait(timeout=60)).unwrap()
    async with session.out.writer() as writer:
        for word in message["text"].split():
            await writer.write({"word": word})
    await session.out.write_control("turn-complete", {"session-in-event-id": "0"})
    return {"seq": session.in_.last_dispatched_seq_num}

def echo_plainly(payload):
    session = sync_sessions.open(payload["sessionId"])
    message = session.in_.wait_with_idle_timeout(0, timeout=60).unwrap()
    session.out.append({"plain": message["text"]})
    return message

async def wait_for_ever(payload):
    return (await streams.input("never").wait()).output

def wait_for_ever_plainly(payload):
    return sync_streams.input("never").wait().output

async def approve(payload):
    return (await streams.input("approvals").wait(timeout=60)).unwrap()

async def quick(payload):
    return payload

async def talk(payload):
    session = await sessions.start("support", "echo", external_id=payload)
    await sessions.open(payload).in_.send({"text": "one two three"})
    found, ends = [], []
    async with aclosing(sessions.open(session.id).out.read(on_control=ends.append)) as reading:
        async for data in reading:
            found.append(data)
            if len(found) == 3:
                break
    listed = [each.id async for each in sessions.list(external_id=payload)]
    closed = await sessions.close(payload, reason="done")
    return {
        "words": [each["word"] for each in found],
        "listed": listed == [session.id],
        "closed": closed.closed_reason,
        "external_id": (await sessions.retrieve(session.id)).external_id,
    }
"""

OPTIONS = dict.fromkeys(("talk", "echo"), "retry = {max_attempts = 1}")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder: Path = tmp_path_factory.mktemp("runtime")
    with RuntimeProcess(
        folder, tasks=TASKS, workers=1, concurrency=2, task_options=OPTIONS
    ) as process:
        yield process


def post(runtime: RuntimeProcess, path: str, body: Any) -> httpx.Response:
    """Send what a client would."""
    headers = {"authorization": f"Bearer {runtime.secret_key}"}
    return httpx.post(runtime.url + path, json=body, headers=headers)


def test_a_task_starts_a_session_and_talks_to_it(runtime: RuntimeProcess) -> None:
    """One task starts a session, whose own run answers on `out` what was sent to `in`."""
    found = runtime.output(runtime.trigger("talk", "order-17"))

    assert found == {
        "words": ["one", "two", "three"],
        "listed": True,
        "closed": "done",
        "external_id": "order-17",
    }


@pytest.mark.parametrize(("task", "seq"), [("echo", True), ("echo_plainly", False)])
def test_a_run_that_waits_frees_its_place(runtime: RuntimeProcess, task: str, seq: bool) -> None:
    """With every place taken by runs that wait for input, another run is executed."""
    run_id = runtime.trigger(task, {"sessionId": f"for-{task}"})
    other_id = runtime.trigger(task, {"sessionId": f"also-for-{task}"})
    runtime.event("run.waiting", run_id=run_id)
    runtime.event("run.waiting", run_id=other_id)

    assert runtime.output(runtime.trigger("quick", 1)) == 1
    assert runtime.status().runs["WAITING"] == 2
    sent = post(runtime, f"/realtime/v1/sessions/for-{task}/in/append", {"text": "a b"})
    assert sent.json() == {"ok": True, "seq": 0}
    output = runtime.output(run_id)
    assert output == ({"seq": 0} if seq else {"text": "a b"})
    runtime.event("run.resumed", run_id=run_id)
    post(runtime, f"/realtime/v1/sessions/also-for-{task}/in/append", {"text": "c"})
    runtime.output(other_id)


def test_input_streams_reach_their_run(runtime: RuntimeProcess) -> None:
    """What a client sends to a run's input stream is what its `wait` returns."""
    run_id = runtime.trigger("approve")
    runtime.event("run.waiting", run_id=run_id)
    sent = post(runtime, f"/realtime/v1/streams/{run_id}/input/approvals", {"data": {"ok": True}})

    assert sent.json() == {"ok": True}
    assert runtime.output(run_id) == {"ok": True}


@pytest.mark.parametrize("task", ["wait_for_ever", "wait_for_ever_plainly"])
def test_a_drain_does_not_wait_for_input(tmp_path: Path, task: str) -> None:
    """A run that waits for input is requeued by a drain at once, and starts again afterwards."""
    with RuntimeProcess(tmp_path, tasks=TASKS, workers=1, drain_timeout="10m") as runtime:
        run_id = runtime.trigger(task)
        runtime.event("run.waiting", run_id=run_id)
        assert runtime.stop() == 0
        runtime.start()
        runtime.until(lambda _: len(runtime.find("run.waiting", run_id=run_id)) == 2, "2 waits")
        sent = post(runtime, f"/realtime/v1/streams/{run_id}/input/never", {"data": "at last"})

        assert sent.json() == {"ok": True}
        assert runtime.output(run_id) == "at last"
