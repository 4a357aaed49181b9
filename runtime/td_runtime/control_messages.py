"""What is said over the control socket: requests and answers, as typed structs.

Every request names its answer; any of them may be answered by :class:`Refused` instead.
"""

from typing import Any, Final

import msgspec

from td_worker.messages import ChildOutcome, RunError, TriggerItem

__all__ = [
    "PROTOCOL_VERSION",
    "Accepted",
    "AddTags",
    "Answer",
    "CancelRuns",
    "CanceledRuns",
    "Done",
    "GetRun",
    "GetStatus",
    "GetTree",
    "Hello",
    "ListRuns",
    "ListSchedules",
    "ListTasks",
    "Refused",
    "ReplayRun",
    "Request",
    "RescheduleRun",
    "RunDetails",
    "RunItem",
    "RunView",
    "RunsPage",
    "ScheduleView",
    "SchedulesView",
    "SetMetadata",
    "StatusView",
    "StopRuntime",
    "Stopping",
    "TaskView",
    "TasksView",
    "TreeView",
    "TriggerRuns",
    "WaitForRun",
    "WorkerView",
]

PROTOCOL_VERSION: Final = 1


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message of both sides."""

    version: int = PROTOCOL_VERSION
    name: str = "client"
    """Who is calling, in a word or two. With the caller's user and process it is recorded as who
    triggered or canceled a run."""


# ------------------------------------------------------------------ requests


class TriggerRuns(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Accept runs, all or none; answered by :class:`Accepted` once they are durable (R1)."""

    items: list[TriggerItem]


class ReplayRun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Accept a run like an earlier one: task, payload, tags, queue, key and limits are the same.

    It starts at once, and has no idempotency key. Answered by :class:`Accepted`.
    """

    run_id: str
    payload: bytes | None = None
    """JSON text in place of the earlier run's payload."""


