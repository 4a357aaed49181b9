"""
Who am I, asked from inside a task.

```python
from td_worker import context

context.run.id, context.run.parent_id, context.run.root_id
context.attempt.number, context.task.id
context.locals["session"] = session        # shared by the run's code and its hooks
context.init["database"]                   # what the `init` hooks returned
```

The execution is kept in a context variable, so concurrent async tasks of one worker never see
each other's, and a plain `def` task sees its own: the executor copies the context into its thread.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, Final, Protocol

from td_worker.errors import BlockingCallError, NotInTaskError
from td_worker.messages import ChildOutcome, TriggerItem
from td_worker.opened import OpenedStreams
from td_worker.tails import Tails

if TYPE_CHECKING:
    from td_worker.hooks import Wait
    from td_worker.streams.client import StreamClient


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """The run that is executing."""

    id: str
    parent_id: str | None = None
    """The run that triggered this one, None for a root run."""
    root_id: str | None = None
    """The run at the top of the family, None for a root run."""
    tags: tuple[str, ...] = ()
    metadata: Any = None
    """What it was triggered with, as it was when this attempt began."""
    stream_run_id: str | None = None
    """The run whose streams it writes to by default, if not its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptInfo:
    """Which hand-out of the run this is."""

    number: int
    """Counts from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """The task whose code is executing."""

    id: str


class Messenger(Protocol):
    """What a worker offers its runs for asking the supervisor; callable from any thread."""

    def trigger(self, run_id: str, attempt: int, items: list[TriggerItem]) -> Future[list[str]]:
        """Ask for runs; the future has their ids once they are durable."""
        ...

    def trigger_and_wait(
        self, run_id: str, attempt: int, items: list[TriggerItem]
    ) -> Future[list[ChildOutcome]]:
        """Ask for runs; the future has their outcomes once all have one."""
        ...

    def suspended(self, run_id: str, attempt: int) -> None:
        """Say that this run waits for input and needs no place."""
        ...

    def resumed(self, run_id: str, attempt: int) -> None:
        """Say that one wait of this run is over."""
        ...


class Unsupervised:
    """The messenger of an execution without a supervisor: it can trigger nothing."""

    def trigger(self, run_id: str, attempt: int, items: list[TriggerItem]) -> Future[list[str]]:
        """Refuse."""
        del run_id, attempt, items
        raise NotInTaskError("triggering runs")

    def trigger_and_wait(
        self, run_id: str, attempt: int, items: list[TriggerItem]
    ) -> Future[list[ChildOutcome]]:
        """Refuse."""
        del run_id, attempt, items
        raise NotInTaskError("triggering runs")

    def suspended(self, run_id: str, attempt: int) -> None:
        """There is no place to free."""

    def resumed(self, run_id: str, attempt: int) -> None:
        """There is no place to take."""


class Waits:
    """What a wait of a run means beside the wait itself; here, without an executor, nothing."""

    async def begin(self, wait: Wait) -> None:
        """The run is about to wait."""

    async def end(self, wait: Wait) -> None:
        """What it waited for is there."""

    def begin_blocked(self, wait: Wait) -> None:
        """As `begin`, for the thread of a plain `def` task."""

    def end_blocked(self, wait: Wait) -> None:
        """As `end`, for the thread of a plain `def` task."""

    def abandon(self) -> None:
        """The wait failed; callable from any thread."""


_UNSUPERVISED: Final = Unsupervised()
_NO_WAITS: Final = Waits()
_making = Lock()
"""Held while a part of an execution is made, which any of its threads may be first to ask for."""


class Execution:
    """One attempt of one run in this process, and what its code may reach.

    Most runs ask for little of it, and what nobody asks for is never made.

    Args:
        run: Which run.
        attempt: Which attempt of it.
        task: Whose code.
        streams: The process's one stream client.
        messenger: How this execution asks the supervisor for other runs.
        waits: Who is told when the run waits; see `td_worker.hooks.waiting`.
        in_chat_agent: Whether this attempt serves a chat, which shows its session's stream and none
            of the run's.
    """

    __slots__ = (
        "_calls",
        "_cancelled",
        "_has_ended",
        "_init",
        "_locals",
        "_opened",
        "_tails",
        "_warnings",
        "attempt",
        "in_chat_agent",
        "messenger",
        "run",
        "streams",
        "task",
        "waits",
    )

    def __init__(
        self,
        *,
        run: RunInfo,
        attempt: AttemptInfo,
        task: TaskInfo,
        streams: StreamClient,
        messenger: Messenger = _UNSUPERVISED,
        waits: Waits = _NO_WAITS,
        in_chat_agent: bool = False,
    ) -> None:
        self.run = run
        self.attempt = attempt
        self.task = task
        self.streams = streams
        self.messenger = messenger
        self.waits = waits
        self.in_chat_agent = in_chat_agent
        self._has_ended = False
        self._cancelled: Event | None = None
        self._opened: OpenedStreams | None = None
        self._tails: Tails | None = None
        self._locals: dict[Any, Any] | None = None
        self._init: dict[str, Any] | None = None
        self._calls: Iterator[int] | None = None
        self._warnings: Iterator[int] | None = None

    @property
    def opened(self) -> OpenedStreams:
        """Every stream this execution writes to, until it is settled; drained at the end."""
        if self._opened is None:
            with _making:
                if self._opened is None:
                    self._opened = OpenedStreams()

        return self._opened

    @property
    def tails(self) -> Tails:
        """What this execution has of the channels and input streams it reads."""
        if self._tails is None:
            with _making:
                if self._tails is None:
                    self._tails = Tails()
                if self._has_ended:
                    # Something that the run has left behind reads on.
                    self._tails.close()

        return self._tails

    @property
    def cancelled(self) -> Event:
        """Set when the attempt is to end; an async task is cancelled, too."""
        if self._cancelled is None:
            with _making:
                if self._cancelled is None:
                    self._cancelled = Event()

        return self._cancelled

    @property
    def locals(self) -> dict[Any, Any]:
        """A place for whatever the code of this execution shares with its hooks."""
        if self._locals is None:
            with _making:
                if self._locals is None:
                    self._locals = {}

        return self._locals

    @property
    def init(self) -> dict[str, Any]:
        """What the `init` hooks returned, merged."""
        if self._init is None:
            with _making:
                if self._init is None:
                    self._init = {}

        return self._init

    @property
    def has_streams(self) -> bool:
        """Whether it has written to any stream."""
        return self._opened is not None

    def end(self) -> None:
        """It has ended: stop reading, and mean nothing by waits any more."""
        self._has_ended = True
        if self._tails is not None:
            self._tails.close()
        # They lead back here: only the garbage collector would free what knows each other.
        self.waits = _NO_WAITS

    def next_call(self) -> int:
        """Return the number of this waiting call: the same in every attempt of the run (R9)."""
        if self._calls is None:
            with _making:
                self._calls = self._calls or itertools.count()

        return next(self._calls)

    def is_first_misuse(self) -> bool:
        """Say, once an attempt, that a chat agent uses a run's stream; from any thread."""
        if self._warnings is None:
            with _making:
                self._warnings = self._warnings or itertools.count()

        return self.in_chat_agent and next(self._warnings) == 0

    def serving_chat(self) -> Execution:
        """Return this execution as one that serves a chat.

        It shows its session's stream and none of the run's; everything else is the same.
        """
        # Made now, or each of the two would make its own.
        _ = self.opened, self.tails, self.cancelled, self.locals, self.init
        with _making:
            self._calls = self._calls or itertools.count()
            self._warnings = self._warnings or itertools.count()
        served = copy.copy(self)
        served.in_chat_agent = True

        return served


