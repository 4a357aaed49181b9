"""Code around the runs of a task: what is called when, and what it is given.

Hooks are functions with fixed names, in a module or on an object that the config file names::

    hooks = "lifecycle"                 # for every task: lifecycle.py

    [[tasks]]
    id = "answer"
    entrypoint = "tasks:answer"
    hooks = "tasks:answer_hooks"        # for this one: an object in tasks.py

A hook is `async def` or plain `def` (called in a thread), and names as parameters what it wants of
what there is for it (:data:`ARGUMENTS`)::

    # lifecycle.py
    from td_worker.hooks import Caught

    async def on_failure(payload, error):
        await tell_somebody(payload, error)

    def catch_error(error):
        if isinstance(error, QuotaExceeded):
            return Caught(retry_delay=3600)

One attempt, from the outside in: middleware → init → on_start (first attempt only) →
on_start_attempt → the task → on_success or on_failure → on_complete → cleanup → the streams.
Shared hooks come before the task's own; with catch_error it is the other way round.
"""

import difflib
import importlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType, ModuleType
from typing import Any, Final, Literal, TypeAlias

from td_worker import context
from td_worker.retry import RetryPolicy

__all__ = [
    "ARGUMENTS",
    "Caught",
    "Hook",
    "HookError",
    "HookSet",
    "Next",
    "Result",
    "Wait",
    "load_hooks",
    "waiting",
    "waiting_blocked",
]

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "middleware": ("payload", "call_next"),
        "init": ("payload",),
        "on_start": ("payload", "init"),
        "on_start_attempt": ("payload", "init"),
        "on_success": ("payload", "init", "output"),
        "on_failure": ("payload", "init", "error"),
        "on_complete": ("payload", "init", "result"),
        "on_cancel": ("payload", "init", "ended"),
        "on_wait": ("payload", "init", "wait"),
        "on_resume": ("payload", "init", "wait"),
        "catch_error": ("payload", "init", "error", "retry_at", "retry_delay"),
        "cleanup": ("payload", "init"),
    }
)
"""Every hook, and the names of what it can ask for."""

Next: TypeAlias = Callable[[], Awaitable[None]]
"""What `async def` middleware calls for what is inside it; in plain `def` middleware it blocks."""