class CancelRuns(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Cancel runs; answered by :class:`CanceledRuns` once that is durable."""

    run_ids: list[str]
    descendants: bool = False
    """Whether everything below them is canceled, too."""


class SetMetadata(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Replace a run's metadata; answered by :class:`Done`."""

    run_id: str
    metadata: bytes
    """JSON text."""


class AddTags(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Give a run further tags, whatever its status; answered by :class:`Done`."""

    run_id: str
    tags: tuple[str, ...]


class RescheduleRun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Let a run that is DELAYED start at another time; answered by :class:`Done`.

    A time that has come is at once. The run's `ttl` counts from the new time.
    """

    run_id: str
    run_at: float
    """Seconds since the epoch."""


class GetRun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answered by the run's :class:`RunDetails`."""

    run_id: str


class ListRuns(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answered by :class:`RunsPage`: the runs that meet every condition, newest first."""

    statuses: frozenset[str] = frozenset()
    """Any of these; none given: any status."""
    tasks: frozenset[str] = frozenset()
    tag: str | None = None
    queue: str | None = None
    parent_id: str | None = None
    since: float | None = None
    """Accepted at this time or later, seconds since the epoch."""
    until: float | None = None
    """Accepted before this time."""
    before: str | None = None
    """Only runs older than the one with this id: the next page."""
    after: str | None = None
    """Only runs newer than the one with this id, those next to it: the page before."""
    limit: int = 50


class WaitForRun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answered by the run's :class:`RunView` once it has an outcome."""

    run_id: str


class GetTree(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answered by :class:`TreeView`: a root run and all below it."""

    root_id: str


class GetStatus(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answered by :class:`StatusView`."""


class ListTasks(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answered by :class:`TasksView`."""


class ListSchedules(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answered by :class:`SchedulesView`."""

    upcoming: int = 5
    """How many of the next ticks of each are told, at most 100."""


class StopRuntime(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Drain and stop, as SIGTERM does; answered by :class:`Stopping` at once."""

    drain_timeout: float | None = None
    """Seconds that running runs get; None: what the config says. A second request that says 0
    cuts the drain short."""


Request = (
    Hello
    | TriggerRuns
    | ReplayRun
    | CancelRuns
    | SetMetadata
    | AddTags
    | RescheduleRun
    | GetRun
    | ListRuns
    | WaitForRun
    | GetTree
    | GetStatus
    | ListTasks
    | ListSchedules
    | StopRuntime
)

# ------------------------------------------------------------------ answers


class Accepted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ids of accepted runs, in the order of the request."""

    run_ids: list[str]
    created: list[bool] = []
    """For each whether it is new; False: its idempotency key led to the run that is there."""


class CanceledRuns(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What became of a cancellation, by run id; descendants are among the first two."""

    canceled: list[str]
    """CANCELED now."""
    requested: list[str]
    """These execute: they were told to stop, and are CANCELED when they have."""
    finished: list[str]
    """Of those that were asked for: these had an outcome already."""
    unknown: list[str]
    """Of those that were asked for: there is no such run."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It is done, and durable."""


class RunItem(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A run as lists show it. Times are seconds since the epoch."""

    id: str
    task: str
    status: str
    """QUEUED, DELAYED, EXECUTING, WAITING, RETRYING, COMPLETED, FAILED, CRASHED, TIMED_OUT,
    CANCELED or EXPIRED."""
    queue: str
    root_id: str
    """The run at the top of the tree; its own id for a run without a parent."""
    created_at: float
    run_at: float
    """When it may start, or might have started."""
    priority: float = 0.0
    parent_id: str | None = None
    concurrency_key: str | None = None
    idempotency_key: str | None = None
    tags: tuple[str, ...] = ()
    attempt: int = 0
    """How often it was handed out to a worker."""
    excused: int = 0
    """How many of these attempts ended through no fault of the run."""
    crashes: int = 0
    """How many of these attempts took the worker down."""
    max_attempts: int | None = None
    max_duration: float | None = None
    expires_at: float | None = None
    replay_of: str | None = None
    triggered_by: str | None = None
    """Who asked for it, in words; None: the run `parent_id`."""
    canceled_by: str | None = None
    started_at: float | None = None
    """Start of the newest attempt."""
    finished_at: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing happens to the run any more."""
        return self.finished_at is not None


class RunDetails(RunItem, frozen=True, kw_only=True, tag=True):
    """A run with everything that is known of it."""

    payload_json: bytes
    output_json: bytes | None = None
    metadata_json: bytes | None = None
    error: RunError | None = None
    """Of the outcome, or of the newest attempt that failed while there is no outcome."""
    log_tail: str | None = None
    """The last lines it logged; of a run that is CRASHED."""
    records_lost: int = 0
    """How many records its streams accepted and could not store."""

    @property
    def payload(self) -> Any:
        """What the run was given."""
        return msgspec.json.decode(self.payload_json)

    @property
    def output(self) -> Any:
        """What the run returned; None as long as it has returned nothing."""
        return None if self.output_json is None else msgspec.json.decode(self.output_json)

    @property
    def metadata(self) -> Any:
        """The run's metadata as it is now."""
        return None if self.metadata_json is None else msgspec.json.decode(self.metadata_json)


class RunsPage(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A page of runs, newest first."""

    runs: list[RunItem]


class RunView(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How a run ended."""

    outcome: ChildOutcome
    attempt: int
    pid: int | None
    records_lost: int


class TreeView(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A root run and all below it."""

    runs: list[RunView]
    """Without outputs and tracebacks."""


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as ``status`` shows it."""

    number: int
    pid: int
    state: str
    runs: int
    restarts: int


class StatusView(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the supervisor knows of itself."""

    pid: int
    version: str
    state: str
    started_at: float
    control_plane_url: str
    gateway_pid: int | None
    workers: list[WorkerView]
    runs: dict[str, int]
    notices_dropped: int


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A registered task, as its config says."""

    id: str
    entrypoint: str
    queue: str
    concurrency: int | None
    concurrency_per_key: int | None
    max_attempts: int
    max_crashes: int
    max_duration: float | None
    ttl: float | None
    replicas: int
    """How many runs of it are kept alive; 0: it is no loop."""
    cron: str | None
    timezone: str


class TasksView(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The registered tasks, in the order of the config."""

    tasks: list[TaskView]


class ScheduleView(msgspec.Struct, frozen=True, kw_only=True):
    """The schedule of a task. Ticks are seconds since the epoch."""

    task: str
    cron: str
    timezone: str
    missed_ticks: str
    last: float | None
    """Every tick up to this time is dealt with; None: there was none yet."""
    upcoming: list[float]


class SchedulesView(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The schedules, in the order of the config's tasks."""

    schedules: list[ScheduleView]


class Stopping(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The supervisor stops; it is gone once its process has ended."""

    pid: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The request was not carried out; nothing has changed."""

    message: str
    advice: str | None = None
    code: str | None = None
    """Why, for programs: ``unknown_task``, ``unknown_run``, ``queue_full``, ``draining``,
    ``too_large`` or ``invalid``; None: something else."""


Answer = (
    Hello
    | Accepted
    | CanceledRuns
    | Done
    | RunDetails
    | RunsPage
    | RunView
    | TreeView
    | StatusView
    | TasksView
    | SchedulesView
    | Stopping
    | Refused
)
