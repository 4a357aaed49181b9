"""The stream store's client against a platform in memory."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from td_sharedcache.credential import Credential
from td_sharedcache.slot import Slot
from td_worker.control_plane import ControlPlane
from td_worker.errors import (
    StreamStoreAuthError,
    StreamStoreBusyError,
    StreamStoreError,
    StreamStoreRefusedError,
    StreamStoreUnreachableError,
)
from td_worker.stream_store import StreamStore
from td_worker.testing import FakePlatform

SLOT = Slot.run("run_1", "k")


async def mint(platform: FakePlatform) -> Credential:
    async with ControlPlane(platform.url, platform.secret_key) as plane:
        grant = await plane.mint(SLOT)
    return Credential.of(grant, SLOT, minted_at=0, max_age=60, freshness=0.8)


async def test_an_append_is_acked_with_its_positions(platform):
    """The ack tells where the batch begins and ends, and the tail agrees."""
    credential = await mint(platform)
    async with StreamStore() as store:
        first = await store.append(credential, [b"1", "ü".encode()])
        second = await store.append(credential, [b"3"])
        tail = await store.tail(credential)

    assert (first.start, first.end, second.start, second.end, tail) == (0, 2, 2, 3, 3)
    assert [record.body for record in platform.records("run_1", "k")] == ["1", "ü", "3"]


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (401, '{"code":"authn","message":"m"}', StreamStoreAuthError),
        (403, '{"code":"permission_denied","message":"m"}', StreamStoreAuthError),
        (408, "", StreamStoreBusyError),
        (409, '{"code":"transaction_conflict","message":"m"}', StreamStoreBusyError),
        (409, '{"code":"stream_deletion_pending","message":"m"}', StreamStoreRefusedError),
        (404, '{"code":"stream_not_found","message":"m"}', StreamStoreRefusedError),
        (412, '{"seq_num_mismatch":7}', StreamStoreRefusedError),
        (422, "not json", StreamStoreRefusedError),
        (429, "", StreamStoreBusyError),
        (500, "", StreamStoreBusyError),
        (503, '{"code":"server_draining","message":"m"}', StreamStoreBusyError),
        (301, "", StreamStoreRefusedError),
    ],
)
async def test_every_answer_has_its_error(platform, status, text, kind):
    """The status, and the code of a 409, decide between renewing, retrying and giving up."""
    credential = await mint(platform)
    platform.spoil("append", status=status, text=text, headers={"location": "http://elsewhere"})
    async with StreamStore() as store:
        with pytest.raises(StreamStoreError) as caught:
            await store.append(credential, [b"x"])

    assert type(caught.value) is kind
    assert caught.value.status == status
    assert credential.access_token not in str(caught.value)


async def test_no_answer_is_unreachable(platform):
    """A dropped connection, a closed port and a silent peer are one error with its cause."""
    credential = await mint(platform)
    platform.spoil("append")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        quiet = replace(credential, endpoint=f"http://127.0.0.1:{port}/v1")
        async with StreamStore(timeout=0.2) as store:
            for one in (credential, quiet):
                with pytest.raises(StreamStoreUnreachableError) as caught:
                    await store.append(one, [b"x"])
                assert caught.value.__cause__ is not None
    async with StreamStore() as store:
        with pytest.raises(StreamStoreUnreachableError):
            await store.append(quiet, [b"x"])


async def test_an_answer_that_is_no_ack_is_refused(platform):
    """A proxy's page with status 200 is not mistaken for durability."""
    credential = await mint(platform)
    platform.spoil("append", status=200, text="<html>")
    async with StreamStore() as store:
        with pytest.raises(StreamStoreRefusedError, match="not what S2 would say"):
            await store.append(credential, [b"x"])


async def test_an_ack_of_another_number_of_records_is_refused(platform):
    """An ack must cover exactly what was sent."""
    credential = await mint(platform)
    text = '{"start":{"seq_num":0},"end":{"seq_num":5},"tail":{"seq_num":5}}'
    platform.spoil("append", status=200, text=text)
    async with StreamStore() as store:
        with pytest.raises(StreamStoreRefusedError, match="acked 5 records of 1"):
            await store.append(credential, [b"x"])
