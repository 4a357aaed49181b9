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
    "IDEMPOTENCY_TTL",
    "IN_HAND",
    "READY",
    "Accepted",
    "Canceled",
    "Cancellation",
    "Completed",
    "Crashed",
    "Due",
    "Failed",
    "Finish",
    "NewRun",
    "Outcome",
    "Place",
    "Pruned",
    "QueueLimits",
    "Run",
    "RunError",
    "RunQuery",
    "RunSummary",
    "Status",
    "TimedOut",
    "default_queue",
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


IDEMPOTENCY_TTL = 30 * 86_400.0
"""Seconds for which an idempotency key holds unless its request says something else."""


def default_queue(task: str) -> str:
    """Return the name of the queue that belongs to a task."""
    return f"task/{task}"


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A request to execute a task once. Limits are checked before, by who accepts."""

    task: str
    payload: bytes = b"null"
    parent_id: str | None = None
    """The run that triggered this one; it must be in the store."""
    idempotency_key: str | None = None
    """Of two requests for the same task with the same key, the second gets the first one's run."""
    idempotency_ttl: float | None = None
    """Seconds for which the key holds; `None` is `IDEMPOTENCY_TTL`."""
    run_at: float | None = None
    """Not to start before this time; `None` is at once."""
    ttl: float | None = None
    """Seconds after `run_at` by which it must have started; else it is EXPIRED."""
    priority: float = 0.0
    """Seconds of head start over runs that are ready since the same moment."""
    queue: str | None = None
    """Where it queues; `None` is the queue of its task, `task/<id>`."""
    concurrency_key: str | None = None
    """Runs of the queue with the same key share a limit of their own."""
    tags: tuple[str, ...] = ()
    max_attempts: int | None = None
    """Instead of what the task's config says."""
    max_duration: float | None = None
    """Seconds an attempt may take, instead of what the task's config says."""
    metadata: bytes | None = None
    """JSON text that goes along with the run and can be changed."""
    replay_of: str | None = None
    """The run that this one repeats."""
    stream_run_id: str | None = None
    """The id under which the run writes to run streams, if not its own."""
    triggered_by: str | None = None
    """Who asked for it, in words."""


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
    worker: int | None = None
    """Its number, for the record."""


class QueueLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many runs of a queue may execute at once; those that wait for children do not count."""

    concurrency: int | None = None
    """In all; `None`: as many as there are places."""
    per_key: int | None = None
    """With the same concurrency key; `None`: no limit of their own."""


class RunSummary(msgspec.Struct, frozen=True):
    """What lists show of a run: everything but what may be large.

    Made by name everywhere but in the store, which makes one of each row: by position that takes a
    sixth of the time.
    """

    id: str
    task: str
    status: Status
    queue: str
    root_id: str
    """The run at the top of the tree; its own id for a run without a parent."""
    created_at: float
    run_at: float
    """When it may start, or might have started."""
    priority: float = 0.0
    """Seconds by which it comes before others that are ready since the same moment."""
    parent_id: str | None = None
    concurrency_key: str | None = None
    idempotency_key: str | None = None
    tags: tuple[str, ...] = ()
    attempt: int = 0
    """How often the run was handed out."""
    excused: int = 0
    """How many of these attempts ended through no fault of the run."""
    crashes: int = 0
    """How many of these attempts took the worker down."""
    max_attempts: int | None = None
    """Instead of what the task's config says."""
    max_duration: float | None = None
    """Instead of what the task's config says."""
    expires_at: float | None = None
    """When it is EXPIRED unless it starts before; `None` once it has started."""
    replay_of: str | None = None
    stream_run_id: str | None = None
    triggered_by: str | None = None
    canceled_by: str | None = None
    """Who asked for its cancellation, in words."""
    cancel_requested_at: float | None = None
    """Since when it is to stop, whether it has or not."""
    owner: str | None = None
    """Who has the run, or recorded its outcome; `None` while nobody has it."""
    worker: int | None = None
    """The number of the worker of the newest attempt."""
    pid: int | None = None
    """The worker process of the newest attempt."""
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


class Run(RunSummary, frozen=True):
    """A run as the store knows it."""

    payload: bytes = b"null"
    metadata: bytes | None = None
    """JSON text, as it is now."""
    output: bytes | None = None
    error: RunError | None = None
    """Of the outcome, or of the newest attempt that failed while there is no outcome."""
    log_tail: str | None = None
    """The last lines it logged; of a run that is CRASHED."""


class Finish(msgspec.Struct, frozen=True):
    """How one attempt ended for good."""

    run_id: str
    attempt: int
    owner: str
    outcome: "Outcome"
    records_lost: int = 0
    task: str | None = None
    """The run's, if it is known: then the store need not look."""


class RunQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs a list shows: those that meet every condition that is given, newest first."""

    statuses: frozenset[Status] = frozenset()
    """Any of these; none given: any status."""
    tasks: frozenset[str] = frozenset()
    """Any of these."""
    tag: str | None = None
    """With this tag."""
    queue: str | None = None
    parent_id: str | None = None
    """Triggered by this run."""
    since: float | None = None
    """Accepted at this time or later."""
    until: float | None = None
    """Accepted before this time."""
    before: str | None = None
    """The page after the one that ended with this run id: only older runs."""
    after: str | None = None
    """The page before the one that began with this run id: only newer runs, those next to it."""
    limit: int = 50
    """Most runs on the page."""


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """What time has changed."""

    queued: tuple[RunSummary, ...] = ()
    """DELAYED and RETRYING → QUEUED: these may start now."""
    expired: tuple[RunSummary, ...] = ()
    """→ EXPIRED: these did not start in time."""


class Cancellation(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request to cancel runs, descendants included."""

    canceled: tuple[RunSummary, ...] = ()
    """These are CANCELED now, in the store. A worker still has those with an owner."""
    requested: tuple[RunSummary, ...] = ()
    """These execute: their workers must be told, and say when they have ended."""
    finished: tuple[str, ...] = ()
    """The ids asked for whose runs had an outcome already."""
    unknown: tuple[str, ...] = ()
    """The ids asked for that are no run's."""


class Pruned(msgspec.Struct, frozen=True):
    """What one step through the history did."""

    deleted: int
    more: bool
    """Whether the next step may find more."""


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
    log_tail: str | None = None
    """The last lines it logged."""


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
