"""The official SDK's calls for runs and batches, answered by the gateway."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interop.node import Node
from tests.runtime_process import RuntimeProcess

pytestmark = pytest.mark.interop

TASKS = """
import asyncio

from td_worker import tasks

async def echo(payload):
    return payload

async def fail(payload):
    raise ValueError("on purpose")

async def hang(payload):
    await asyncio.Event().wait()

async def parent(payload):
    results = await tasks.batch_trigger_and_wait("echo", range(payload))
    return [result.unwrap() for result in results]
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runtime")
    options = {"fail": "retry = {max_attempts = 1}"}
    with RuntimeProcess(
        folder, tasks=TASKS, workers=2, drain_timeout="0s", task_options=options
    ) as process:
        yield process


@pytest.fixture(scope="module")
def said(runtime: RuntimeProcess, node: Node) -> dict[str, Any]:
    """What the SDK was told, by call."""
    document: dict[str, Any] = node.ask("runs.mjs", url=runtime.url, secret_key=runtime.secret_key)
    return document


def test_trigger(said: dict[str, Any]) -> None:
    """A Python task gets what JavaScript sends, every option counts, and its output comes back."""
    echoed = said["echoed"]

    assert said["handle"] == {"id": echoed["id"], "hasToken": True}
    assert echoed["output"]["when"] == "1970-01-01T00:00:00.000Z"
    assert echoed["output"]["set"] == [1, 2]
    assert echoed["output"]["text"] == "ü"
    assert isinstance(echoed["output"]["big"], int)
    assert (echoed["status"], echoed["isSuccess"], echoed["attemptCount"]) == ("COMPLETED", True, 1)
    assert (echoed["tags"], echoed["metadata"]) == (["user_1", "kind_a"], {"step": 1})
    assert echoed["createdAt"] is echoed["finishedAt"] is True
    assert (said["text"], said["number"], said["nothing"]) == ("plain", 7, None)
    assert said["once"] == [True, False, True]


def test_outcomes(said: dict[str, Any]) -> None:
    """A run that failed says why; one with children shows them."""
    failed, parent = said["failed"], said["parent"]

    assert (failed["status"], failed["isFailed"]) == ("FAILED", True)
    assert failed["error"] == {"name": "ValueError", "message": "on purpose"}
    assert parent["output"] == [0, 1, 2]
    assert parent["children"] == [["echo", 1]] * 3


def test_cancel(said: dict[str, Any]) -> None:
    """A run that executes is canceled, and one that waits for its time."""
    assert said["cancelAnswer"]
    assert (said["cancelled"]["status"], said["cancelled"]["isCancelled"]) == ("CANCELED", True)
    assert said["delayed"] == ["DELAYED", True]
    assert said["delayedCancelled"] == "CANCELED"


def test_reschedule(said: dict[str, Any]) -> None:
    """A delayed run gets another time, its ttl with it; one that has started is refused."""
    refused = said["rescheduledWhenDone"]

    assert said["rescheduled"] == ["DELAYED", True, "300s"]
    assert said["movedToNow"] == "moved"
    assert (refused["status"], refused["message"]) == (
        400,
        "Cannot reschedule a run that is not delayed",
    )
    assert (said["badReschedule"]["status"], said["badReschedule"]["message"]) == (
        400,
        "Invalid delay: soon",
    )


def test_tags_are_added(said: dict[str, Any]) -> None:
    """None twice, within the limit, also when the run is done; not with a public token."""
    refused = said["tooManyTags"]

    assert said["tagged"] == [
        "Successfully set 1 new tags.",
        "No new tags to add",
        ["moved", "added"],
    ]
    assert said["foundByTag"] == [True]
    assert refused["status"] == 422
    assert refused["message"].endswith("limits.tags = 10")
    assert said["taggedWhenDone"] == "Successfully set 1 new tags."
    assert said["tagByToken"]["status"] == 403


def test_replay(said: dict[str, Any]) -> None:
    """A replay has the payload and tags of the run before, or another payload."""
    replayed, echoed = said["replayed"], said["echoed"]

    assert replayed["id"] != echoed["id"]
    assert (replayed["output"], replayed["tags"]) == (echoed["output"], echoed["tags"])
    assert said["replayedOther"] == [9]


def test_batches(said: dict[str, Any]) -> None:
    """The runs of a batch are found through it, in order."""
    assert said["batch"] == {"runCount": 3, "runs": 3}
    assert said["batchOutputs"] == [10, 11, 12]
    assert said["batchStatus"] == "COMPLETED"
    assert said["mixed"] == 2


def test_lists(said: dict[str, Any]) -> None:
    """Lists go on over pages, newest first, and keep to tags, statuses and tasks."""
    assert said["listed"] == [3, True]
    assert said["listedTags"] == ["later", "user_1", "user_1", "user_1"]
    assert said["cancelledListed"] == [True]


def test_tokens(said: dict[str, Any]) -> None:
    """A public token reads what it names; one for a trigger is good for one run of its task."""
    assert said["readWithToken"] == "COMPLETED"
    assert said["readOther"]["status"] == 403
    assert said["tagToken"] == 3
    assert said["byToken"] == "by token"
    assert (said["tokenTwice"]["status"], said["tokenTwice"]["message"]) == (
        422,
        "One-time use token was used before",
    )
    assert said["tokenOther"]["status"] == 403


def test_refusals_come_at_once(said: dict[str, Any]) -> None:
    """The SDK gets the reason of a refusal, and does not try again what is refused again."""
    names = ("unknownTask", "unknownRun", "unknownCancel", "badDelay")

    assert [(said[name]["status"], said[name]["message"]) for name in names] == [
        (
            422,
            "there is no task 'ecko'; did you mean 'echo'? (registered: echo, fail, hang, parent)",
        ),
        (404, "Not found"),
        (404, "Run not found"),
        (422, "Invalid delay soon"),
    ]
    assert not any(said[name]["tookLong"] for name in names)
