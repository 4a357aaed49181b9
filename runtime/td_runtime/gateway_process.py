"""Starts the gateway, keeps it alive, ends it. The gateway itself is :mod:`td_runtime.gateway`."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog

from td_runtime.errors import (
    OUT_OF_ROOM,
    ExitCode,
    StoreError,
    TdRuntimeError,
    TooManyRestartsError,
)
from td_runtime.restart import Deaths, RestartPolicy

__all__ = ["GatewayProcess"]

log = structlog.get_logger()

_STOP_GRACE: Final = 3.0
"""Seconds the gateway has for the requests in flight before it is killed."""


def _raise(error: TdRuntimeError) -> None:
    raise error


class GatewayProcess:
    """The gateway as the supervisor sees it. All methods belong to the supervisor's loop.

    Args:
        settings: The document the gateway reads on stdin; goes through a pipe since it holds the
            API key, which must be in no argument list and no environment.
        keep: Descriptors it inherits (the log sink's).
        hidden: Environment variables that hold the API key, and that it does not get.

    Attributes:
        on_given_up: Called when it kept dying, cannot be started, or cannot open its store.
        ready: Set once it answers, until it dies.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        keep: tuple[int, ...],
        hidden: frozenset[str],
        on_given_up: Callable[[TdRuntimeError], None] = _raise,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._settings = settings
        self._keep = keep
        self._hidden = hidden
        self._policy = RestartPolicy()
        self._deaths = Deaths()
        self.on_given_up = on_given_up
        self._loop = loop
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._pidfd = -1
        self._ready_at: float | None = None
        self._stopping = False
        self._exited = asyncio.Event()
        self.ready = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process, None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, now or when the system has room for it.

        :attr:`ready` is set once it answers.
        """
        if self._stopping:
            return
        try:
            self._start()
        except OSError as error:  # as a failed boot: there may be room in a moment
            log.error("gateway.failed", error=f"it cannot be started: {error}")
            self._start_again(refusal=error)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._ready_at = None
        document = {**self._settings, "control_fd": theirs.fileno()}
        try:
            self._process, self._pidfd = self._launch(theirs.fileno())
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours
        self._feed(msgspec.json.encode(document))
        self._loop.add_reader(self._pidfd, self._gone)
        self._loop.add_reader(ours.fileno(), self._said_something)
        log.info("gateway.started", gateway_pid=self._process.pid)

    def _launch(self, control_fd: int) -> tuple[subprocess.Popen[bytes], int]:
        process = subprocess.Popen(
            # -P: a file of the working folder must not stand in for a module of ours.
            [sys.executable, "-P", "-m", "td_runtime.gateway"],
            stdin=subprocess.PIPE,
            env={k: v for k, v in os.environ.items() if k not in self._hidden},
            pass_fds=(control_fd, *self._keep),
            process_group=0,
        )
        try:
            return process, os.pidfd_open(process.pid)
        except OSError:
            with process:
                process.kill()
            raise

    def _feed(self, document: bytes) -> None:
        stdin = self._process.stdin if self._process else None
        if stdin is None:
            raise AssertionError("the gateway was started without a pipe")
        # It may have died at once; then its exit is the news, not the broken pipe.
        with contextlib.suppress(BrokenPipeError), stdin:
            stdin.write(document)

    def reload(self, *, allow_origins: tuple[str, ...], log_level: str) -> None:
        """Have it go by these, without an interruption; so will those that follow it."""
        log_settings = {**self._settings["log"], "level": log_level}
        settings = {**self._settings, "allow_origins": allow_origins, "log": log_settings}
        if settings == self._settings:
            return
        self._settings = settings
        if self._process is None or self._control is None:
            return
        change = {"allow_origins": allow_origins, "log_level": log_level}
        line = msgspec.json.encode(change) + b"\n"
        sent = 0
        with contextlib.suppress(OSError):
            sent = self._control.send(line, socket.MSG_DONTWAIT)
        if sent < len(line):
            # It is dead or stuck; whichever, its successor is told at its start.
            self._process.terminate()

    async def stop(self) -> None:
        """End the process: asked first, killed when it takes too long."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), _STOP_GRACE)
            return
        process.kill()
        await self._exited.wait()

    def kill(self) -> None:
        """End the process now and for good, without the loop: the start has failed."""
        self._stopping = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _said_something(self) -> None:
        """It answers, or it closed its end: then its exit is the news that follows."""
        control = self._require_control()
        self._loop.remove_reader(control.fileno())
        if control.recv(64):
            log.info("gateway.ready", gateway_pid=self.pid, port=self._settings["port"])
            self._ready_at = time.monotonic()
            self.ready.set()

    def _gone(self) -> None:
        process, control = self._process, self._require_control()
        if process is None:
            raise AssertionError("a gateway that was not started exited")
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(control.fileno())
        os.close(self._pidfd)
        control.close()
        status = process.wait()
        self._process = None
        self.ready.clear()
        self._exited.set()
        log.log(20 if self._stopping else 40, "gateway.exited", status=status)
        if self._stopping:
            return
        if status == ExitCode.STORE and self._ready_at is None:
            # Starting again would not help: somebody has to look at the file.
            self.on_given_up(
                StoreError(
                    "the gateway cannot open its store",
                    where=f"{self._settings['data_dir']}/platform.db",
                    advice="The log's gateway.failed line says why.",
                )
            )
            return
        self._start_again()

    def _start_again(self, *, refusal: OSError | None = None) -> None:
        lived = None if self._ready_at is None else time.monotonic() - self._ready_at
        try:
            restart = self._policy.after_death(
                self._deaths, lived=lived, random=random.random, who="the gateway"
            )
        except TooManyRestartsError as error:
            self.on_given_up(error if refusal is None else _refused(refusal))
            return
        self._deaths = restart.deaths
        self._exited.clear()
        log.warning("gateway.restart_scheduled", delay_s=round(restart.delay, 3))
        self._loop.call_later(restart.delay, self.start)

    def _require_control(self) -> socket.socket:
        if self._control is None:
            raise AssertionError("the gateway was not started")

        return self._control


def _refused(error: OSError) -> TooManyRestartsError:
    return TooManyRestartsError(
        f"the gateway could not be started, however often it was tried: {error.strerror}",
        advice=OUT_OF_ROOM,
    )
