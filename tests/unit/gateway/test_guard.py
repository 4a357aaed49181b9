"""What is under way when the gateway is asked to end."""

from __future__ import annotations

import asyncio
from typing import Any

from td_runtime.gateway.guard import Guard
from td_runtime.gateway.journal import Journal
from td_runtime.gateway.settings import LogSettings, Settings


async def test_the_guard_knows_when_requests_are_answered() -> None:
    """It waits for those that came before it was asked, not for those that come after."""
    ends = {path: asyncio.Event() for path in ("/first", "/second", "/later")}

    async def application(scope: Any, _receive: object, _send: object) -> None:
        await ends[scope["path"]].wait()

    settings = Settings(data_dir="/x", host="127.0.0.1", port=80, secret_key="k", control_fd=3)
    guard = Guard(application, settings=settings, journal=Journal(LogSettings()))

    async def come(path: str) -> asyncio.Task[None]:
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "headers": [(b"host", b"localhost")],
        }
        task = asyncio.create_task(guard(scope, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return task

    await guard.settled()
    tasks = [await come("/first"), await come("/second")]
    settled = asyncio.create_task(guard.settled())
    await asyncio.sleep(0)
    later = await come("/later")
    ends["/first"].set()
    await tasks[0]
    is_early = settled.done()
    ends["/second"].set()
    await settled
    is_late = later.done()
    ends["/later"].set()
    await later

    assert (is_early, is_late) == (False, False)
