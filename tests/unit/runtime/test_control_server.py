"""The supervisor's end of the control socket: who is accepted, and who is heard."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from td_runtime import control_server
from td_runtime.control_messages import Answer, Done, GetStatus, Hello, Refused, Request
from td_runtime.control_server import ControlServer
from td_runtime.data_dir import DataDir
from td_runtime.errors import TdRuntimeError
from td_worker.messages import decode_frames, encode_frame


class Listening:
    """A server whose requests are all answered with `Done`."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = DataDir(folder)
        self.loop = asyncio.get_running_loop()
        self.server = ControlServer(self.data_dir, self.handle, self.loop)
        self.client = socket.socket(socket.AF_UNIX)
        self.hung_up = asyncio.Event()

    def handle(
        self, _: Request, __: str, send: Callable[[msgspec.Struct], None]
    ) -> Callable[[], None]:
        send(Done())
        return self.hung_up.set

    async def call(self) -> None:
        self.client.setblocking(False)
        with self.data_dir.control_address() as address:
            await self.loop.sock_connect(self.client, address)

    async def ask(self, request: msgspec.Struct) -> object:
        await self.loop.sock_sendall(self.client, encode_frame(request))
        incoming = bytearray()
        while not (bodies := decode_frames(incoming, limit=65536)):
            incoming += await asyncio.wait_for(self.loop.sock_recv(self.client, 65536), 10)

        return msgspec.msgpack.decode(bodies[0], type=Answer)

    def close(self) -> None:
        self.server.close()
        self.client.close()


@pytest.fixture(name="listening")
async def _listening(tmp_path: Path) -> AsyncIterator[Listening]:
    listening = Listening(tmp_path)
    yield listening
    listening.close()


@pytest.mark.parametrize("first", [None, Hello(version=99)])
async def test_nobody_is_heard_without_a_hello(listening: Listening, first: Hello | None) -> None:
    """Before a hello of this version every request is refused; after it they are answered."""
    await listening.call()
    if first is not None:
        assert isinstance(await listening.ask(first), Refused)

    assert isinstance(await listening.ask(GetStatus()), Refused)
    assert isinstance(await listening.ask(Hello()), Hello)
    assert isinstance(await listening.ask(GetStatus()), Done)


async def test_a_client_that_hangs_up_withdraws_its_request(listening: Listening) -> None:
    """What nobody waits for any more is told so."""
    await listening.call()
    await listening.ask(Hello())
    await listening.ask(GetStatus())
    assert not listening.hung_up.is_set()

    listening.client.close()

    await asyncio.wait_for(listening.hung_up.wait(), 10)


async def test_no_descriptor_left_makes_no_storm(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that cannot be accepted wakes the loop once, and is accepted after the pause."""
    monkeypatch.setattr(control_server, "_PAUSE", 0.05)
    listener = listening.server._listener
    tries = asyncio.Queue[float]()

    class Full:
        """The listener, while the process is out of descriptors."""

        def fileno(self) -> int:
            return listener.fileno()

        def accept(self) -> object:
            tries.put_nowait(listening.loop.time())
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(listening.server, "_listener", Full())
    await listening.call()
    first = await asyncio.wait_for(tries.get(), 10)
    second = await asyncio.wait_for(tries.get(), 10)
    monkeypatch.setattr(listening.server, "_listener", listener)

    assert second - first >= 0.049
    assert isinstance(await listening.ask(Hello()), Hello)


async def test_a_socket_that_cannot_be_made_is_told_in_words(tmp_path: Path) -> None:
    """Whatever is in its place: the error names it, and no descriptor is left."""
    data_dir = DataDir(tmp_path)
    data_dir.control_socket.mkdir()
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(TdRuntimeError) as caught:
        ControlServer(data_dir, lambda *_: lambda: None, asyncio.get_running_loop())

    assert str(caught.value) == (
        "the control socket cannot be made: Is a directory\n"
        f"  at: {data_dir.control_socket}\n"
        "  next: Look whether something else is in its place, or the disk is full."
    )
    assert len(os.listdir("/proc/self/fd")) == before
