"""The official SDK's calls for sessions, inputs, waits and tokens, answered by the gateway."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.interop.node import Node
from tests.runtime_process import RuntimeProcess

pytestmark = pytest.mark.interop

EXTERNAL_ID = "chat 1/ü"
TASKS = """
import asyncio

async def agent(payload):
    await asyncio.Event().wait()
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runtime")
    with RuntimeProcess(folder, tasks=TASKS, workers=1, drain_timeout="0s") as process:
        yield process


@pytest.fixture(scope="module")
def said(runtime: RuntimeProcess, node: Node) -> dict[str, Any]:
    """What the SDK was told, by call."""
    document: dict[str, Any] = node.ask(
        "routes.mjs", "agent", EXTERNAL_ID, url=runtime.url, secret_key=runtime.secret_key
    )
    return document


def test_sessions(said: dict[str, Any]) -> None:
    """The SDK starts, finds, changes, lists and closes a session, and sees the same one."""
    started, again = said["started"], said["again"]

    assert (started["isCached"], again["isCached"]) == (False, True)
    assert {s["id"] for s in (started, again, said["retrieved"], said["updated"])} == {
        started["id"]
    }
    assert again["runId"] == started["runId"] == said["retrieved"]["currentRunId"]
    assert said["updated"]["metadata"] == {"a": 1}
    assert said["listed"] == [started["id"]]
    assert said["closed"]["closedReason"] == "done"


def test_channels(said: dict[str, Any]) -> None:
    """What the SDK writes to a session's channels it reads back, side channels too."""
    data, control = said["outRecords"][:2], said["outRecords"][2]

    assert said["read"] == [{"n": 1}, "two"]
    assert [record["data"] for record in data] == said["read"]
    assert control["headers"] == [
        ["trigger-control", "turn-complete"],
        ["session-in-event-id", "0"],
    ]
    (message,) = said["inRecords"]
    assert json.loads(message["data"]) == {"kind": "message", "payload": {"text": "hi"}}
    assert said["sideStream"] == f"session-channels/{EXTERNAL_ID}/side/out"
    assert [record["data"] for record in said["sideRecords"]] == ["beside"]


@pytest.mark.conformance("createStartSessionAction")
def test_the_action_of_a_web_server(said: dict[str, Any]) -> None:
    """What a page sends along reaches the run's payload, and the rest of the action its place."""
    page, bare = said["page"], said["bare"]
    config = page["triggerConfig"]

    assert said["pageToken"].count(".") == 2
    assert config["basePayload"]["chatId"] == "of a page"
    assert config["basePayload"]["metadata"] == {"user": 7}
    assert config["tags"] == ["chat:of a page", *"abcdefghi"]
    assert (config["maxDuration"], config["region"]) == (60, "eu")
    assert page["metadata"] == {"plan": "pro"}
    assert "metadata" not in bare["triggerConfig"]["basePayload"]


def test_waits(said: dict[str, Any]) -> None:
    """A wait ends with what was sent, with what it was completed with, or as timed out."""
    assert (said["sent"]["status"], said["sent"]["output"]) == ("COMPLETED", {"yes": True})
    assert (said["byHand"]["status"], said["byHand"]["output"]) == ("COMPLETED", {"x": 1})
    assert said["late"]["status"] == "TIMED_OUT"


def test_a_token_of_the_sdk(runtime: RuntimeProcess, said: dict[str, Any]) -> None:
    """A public token that the SDK signed reads the session it names, and no other."""
    with httpx.Client(
        base_url=runtime.url, headers={"authorization": f"Bearer {said['token']}"}, timeout=30
    ) as page:
        named = page.get("/realtime/v1/sessions/chat%201%2F%C3%BC/out/records")
        other = page.get("/realtime/v1/sessions/other/out/records")

    assert (named.status_code, other.status_code) == (200, 403)


def test_refusals_come_at_once(said: dict[str, Any]) -> None:
    """The SDK does not try again what will be refused again: a snapshot, a closed session."""
    assert said["snapshot"] == {"status": 404, "tookLong": False}
    assert said["closedStart"] == {"status": 409, "tookLong": False}
    assert said["closedSend"] == {"status": 400, "tookLong": False}
