"""What can go wrong in td-runtime, and the exit code each failure ends in.

::

    TdRuntimeError                      1  failed
    ├── UsageError                      2  usage
    ├── ConfigError                     3  config
    ├── TaskImportError                 4  task import
    ├── ControlPlaneUnavailableError    5  control plane
    ├── StoreError                      6  store or cache
    ├── TooManyRestartsError            7  too many restarts
    └── AlreadyRunningError             8  already running

Every error says what happened, where, and what to do next; the command line prints `str(error)`
and leaves with `error.exit_code`. This module imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from enum import IntEnum
from typing import ClassVar, Final

__all__ = [
    "OUT_OF_ROOM",
    "AlreadyRunningError",
    "ConfigError",
    "ControlPlaneUnavailableError",
    "ExitCode",
    "StoreError",
    "TaskImportError",
    "TdRuntimeError",
    "TooManyRestartsError",
    "UsageError",
    "naming_refusal",
]

OUT_OF_ROOM: Final = (
    "Raise what limits processes, memory and descriptors "
    "(`ulimit -a`; a unit's TasksMax= and MemoryMax=), then start again."
)
"""What to do when the system refuses a process."""


class ExitCode(IntEnum):
    """What `td-runtime` exits with; `description` is one sentence for `--help` and the docs."""

    description: str

    def __new__(cls, value: int, description: str) -> ExitCode:
        """Give the member its number and its sentence."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.description = description

        return member

    OK = 0, "Everything asked for was done."
    FAILED = 1, "The command failed, or the run that was waited for did not complete."
    USAGE = 2, "The command line was not understood."
    CONFIG = 3, "The config file, or an environment variable that overrides it, is wrong."
    TASK_IMPORT = 4, "The entrypoint of a task cannot be imported or called."
    CONTROL_PLANE = 5, "The control plane cannot be reached, or refused the secret key."
    STORE = 6, "The run store or the credential cache cannot be opened."
    TOO_MANY_RESTARTS = 7, "A process kept dying and was given up."
    ALREADY_RUNNING = 8, "Another supervisor holds the data folder."


class TdRuntimeError(Exception):
    """td-runtime failed; the log says why.

    Without `what`, the first sentence of the subclass's docstring is the message.

    Args:
        what: What happened, one sentence or several lines.
        where: The file, key, address or process it happened at.
        advice: What to do next, one sentence.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(
        self, what: str | None = None, *, where: str | None = None, advice: str | None = None
    ) -> None:
        self.what = what or _first_paragraph(type(self))
        self.where = where
        self.advice = advice
        super().__init__(self.what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  at: {self.where}")
        if self.advice:
            lines.append(f"  next: {self.advice}")

        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Exception pickles its positional arguments only: `where` and `advice` would be lost on the
        # way from a forked child. All facts of a subclass live in `__dict__`, which goes along.
        return (_rebuild, (type(self), self.args), self.__dict__)


class UsageError(TdRuntimeError):
    """The command line was not understood."""

    exit_code = ExitCode.USAGE


class ConfigError(TdRuntimeError):
    """The configuration is wrong.

    Args:
        what: The summary.
        where: The config file.
        advice: What to do next.
        problems: Every problem found, each one line that names file, key, value and rule.
    """

    exit_code = ExitCode.CONFIG

    def __init__(
        self,
        what: str | None = None,
        *,
        where: str | None = None,
        advice: str | None = None,
        problems: tuple[str, ...] = (),
    ) -> None:
        super().__init__("\n".join(problems) or what, where=where, advice=advice)
        self.problems = problems


class TaskImportError(TdRuntimeError):
    """The entrypoint of a task cannot be imported or called."""

    exit_code = ExitCode.TASK_IMPORT


class ControlPlaneUnavailableError(TdRuntimeError):
    """The control plane cannot be reached, or refused the secret key."""

    exit_code = ExitCode.CONTROL_PLANE


class StoreError(TdRuntimeError):
    """The run store or the credential cache cannot be opened."""

    exit_code = ExitCode.STORE


class TooManyRestartsError(TdRuntimeError):
    """A process kept dying and was given up."""

    exit_code = ExitCode.TOO_MANY_RESTARTS


class AlreadyRunningError(TdRuntimeError):
    """Another supervisor holds the data folder."""

    exit_code = ExitCode.ALREADY_RUNNING


@contextlib.contextmanager
def naming_refusal(what: str) -> Iterator[None]:
    """Raise TdRuntimeError, which says what to do, where the system refuses *what* a process."""
    try:
        yield
    except OSError as error:
        raise TdRuntimeError(
            f"{what} could not be forked: {error.strerror}", advice=OUT_OF_ROOM
        ) from error


def _first_paragraph(cls: type) -> str:
    """The opening of a class's docstring, which is its default message."""
    doc = inspect.getdoc(cls) or cls.__name__

    return doc.split("\n\n", maxsplit=1)[0]


def _rebuild(cls: type[TdRuntimeError], args: tuple[object, ...]) -> TdRuntimeError:
    """Make an error whose facts pickle restores from the state it carries along."""
    return cls.__new__(cls, *args)
