"""The shipped fake platform does what its documentation shows."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from td_worker import context, streams
from td_worker.streams import blocking
from td_worker.testing import run_platform


def count(payload: dict[str, int]) -> int:
    """A plain task under test."""
    with blocking.writer("progress") as w:
        for n in range(1, payload["to"] + 1):
            w.write(n)
    return payload["to"]


async def count_async(payload: dict[str, int]) -> int:
    """An async task under test."""
    handle = streams.pipe("progress", range(1, payload["to"] + 1))
    await handle.wait()
    return payload["to"]


def test_a_plain_task_is_tested_as_documented():
    """The example of the module's documentation works word for word."""
    with run_platform() as platform, platform.execution(run_id="run_1"):
        count({"to": 3})
    assert platform.chunks("run_1", "progress") == [1, 2, 3]


def test_an_async_task_is_tested_as_documented():
    """The same under asyncio.run."""
    with run_platform() as platform, platform.execution(run_id="run_1"):
        asyncio.run(count_async({"to": 3}))
    assert platform.chunks("run_1", "progress") == [1, 2, 3]


def test_a_task_under_test_knows_who_it_is():
    """The context is the one that was asked for, and gone afterwards."""
    with run_platform() as platform:
        with platform.execution(run_id="r", parent_id="p", root_id="o", attempt=2, task_id="t"):
            seen: list[Any] = [
                context.run.id,
                context.run.parent_id,
                context.run.root_id,
                context.attempt.number,
                context.task.id,
            ]
        assert context.try_current() is None

    assert seen == ["r", "p", "o", 2, "t"]


def test_the_platform_wants_its_key_and_its_tokens():
    """Like the real ones: no key no mint, no token no append, no basin no append."""
    with run_platform() as platform:
        put = f"{platform.url}/realtime/v1/streams/run_1/self/k"
        assert httpx.put(put).status_code == 401
        key = {"authorization": f"Bearer {platform.secret_key}"}
        granted = httpx.put(put, headers=key)
        token = {"authorization": f"Bearer {granted.headers['x-s2-access-token']}"}
        post = f"{platform.url}/v1/streams/%2Fruns%2Frun_1%2Fk/records"
        body = {"records": [{"body": "{}"}]}
        assert httpx.post(post, json=body, headers=key).status_code == 401
        assert httpx.post(post, json=body, headers=token).status_code == 400
        basin = {"s2-basin": granted.headers["x-s2-basin"]}
        assert httpx.post(post, json=body, headers=token | basin).status_code == 200

        assert len(platform.records("run_1", "k")) == 1
        assert platform.puts == {("run_1", "k"): 1}


def test_a_fault_strikes_as_often_as_it_was_asked_to():
    """Faults are counted per kind of answer; healing forgets the rest."""
    with run_platform() as platform:
        ping = f"{platform.url}/platform/v1/ping"
        put = f"{platform.url}/realtime/v1/streams/run_1/self/k"
        key = {"authorization": f"Bearer {platform.secret_key}"}
        platform.spoil("mint", status=503, times=2)
        assert [httpx.put(put, headers=key).status_code for _ in range(3)] == [503, 503, 202]
        platform.spoil("mint", status=503, times=9)
        platform.heal()
        assert httpx.put(put, headers=key).status_code == 202
        assert httpx.get(ping, headers=key).status_code == 200
