"""What task authors use: the context, child runs, retries, limits, in `async def` and `def`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from td_runtime.control import ControlRefusedError
from tests.acceptance.reading import read_stream
from tests.runtime_process import RuntimeProcess

TASKS = """
import asyncio
import logging
import os
from dataclasses import dataclass
from td_worker import AbortTaskRunError, SubtaskUnwrapError, context, streams, tasks
from td_worker.sync import streams as sync_streams
from td_worker.sync import tasks as sync_tasks

async def whoami(payload):
    return {
        "run": context.run.id,
        "parent": context.run.parent_id,
        "root": context.run.root_id,
        "attempt": context.attempt.number,
        "task": context.task.id,
    }

async def ask_child(payload):
    child = await tasks.trigger_and_wait("whoami")
    return {"self": context.run.id, "child": child.unwrap()}

def ask_child_plainly(payload):
    results = sync_tasks.batch_trigger_and_wait("whoami", [1, 2, 3])
    handle = sync_tasks.trigger("whoami", idempotency_key=f"once {context.run.id}")
    again = sync_tasks.trigger("whoami", idempotency_key=f"once {context.run.id}")
    return {"children": [result.unwrap()["run"] for result in results], "same": handle == again}

async def fail_twice(payload):
    if context.attempt.number < 3:
        raise ValueError(f"attempt {context.attempt.number}")
    return context.attempt.number

async def abort(payload):
    raise AbortTaskRunError("not worth another attempt")

async def exit_process(payload):
    raise SystemExit("not the worker")

async def unwrap_failure(payload):
    result = await tasks.trigger_and_wait("abort")
    try:
        result.unwrap()
    except SubtaskUnwrapError as error:
        return [result.ok, result.status, error.error.type, str(error)]

async def trigger_unknown(payload):
    await tasks.trigger("whoam")

def count_at_once(payload):
    path = payload["folder"] + "/" + context.run.id
    open(path, "w").close()
    seen = len(os.listdir(payload["folder"]))
    os.remove(path)
    return seen

def stream_plainly(payload):
    with sync_streams.writer("plain") as writer:
        for number in range(100):
            writer.write({"n": number})
    sequence = sync_streams.append("plain", "appended")
    handle = sync_streams.pipe("plain", iter(["piped", None, "ünïcode 🎉"]))
    handle.wait()
    return list(sync_streams.read(context.run.id, "plain", timeout=1))[-4:]

async def wait_for_deep_children(payload):
    depth = payload
    if depth == 0:
        return 0
    return 1 + (await tasks.trigger_and_wait("wait_for_deep_children", depth - 1)).unwrap()

async def say(payload):
    print("to stdout")
    logging.getLogger("app").warning("to logging %s", 1)
    await asyncio.create_subprocess_exec("echo", "from a subprocess")

async def forget_to_wait(payload):
    streams.pipe("late", _numbers())

async def _numbers():
    for number in range(500):
        yield number

@dataclass
class Order:
    item: str
    count: int

async def typed(payload: Order):
    return f"{payload.count} x {payload.item}"

async def not_json(payload):
    return object()
"""

OPTIONS = {
    "fail_twice": "retry = {min_timeout = '10ms', max_timeout = '20ms'}",
    "exit_process": "retry = {max_attempts = 1}",
    "trigger_unknown": "retry = {max_attempts = 1}",
    "count_at_once": "concurrency = 2",
}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder: Path = tmp_path_factory.mktemp("runtime")
    with RuntimeProcess(
        folder, tasks=TASKS, workers=2, concurrency=3, task_options=OPTIONS
    ) as process:
        yield process


def test_a_child_knows_its_parent_and_its_root(runtime: RuntimeProcess) -> None:
    """context: a child run has parent and root, a root run has neither, attempts count from 1."""
    alone = runtime.output(runtime.trigger("whoami"))
    family = runtime.output(runtime.trigger("ask_child"))

    assert alone["parent"] is None
    assert alone["root"] is None
    assert alone["attempt"] == 1
    assert alone["task"] == "whoami"
    assert family["child"]["parent"] == family["self"]
    assert family["child"]["root"] == family["self"]


def test_plain_tasks_trigger_and_wait(runtime: RuntimeProcess) -> None:
    """td_worker.sync.tasks: a `def` task waits for children, and a key stands for one run."""
    output = runtime.output(runtime.trigger("ask_child_plainly"))

    assert len(set(output["children"])) == 3
    assert output["same"] is True


def test_a_failed_run_is_tried_again_until_it_completes(runtime: RuntimeProcess) -> None:
    """retry: two failed attempts, then the third one's output."""
    run_id = runtime.trigger("fail_twice")

    assert runtime.output(run_id) == 3
    assert [line["error_message"] for line in runtime.find("run.retried", run_id=run_id)] == [
        "attempt 1",
        "attempt 2",
    ]


