"""All processes of a host fail with the same credential at the same instant."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from td_sharedcache import CredentialCache, Notice, Policy, Slot
from td_worker.control_plane import ControlPlane
from tests.gateway_process import GatewayProcess, start_gateway
from tests.integration.sharedcache.processes import Child, Pipe

CHAT = Slot.run("run_1", "chat")
PROCESSES = 64
PATIENT = Policy(store_wait=60.0, lock_wait=60.0)
"""A machine too busy to run 64 processes is no reason for one of them to go alone."""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """A real gateway process that knows `run_1`."""
    folder = tmp_path / "data"
    folder.mkdir()
    with start_gateway(folder) as process:
        process.add_run("run_1")
        yield process


@pytest.fixture
def barrier() -> Iterator[list[Pipe]]:
    """Pipes by which children say that they are there, and are let go."""
    pipes = [Pipe() for _ in range(4)]
    yield pipes
    for pipe in pipes:
        pipe.close()


def test_c4_64_processes_that_fail_at_once_send_one_put(gateway, tmp_path, barrier):
    """C4: one replacement for 64 failures at the same instant; none for the old id once more."""
    there, first, renewed, second = barrier

    async def fail() -> list[object]:
        notices: list[Notice] = []
        async with ControlPlane(gateway.url, gateway.secret_key) as plane:
            cache = CredentialCache(
                tmp_path / "credentials",
                origin=gateway.url,
                api_key=gateway.secret_key,
                minter=plane,
                on_notice=notices.append,
                policy=PATIENT,
            )
            old = await cache.get(CHAT)
            there.say()
            first.wait()
            await cache.evict(CHAT, old.id, reason="401", refused=True)
            new = await cache.get(CHAT)
            renewed.say()
            second.wait()
            await cache.evict(CHAT, old.id, reason="401, late", refused=True)
            return [old.id, new.id, (await cache.get(CHAT)).id, len(notices)]

    children = [Child(lambda: asyncio.run(fail())) for _ in range(PROCESSES)]
    puts = []
    for said, go in ((there, first), (renewed, second)):
        said.wait(PROCESSES)
        puts.append(len(gateway.stats()["mints"]))
        go.say(PROCESSES)
    results = [child.result() for child in children]
    puts.append(len(gateway.stats()["mints"]))

    assert puts == [1, 2, 2]
    old, new, last, notices = zip(*results, strict=True)
    assert len(set(old)) == len(set(new)) == 1
    assert set(last) == set(new) != set(old)
    assert sum(notices) == 1
