"""The gateway process: from its settings on standard input to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from td_runtime.errors import ExitCode
from td_runtime.gateway.app import build_app
from td_runtime.gateway.errors import GatewayError, StoreOpenError
from td_runtime.gateway.guard import Guard
from td_runtime.gateway.journal import Journal
from td_runtime.gateway.platform import Platform
from td_runtime.gateway.platform.access import load_jwt
from td_runtime.gateway.server import GatewayServer, listen
from td_runtime.gateway.settings import Change, Settings, parse_settings

STOP_S: Final = 2.0  # for requests in flight, when asked to stop
LAST_WORDS_S: Final = 0.5  # for open sessions to say why they end
ORPHAN_STOP_S: Final = 0.7  # the same, when the supervisor is gone
EXPIRE_INTERVAL_S: Final = 3600.0
SWITCH_INTERVAL_S: Final = 0.001
PR_SET_PDEATHSIG: Final = 1


def main() -> int:
    """Run the gateway until it is told to stop; returns the exit code."""
    _leave_terminal()
    try:
        settings = parse_settings(sys.stdin.buffer.read())
    except GatewayError as error:
        sys.stderr.write(f"td_runtime.gateway: {error}\n")
        return ExitCode.FAILED
    # The writer thread commits while the loop computes; at the default of 5 ms each of its
    # returns from SQLite would wait that long for the interpreter lock.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    journal = Journal(settings.log, secrets=[settings.secret_key])
    try:
        return asyncio.run(Gateway(settings, journal).run())
    except GatewayError as error:
        journal.write("error", "gateway.failed", error=str(error))
        return ExitCode.STORE if isinstance(error, StoreOpenError) else ExitCode.FAILED
    except Exception as error:  # noqa: BLE001  the last resort: say it, and exit with a code
        journal.write("error", "gateway.failed", error=repr(error), exc_info=error)
        return ExitCode.FAILED
    finally:
        journal.close()


class Gateway:
    """One gateway on the running event loop: open, serve, say READY, wait, stop."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._stop = asyncio.Event()
        self._guard: Guard | None = None
        self._grace_s = STOP_S
        self._told = b""
        self._bound = asyncio.Event()

    async def run(self) -> int:
        """Serve until told to stop.

        Raises:
            StoreOpenError: The platform's file cannot be opened.
            PortUnavailableError: The port cannot be listened on.
        """
        self._listen_for_end()
        platform = Platform.open(self._settings.data_dir)
        try:
            return await self._serve(platform)
        finally:
            platform.close()

    async def _serve(self, platform: Platform) -> int:
        server = await self._make_server(platform)
        serving = asyncio.create_task(server.serve())
        await self._say_ready(serving)
        chores = asyncio.create_task(self._do_chores(platform))
        await _wait_first(serving, chores, self._stop.wait())
        if chores.done():  # it ends by an error alone: logs that cannot be written, say
            chores.result()
        chores.cancel()
        platform.stop()
        await self._let_finish()
        server.end()
        is_clean = await self._finish(serving)
        self._journal.write("info", "gateway.stopped", is_clean=is_clean)
        if not is_clean:
            _leave(platform, self._journal)

        return ExitCode.OK if self._stop.is_set() else ExitCode.FAILED

    async def _let_finish(self) -> None:
        """Return when what open sessions say last is on its way.

        A client that is first told that the connection ends reads nothing else.
        """
        with contextlib.suppress(TimeoutError, OSError, EOFError):
            async with asyncio.timeout(LAST_WORDS_S):
                if self._guard is not None:
                    await self._guard.settled()
                # The server's one thread takes what it is given in turn: when it has answered a
                # request that comes now, it has written what it was given before.
                await _ask_health(self._settings)

    async def _make_server(self, platform: Platform) -> GatewayServer:
        listener = await listen(self._settings.host, self._settings.port)
        self._guard = build_app(platform, self._settings, self._journal)
        server = GatewayServer(self._guard, listener)
        server.on_startup(self._bound.set)

        return server

    async def _say_ready(self, serving: asyncio.Task[None]) -> None:
        await _wait_first(serving, self._bound.wait())
        if serving.done():
            serving.result()
        await _ask_health(self._settings)
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone; its end says so too
            os.write(self._settings.control_fd, b"READY\n")

    async def _do_chores(self, platform: Platform) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._journal.prepare)
        await loop.run_in_executor(None, load_jwt)  # or the first token would hold up the loop
        self._journal.write("info", "gateway.opened", address=self._settings.netloc)
        while True:
            await self._expire(platform)
            await asyncio.sleep(EXPIRE_INTERVAL_S)

    async def _expire(self, platform: Platform) -> None:
        try:
            count = await platform.expire()
        except GatewayError as error:  # a full disk, say; an hour later there may be room
            self._journal.write("error", "records.expiry_failed", error=str(error))
            return
        if count:
            self._journal.write("info", "records.expired", count=count)

    async def _finish(self, serving: asyncio.Task[None]) -> bool:
        done, _ = await asyncio.wait({serving}, timeout=self._grace_s)
        return bool(done)

    def _listen_for_end(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_reader(self._settings.control_fd, self._read_control)

    def _read_control(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            if said := os.read(self._settings.control_fd, 4096):
                *lines, self._told = (self._told + said).split(b"\n")
                for line in lines:
                    self._follow(msgspec.json.decode(line, type=Change))
                return
        asyncio.get_running_loop().remove_reader(self._settings.control_fd)
        self._grace_s = ORPHAN_STOP_S
        self._stop.set()

    def _follow(self, change: Change) -> None:
        # Before there is a guard: it is made with these settings.
        self._settings = msgspec.structs.replace(self._settings, allow_origins=change.allow_origins)
        if self._guard is not None:
            self._guard.allow_origins(change.allow_origins)
        self._journal.set_level(change.log_level)


def _leave_terminal() -> None:
    """Let the supervisor decide when to end: not the terminal, and not outliving it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def _wait_first(*awaited: asyncio.Task[None] | Coroutine[Any, Any, object]) -> None:
    """Return when the first is done; tasks that were given go on, coroutines are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in awaited]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for one, task in zip(awaited, tasks, strict=True):
        if one is not task:
            task.cancel()


async def _ask_health(settings: Settings) -> None:
    """Return when the server answers a request of ours."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  compared, not bound
    reader, writer = await asyncio.open_connection(host, settings.port)
    try:
        writer.write(
            f"GET /healthz HTTP/1.1\r\nhost: localhost:{settings.port}\r\n"
            "connection: close\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n")
    finally:
        writer.close()


def _leave(platform: Platform, journal: Journal) -> None:
    """End at once, past the server's threads, which still hold connections."""
    platform.close()
    journal.close()
    os._exit(ExitCode.OK)
