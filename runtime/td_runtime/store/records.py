"""What the run store takes and gives: frozen structs, without a trace of the database behind it.

Times are seconds since the epoch, wall clock. Payloads and outputs are JSON text as bytes; the
store neither parses nor checks them.
"""

from enum import StrEnum
from typing import Any, ClassVar, TypeAlias

import msgspec

from td_worker.messages import RunError

__all__ = [
    "FINISHED",
    "IN_HAND",
    "READY",
    "Accepted",
    "Canceled",
    "Completed",
    "Crashed",
    "Failed",
    "NewRun",
    "Outcome",
    "Place",
    "Run",
    "RunError",
    "Status",
    "TimedOut",
]


class Status(StrEnum):
    """Where a run is in its life."""

    QUEUED = "QUEUED"
    """Accepted, or taken back from a worker; may start now."""
    DELAYED = "DELAYED"
    """Accepted, may start from `run_at` on."""
    EXECUTING = "EXECUTING"
    """Handed out to a worker."""
    WAITING = "WAITING"
    """Handed out, and waiting for its children; it takes no place."""
    RETRYING = "RETRYING"
    """An attempt failed; the next one may start from `run_at` on."""
    COMPLETED = "COMPLETED"
    """Returned an output."""
    FAILED = "FAILED"
    """Raised, and has no attempts left."""
    CRASHED = "CRASHED"
    """Took its worker down with it too often."""
    TIMED_OUT = "TIMED_OUT"
    """Ran for longer than its task allows."""
    CANCELED = "CANCELED"
    """Somebody asked for it to stop."""
    EXPIRED = "EXPIRED"
    """Did not start in the time it was given."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing happens to the run any more."""
        return self in FINISHED


READY = frozenset({Status.QUEUED, Status.DELAYED, Status.RETRYING})
"""A run that is nobody's and starts once `run_at` has come."""
IN_HAND = frozenset({Status.EXECUTING, Status.WAITING})
"""A run that a worker has."""
FINISHED = frozenset(Status) - READY - IN_HAND
"""A run that has its outcome."""


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A request to execute a task once."""

    task: str
    payload: bytes = b"null"
    parent_id: str | None = None
    """The run that triggered this one; it must be in the store."""
    idempotency_key: str | None = None
    """Of two requests for the same task with the same key, the second gets the first one's run."""
    run_at: float | None = None
    """Not to start before this time; `None` is at once."""


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a `NewRun`: it is on disk, and will be executed."""

    id: str
    created: bool
    """False when a run with the same task and idempotency key was there already."""


class Place(msgspec.Struct, frozen=True):
    """Room for one run in one worker."""

    owner: str
    """The worker; must differ for every worker process there ever was."""
    pid: int
    """Its process, for the record."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the store knows it."""

    id: str
    task: str
    status: Status
    payload: bytes
    root_id: str
    """The run at the top of the tree; its own id for a run without a parent."""
    created_at: float
    run_at: float
    """When it may start, or might have started: what the queue is ordered by."""
    parent_id: str | None = None
    idempotency_key: str | None = None
    attempt: int = 0
    """How often the run was handed out."""
    excused: int = 0
    """How many of these attempts ended through no fault of the run."""
    crashes: int = 0
    """How many of these attempts took the worker down."""
    owner: str | None = None
    """Who has the run, or recorded its outcome; `None` while nobody has it."""
    pid: int | None = None
    """The worker process of the newest attempt."""
    output: bytes | None = None
    error: RunError | None = None
    """Of the outcome, or of the newest attempt that failed while there is no outcome."""
    records_lost: int = 0
    """How many records the run's streams accepted and could not store."""
    started_at: float | None = None
    """Start of the newest attempt."""
    finished_at: float | None = None

    @property
    def attempts_used(self) -> int:
        """How many attempts count against the task's limit."""
        return self.attempt - self.excused

    def log_context(self) -> dict[str, Any]:
        """The keys that a log event about this run carries."""
        return {"run_id": self.id, "task": self.task, "attempt": self.attempt}


class Completed(msgspec.Struct, frozen=True):
    """The task returned."""

    status: ClassVar[Status] = Status.COMPLETED
    error: ClassVar[None] = None
    output: bytes = b"null"


class Failed(msgspec.Struct, frozen=True):
    """The task raised, and is not tried again."""

    status: ClassVar[Status] = Status.FAILED
    output: ClassVar[None] = None
    error: RunError


class Crashed(msgspec.Struct, frozen=True):
    """The worker died of this run, and the run is not tried again."""

    status: ClassVar[Status] = Status.CRASHED
    output: ClassVar[None] = None
    error: RunError


class TimedOut(msgspec.Struct, frozen=True):
    """The run was stopped because it ran for too long."""

    status: ClassVar[Status] = Status.TIMED_OUT
    output: ClassVar[None] = None
    error: RunError


class Canceled(msgspec.Struct, frozen=True):
    """The run was stopped because somebody asked for it."""

    status: ClassVar[Status] = Status.CANCELED
    output: ClassVar[None] = None
    error: RunError | None = None


Outcome: TypeAlias = Completed | Failed | Crashed | TimedOut | Canceled
"""How a run ended: what `finish` records."""