def test_an_aborted_run_is_not_tried_again(runtime: RuntimeProcess) -> None:
    """AbortTaskRunError fails the run with attempts left; type, message and traceback survive."""
    view = runtime.view(runtime.trigger("abort"))

    assert view.outcome.status == "FAILED"
    assert view.attempt == 1
    error = view.outcome.error
    assert error is not None
    assert (error.type, error.message) == ("AbortTaskRunError", "not worth another attempt")
    assert "in abort" in error.traceback
    assert error.retryable is False


def test_a_task_that_exits_does_not_take_its_worker_along(runtime: RuntimeProcess) -> None:
    """SystemExit in a task fails that run alone."""
    before = runtime.status().workers
    outcome = runtime.result(runtime.trigger("exit_process"))

    assert outcome.status == "FAILED"
    assert outcome.error is not None
    assert outcome.error.type == "SystemExit"
    assert [w.pid for w in runtime.status().workers] == [w.pid for w in before]


def test_a_failed_child_is_a_result_and_raises_when_unwrapped(runtime: RuntimeProcess) -> None:
    """trigger_and_wait returns a failed child as a result; unwrap() raises with its error."""
    ok, status, kind, message = runtime.output(runtime.trigger("unwrap_failure"))

    assert (ok, status, kind) == (False, "FAILED", "AbortTaskRunError")
    assert "not worth another attempt" in message


def test_triggering_an_unknown_task_names_the_nearest(runtime: RuntimeProcess) -> None:
    """A run that triggers a task nobody registered fails, and is told what it may have meant."""
    outcome = runtime.result(runtime.trigger("trigger_unknown"))

    assert outcome.error is not None
    assert outcome.error.type == "TriggerRefusedError"
    assert "did you mean 'whoami'?" in outcome.error.message


def test_a_task_never_runs_more_often_at_once_than_it_may(
    runtime: RuntimeProcess, tmp_path: Path
) -> None:
    """[[tasks]] concurrency = 2: of 12 runs in two workers with three places, two run at once."""
    runs = runtime.trigger_many("count_at_once", [{"folder": str(tmp_path)}] * 12)

    assert max(runtime.output(run_id) for run_id in runs) <= 2


def test_waiting_parents_free_their_places(runtime: RuntimeProcess) -> None:
    """R9: 30 parents, each waiting for the next, finish in six places."""
    assert runtime.output(runtime.trigger("wait_for_deep_children", 30)) == 30


def test_plain_tasks_write_and_read_streams(runtime: RuntimeProcess) -> None:
    """td_worker.sync.streams: writer, append, pipe and read without await."""
    run_id = runtime.trigger("stream_plainly")

    assert runtime.output(run_id) == ["appended", "piped", None, "ünïcode 🎉"]
    chunks = read_stream(runtime, run_id, "plain")
    assert chunks[:100] == [{"n": number} for number in range(100)]


def test_a_stream_nobody_waited_for_is_drained(runtime: RuntimeProcess) -> None:
    """Streams not awaited are drained at the end of the run, before it has its outcome."""
    run_id = runtime.trigger("forget_to_wait")
    runtime.output(run_id)

    assert read_stream(runtime, run_id, "late") == list(range(500))


def test_what_a_task_says_is_logged_as_its_own(runtime: RuntimeProcess) -> None:
    """print, logging and a subprocess's output come out as lines of that run."""
    run_id = runtime.trigger("say")
    runtime.output(run_id)

    assert runtime.event("task.printed", run_id=run_id)["text"] == "to stdout"
    assert runtime.event("to logging 1")["run_id"] == run_id
    assert runtime.event("task.printed", text="from a subprocess")["stream"] == "stdout"


def test_a_payload_becomes_what_the_hint_says(runtime: RuntimeProcess) -> None:
    """A dataclass hint: a fitting payload is that type, another one is refused at trigger."""
    good = runtime.trigger("typed", {"item": "pear", "count": 3})
    with pytest.raises(ControlRefusedError) as refused:
        runtime.trigger("typed", {"item": "pear", "count": "three"})

    assert runtime.output(good) == "3 x pear"
    assert "$.count" in refused.value.what
    assert '"three"' in refused.value.what


def test_an_output_that_is_not_json_fails_the_run_once(runtime: RuntimeProcess) -> None:
    """An output that JSON cannot say names its type, and is not tried again."""
    view = runtime.view(runtime.trigger("not_json"))

    assert view.outcome.status == "FAILED"
    assert view.attempt == 1
    assert view.outcome.error is not None
    assert "type object" in view.outcome.error.message


def test_many_small_runs_all_complete(runtime: RuntimeProcess) -> None:
    """500 runs accepted in one request complete, each once."""
    runs = runtime.trigger_many("whoami", [None] * 500)

    outputs = [msgspec.json.decode(runtime.result(run).output or b"") for run in runs]
    assert [output["run"] for output in outputs] == runs
    assert {output["attempt"] for output in outputs} == {1}
