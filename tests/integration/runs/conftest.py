"""One runtime for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.runtime_process import RuntimeProcess

TASKS = """
import asyncio
import time

async def echo(payload: object):
    return payload

async def hello(payload):
    return f"Hello, {payload['name']}"

async def fail(payload):
    raise ValueError("no")

async def hang(payload):
    await asyncio.Event().wait()

async def typed(payload: int):
    return payload

async def nightly(payload):
    return payload
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    with RuntimeProcess(
        tmp_path_factory.mktemp("runtime"),
        tasks=TASKS,
        workers=2,
        drain_timeout="0s",
        task_options={
            "fail": "retry = {max_attempts = 1}",
            "nightly": 'cron = "0 3 * * *"\ntimezone = "Europe/Berlin"',
        },
        options="[limits]\nmax_queued = 1000\n",
    ) as process:
        yield process