run: RunInfo
"""The current run; raises NotInTaskError outside a task."""
attempt: AttemptInfo
"""The current attempt; raises NotInTaskError outside a task."""
task: TaskInfo
"""The current task; raises NotInTaskError outside a task."""
locals: dict[Any, Any]  # noqa: A001  upstream's name, and only ever used as context.locals
"""This execution's key/value store; empty at the start of each attempt."""
init: dict[str, Any]
"""What the `init` hooks of this execution returned, merged."""

_execution: ContextVar[Execution] = ContextVar("td_worker_execution")


def current() -> Execution:
    """
    Return the execution whose code is calling.

    Raises:
        NotInTaskError: No task is running in this context.
    """
    execution = _execution.get(None)
    if execution is None:
        raise NotInTaskError

    return execution


def try_current() -> Execution | None:
    """Return the execution whose code is calling, None outside a task."""
    return _execution.get(None)


def enter(execution: Execution) -> None:
    """Make `execution` the current one for as long as this context lives; for the executor."""
    _execution.set(execution)


@contextmanager
def executing(execution: Execution) -> Iterator[Execution]:
    """Make `execution` the current one for the block; for the executor and for tests."""
    token = _execution.set(execution)
    try:
        yield execution
    finally:
        _execution.reset(token)


def is_cancelled() -> bool:
    """
    Whether the current attempt is to end: canceled, over its time, or its worker is draining.

    For plain `def` tasks, which nobody can interrupt: look now and then, and return.

    ```python
    def import_rows(rows):
        for row in rows:
            if context.is_cancelled():
                return
            print(row)
    ```
    """
    return current().cancelled.is_set()


def refuse_on_event_loop(call: str) -> None:
    """
    Refuse a blocking call made on an event loop, where it would stop every other task.

    Raises:
        BlockingCallError: An event loop runs in this thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise BlockingCallError(call)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in {"run", "attempt", "task", "locals", "init"}:
            return getattr(current(), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