class HookError(Exception):
    """A hook that cannot be found or called; the message says which one and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How an attempt ended that no other follows: what `on_complete` gets."""

    ok: bool
    output: Any = None
    """What the task returned."""
    error: BaseException | None = None
    """What it raised, or what `catch_error` put in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What a run waits for: what `on_wait` and `on_resume` get."""

    type: Literal["task", "batch", "input", "token", "duration"]
    """`task` and `batch` are child runs, `input` is a record of a session or an input stream."""
    ids: tuple[str, ...] = ()
    """The task ids, or the stream, that is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """What `catch_error` returns to decide about a failure; the first hook that does so decides.

    Without any of `retry_at`, `retry_delay` and `retry` no attempt follows. ::

        Caught(skip_retrying=True)
        Caught(retry_delay=30)
        Caught(retry=RetryPolicy(max_attempts=10, min_timeout=5), error=Unavailable())
    """

    skip_retrying: bool = False
    """Fail now, whatever else is said here."""
    retry_at: datetime | float | None = None
    """When the next attempt starts: an aware datetime, or seconds since the epoch."""
    retry_delay: float | None = None
    """Seconds until the next attempt."""
    retry: RetryPolicy | None = None
    """A policy in place of the task's: says whether an attempt is left, and when."""
    error: BaseException | None = None
    """Recorded instead of what was raised."""

    def __post_init__(self) -> None:
        if isinstance(self.retry_at, datetime) and self.retry_at.tzinfo is None:
            raise ValueError("retry_at needs a datetime with a time zone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One function, found and checked."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    wants: tuple[str, ...]
    """Which of :data:`ARGUMENTS` it takes."""
    where: str
    """Its place, for messages."""

    def arguments(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what it asks for out of *facts*."""
        return {name: facts[name] for name in self.wants}


@dataclass(frozen=True, slots=True)
class HookSet:
    """The hooks of one task; false when there are none."""

    shared: Mapping[str, tuple[Hook, ...]] = field(default_factory=dict)
    own: Mapping[str, tuple[Hook, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.shared or self.own)

    def named(self, name: str) -> tuple[Hook, ...]:
        """Return the hooks of that name in the order in which they are called."""
        shared, own = self.shared.get(name, ()), self.own.get(name, ())

        return own + shared if name == "catch_error" else shared + own


def load_hooks(shared: Iterable[str], own: Iterable[str]) -> HookSet:
    """Import the modules and objects that these entrypoints name, and find their hooks.

    Runs the modules' code: only ever in a forked child, never in the supervisor.

    Raises:
        HookError: A module or object is not there, has no hook, or has one that cannot be called
            with what there is for it.
    """
    return HookSet(_load_all(shared), _load_all(own))


@asynccontextmanager
async def waiting(wait: Wait) -> AsyncIterator[None]:
    """Let the block be a wait of the current run: its time stands still, its hooks are called.

    Calls `on_wait` before and `on_resume` after; what they raise comes out of here. A wait that
    fails or is cancelled has no `on_resume`.
    """
    waits = context.current().waits
    await waits.begin(wait)
    try:
        yield
    except BaseException:
        waits.abandon()
        raise
    await waits.end(wait)


@contextmanager
def waiting_blocked(wait: Wait) -> Iterator[None]:
    """The twin of :func:`waiting` for plain `def` tasks."""
    waits = context.current().waits
    waits.begin_blocked(wait)
    try:
        yield
    except BaseException:
        waits.abandon()
        raise
    waits.end_blocked(wait)


def _load_all(places: Iterable[str]) -> dict[str, tuple[Hook, ...]]:
    found: dict[str, tuple[Hook, ...]] = {}
    for place in places:
        for hook in _load_place(place):
            found[hook.name] = (*found.get(hook.name, ()), hook)

    return found


def _load_place(place: str) -> list[Hook]:
    holder = _find(place)
    _refuse_misspelt(place, holder)
    hooks = [
        _hook(name, function, f"{place}.{name}" if ":" in place else f"{place}:{name}")
        for name in ARGUMENTS
        if (function := getattr(holder, name, None)) is not None
    ]
    if not hooks:
        raise HookError(f"{place!r} has no hook; hooks are named {', '.join(ARGUMENTS)}")

    return hooks


def _find(place: str) -> Any:
    name, _, path = place.partition(":")
    try:
        found: Any = importlib.import_module(name)
    # Whatever that code does at import, it is told as the failure of this entrypoint.
    except BaseException as error:
        raise HookError(f"importing {name!r} raised {type(error).__name__}: {error}") from error
    for attribute in path.split(".") if path else ():
        try:
            found = getattr(found, attribute)
        except AttributeError as error:
            raise HookError(f"{name!r} has no {path!r}") from error

    return found() if inspect.isclass(found) else found


def _refuse_misspelt(place: str, holder: Any) -> None:
    """Refuse a function that is nearly named like a hook: it would never be called."""
    for name in dir(holder):
        if not name.startswith("on_") or name in ARGUMENTS:
            continue
        function = getattr(holder, name, None)
        is_own = not isinstance(holder, ModuleType) or (
            getattr(function, "__module__", None) == holder.__name__
        )
        near = difflib.get_close_matches(name, ARGUMENTS, n=1, cutoff=0.8)
        if callable(function) and is_own and near:
            raise HookError(f"{place!r} has {name!r}, no hook; did you mean {near[0]!r}?")


def _hook(name: str, function: Any, where: str) -> Hook:
    if not callable(function):
        raise HookError(f"{where} is {type(function).__name__}, no function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise HookError(
            f"{where} is a generator; middleware calls `call_next()` in place of `yield`"
        )

    return Hook(
        name=name,
        function=function,
        is_async=inspect.iscoroutinefunction(function),
        wants=_wanted(name, function, where),
        where=where,
    )


def _wanted(name: str, function: Any, where: str) -> tuple[str, ...]:
    there = ARGUMENTS[name]
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise HookError(f"{where} has no signature that can be read: {error}") from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return there
    for parameter in parameters:
        if parameter.name in there and parameter.kind is not parameter.POSITIONAL_ONLY:
            continue
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            raise HookError(
                f"{where} wants {parameter.name!r}; by name there are {', '.join(there)}"
            )

    return tuple(parameter.name for parameter in parameters if parameter.name in there)
