"""Checks payloads against the type hints of tasks before runs are accepted.

The supervisor never imports task code, and a JSON schema does not say all that a type does. So a
forked child imports the tasks that have hints, and decodes payloads exactly as a worker would; what
it says of one that does not fit is what the run would have failed with.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Final

import msgspec
import structlog

from td_runtime.admission import TriggerError
from td_runtime.config import Config
from td_runtime.fork import Child, Guard, fork_child
from td_runtime.inspector import task_specs
from td_worker.channel import Channel
from td_worker.errors import TaskLoadError, TaskPayloadError
from td_worker.messages import MAX_FRAME, TriggerItem, decode_frames, encode_frame
from td_worker.task import Task, TaskSpec, load_task

__all__ = ["PayloadChecker"]

log = structlog.get_logger()

_PATIENCE: Final = 5.0
"""Seconds that an answer may take; a type that needs longer is not waited for."""

_PART_BYTES: Final = 16 * 1024 * 1024
"""Bytes of payloads in one question; one alone may have more."""


class _Question(msgspec.Struct, frozen=True):
    number: int
    items: list[TriggerItem]


class _Answer(msgspec.Struct, frozen=True):
    number: int
    problem: str | None


class PayloadChecker:
    """The child, and the questions it has not answered yet. Belongs to the supervisor's loop.

    A child that dies or hangs is replaced at the next question. What it cannot answer is accepted:
    the run says the same when it starts.

    Args:
        config: The configuration.
        typed: The ids of the tasks whose payloads have a type.
        keep: Descriptors the child needs: where it logs to.
        guard: Told which process must not outlive this one.
        loop: The supervisor's.
    """

    def __init__(
        self,
        config: Config,
        typed: Collection[str],
        *,
        keep: Iterable[int],
        guard: Guard,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._config = config
        self._typed = frozenset(typed)
        self._keep = tuple(keep)
        self._guard = guard
        self._loop = loop
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[str | None]] = {}
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._child: Child | None = None
        self._channel: Channel[_Answer] | None = None

    def start(self) -> None:
        """Fork the child, where there is a task that needs it."""
        if self._typed and self._child is None:
            self._fork()

    def close(self) -> None:
        """End the child."""
        if self._channel is not None:
            self._channel.close()

    async def retire(self) -> None:
        """End the child once what is being checked has its answers; nothing more may be asked."""
        await self._idle.wait()
        self.close()

    async def check(self, items: Iterable[TriggerItem]) -> None:
        """Check what one request asks for.

        Raises:
            TriggerError: A payload does not fit; the message names the task, key and value.
        """
        typed = [item for item in items if item.task in self._typed]
        if not typed:
            return
        with self._busy():
            for part in _parts(typed):
                problem = await self._ask(part)
                if problem is not None:
                    raise TriggerError(problem)

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _ask(self, items: list[TriggerItem]) -> str | None:
        try:
            self.start()
        except OSError as error:
            _say_unchecked(f"it cannot be forked: {error}")
            return None
        number = next(self._numbers)
        answer = self._waiting[number] = self._loop.create_future()
        if self._channel is not None:
            self._channel.send(_Question(number, items))
        try:
            return await asyncio.wait_for(answer, _PATIENCE)
        except TimeoutError:
            self.close()
            _say_unchecked(f"no answer within {_PATIENCE:g} s")
            return None
        finally:
            self._waiting.pop(number, None)

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        specs = [spec for spec in task_specs(self._config) if spec.id in self._typed]
        try:
            self._child = fork_child(
                lambda: _serve(self._config, specs, theirs),
                name="td-payloads",
                keep=[theirs.fileno(), *self._keep],
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._guard.guard(self._child.pid)
        self._channel = Channel(
            ours,
            decoder=msgspec.msgpack.Decoder(_Answer),
            on_message=self._answered,
            on_closed=self._gone,
            loop=self._loop,
        )

    def _answered(self, answer: _Answer) -> None:
        waiting = self._waiting.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.problem)

    def _gone(self, _reason: Exception | None) -> None:
        """The child is dead, or is to be: whoever waits for it waits no more."""
        child, self._child, self._channel = self._child, None, None
        if child is not None:
            child.kill_group()
            child.reap()
            self._guard.unguard(child.pid)
        for waiting in self._waiting.values():
            if not waiting.done():
                _say_unchecked("the process that checks payloads has died")
                waiting.set_result(None)


def _say_unchecked(reason: str) -> None:
    log.warning("payload.unchecked", reason=reason)


def _parts(items: list[TriggerItem]) -> Iterable[list[TriggerItem]]:
    """Divide *items* into questions that fit into a frame."""
    part: list[TriggerItem] = []
    size = 0
    for item in items:
        if part and size + len(item.payload) > _PART_BYTES:
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item.payload)
    if part:
        yield part


def _serve(config: Config, specs: list[TaskSpec], sock: socket.socket) -> int:
    """The child's part: answer until the socket closes."""
    # What modules print at import must not end up in a command's output on stdout.
    os.dup2(2, 1)
    for name in config.secret_variables:
        os.environ.pop(name, None)
    sys.path.append(str(config.folder))
    try:
        tasks = {spec.id: load_task(spec) for spec in specs}
    except TaskLoadError:
        return 1
    decoder = msgspec.msgpack.Decoder(_Question)
    incoming = bytearray()
    while data := _receive(sock):
        incoming += data
        for body in decode_frames(incoming, limit=MAX_FRAME):
            question = decoder.decode(body)
            answer = _Answer(question.number, _problem(tasks, question.items))
            sock.sendall(encode_frame(answer))

    return 0


def _problem(tasks: dict[str, Task], items: list[TriggerItem]) -> str | None:
    for item in items:
        try:
            tasks[item.task].decode(item.payload)
        except TaskPayloadError as error:
            return str(error)

    return None


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(256 * 1024)
    except ConnectionResetError:
        return b""  # the supervisor was killed with answers unread
