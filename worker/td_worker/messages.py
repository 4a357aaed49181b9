"""What supervisor and worker say to each other, and what travels over the control socket.

Every message is a typed struct in one frame: four bytes of length, then msgpack.
Nothing is ever unpickled, so a worker that went mad can at worst send nonsense, which is refused.
"""

import struct
from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

__all__ = [
    "EXIT_TASK_IMPORT",
    "Assign",
    "AssignedRun",
    "CancelRun",
    "ChildOutcome",
    "ChildrenDone",
    "ChildrenPostponed",
    "Drain",
    "Drained",
    "FrameTooLargeError",
    "FromSupervisor",
    "FromWorker",
    "InterruptRun",
    "Leaving",
    "NoticeSent",
    "Outcomes",
    "Overdue",
    "Ping",
    "Pong",
    "Ready",
    "Resumed",
    "RunError",
    "RunOutcome",
    "Stalled",
    "Suspended",
    "Trigger",
    "TriggerItem",
    "TriggerRefused",
    "Triggered",
    "Welcome",
    "decode_frames",
    "encode_frame",
    "parts",
]

PartT = TypeVar("PartT", "AssignedRun", "RunOutcome", "ChildOutcome")

_HEADER: Final = struct.Struct(">I")

EXIT_TASK_IMPORT: Final = 4
"""Exit status of a worker whose tasks cannot be imported: starting it again would not help."""

MAX_FRAME: Final = 64 * 1024 * 1024
"""Bytes in one frame between supervisor and worker; several payloads of 10 MiB fit. A list that
may be larger travels in parts (:func:`parts`)."""

MAX_CONTROL_FRAME: Final = 16 * 1024 * 1024
"""Bytes in one frame of the control socket (design §3)."""


class FrameTooLargeError(ValueError):
    """A frame announced more bytes than the channel carries; the peer is broken or foreign."""


class RunError(msgspec.Struct, frozen=True, kw_only=True):
    """Why an attempt failed, as it is recorded (R6)."""

    type: str
    message: str
    traceback: str = ""
    retryable: bool = True
    code: str | None = None
    """The control plane's name for a failure that is not the task's own, as TASK_INPUT_ERROR."""


class AssignedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run handed out to a worker for one attempt."""

    id: str
    task: str
    payload: bytes
    """JSON text."""
    attempt: int
    parent_id: str | None
    root_id: str
    attempts_used: int | None = None
    """How many attempts count against the limit, this one included; None: all of them."""
    max_attempts: int | None = None
    """In place of the task's."""
    max_duration: float | None = None
    """Seconds this attempt may take, in place of the task's."""
    tags: tuple[str, ...] = ()
    metadata: bytes | None = None
    """JSON text, as it was at hand-out."""
    stream_run_id: str | None = None
    """The id under which the run writes to run streams, if not its own."""


class TriggerItem(msgspec.Struct, frozen=True, kw_only=True):
    """One run that is asked for."""

    task: str
    payload: bytes = b"null"
    idempotency_key: str | None = None
    idempotency_ttl: float | None = None
    """Seconds for which the key holds; None: 30 days."""
    run_at: float | None = None
    """Not to start before this time, seconds since the epoch; None: at once."""
    ttl: float | None = None
    """Seconds within which it must start, or it expires; None: what the task's config says."""
    priority: float = 0.0
    """Seconds of head start over runs that are ready since the same moment."""
    queue: str | None = None
    concurrency_key: str | None = None
    tags: tuple[str, ...] = ()
    max_attempts: int | None = None
    max_duration: float | None = None
    """Seconds an attempt may take, in place of the task's."""
    metadata: bytes | None = None
    """JSON text."""
    replay_of: str | None = None
    stream_run_id: str | None = None
    """The id that the run's streams are written under, if not its own."""


class ChildOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a child run ended, for the parent that waited for it."""

    id: str
    task: str
    status: str
    output: bytes | None = None
    error: RunError | None = None


class RunOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt ended.

    ``status`` is COMPLETED, FAILED, TIMED_OUT or CANCELED; INTERRUPTED means that a drain stopped
    the attempt, so that the run goes back to the queue and nobody is blamed (R8).
    """

    run_id: str
    attempt: int
    status: str
    output: bytes | None = None
    error: RunError | None = None
    records_lost: int = 0
    retry_at: float | None = None
    """When a FAILED run is tried again, seconds since the epoch; None: it is not."""
    took: float | None = 0.0
    """Seconds from its first line to its outcome; None: it never began, and was given back."""


# ------------------------------------------------------------------ supervisor -> worker


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message: the API key travels here, so that it is in no environment."""

    secret_key: str


class Assign(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Runs to execute."""

    runs: list[AssignedRun]
    """To begin now."""
    ahead: list[AssignedRun] = []
    """To begin, in this order, when others end; those that cannot soon are given back."""


class CancelRun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Cancel this attempt: an async task sees cancellation."""

    run_id: str
    attempt: int


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Does the process live? Its runtime thread answers, whatever task code does."""


class InterruptRun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """End this attempt, so that the run goes back to the queue and starts in another worker."""

    run_id: str
    attempt: int


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """No more runs will come: finish those under way within ``timeout`` seconds, then leave."""

    timeout: float


class Triggered(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to :class:`Trigger`: the runs are accepted and durable (R1)."""

    request: int
    run_ids: list[str]


class TriggerRefused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to :class:`Trigger`: nothing was accepted, and why."""

    request: int
    message: str


class ChildrenDone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Second answer to a waiting :class:`Trigger`: every child has an outcome.

    Comes in parts, since outputs may be large; the last part says so.
    """

    request: int
    outcomes: list[ChildOutcome]
    last: bool = True


class ChildrenPostponed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Instead of :class:`ChildrenDone`: the supervisor stops before it can start some child.

    The run that waits is interrupted; it finds its children again in its next attempt (R9).
    """

    request: int
    run_id: str
    attempt: int


class NoticeSent(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A notice (design §5): travels worker -> supervisor -> all other workers; holds no token."""

    slot: str | None
    credential_id: str | None
    reason: str
    pid: int
    at: float


# ------------------------------------------------------------------ worker -> supervisor


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The worker has imported its tasks and takes runs."""

    pid: int


class Outcomes(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Attempts that ended; one message for all that ended in one turn of the loop."""

    outcomes: list[RunOutcome]


class Trigger(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A run asks for other runs; with ``wait`` it frees its place until they are done (R9)."""

    request: int
    run_id: str
    attempt: int
    items: list[TriggerItem]
    wait: bool = False


class Suspended(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A run waits for input in one more call: while it does in any, it frees its place (R9)."""

    run_id: str
    attempt: int


class Resumed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One of a run's waits for input is over."""

    run_id: str
    attempt: int


class Overdue(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An attempt was to end and ignored that: only a kill ends it."""

    run_id: str
    attempt: int
    status: str = "TIMED_OUT"
    """What becomes of the run: TIMED_OUT or CANCELED."""


class Leaving(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The worker has done its number of runs, or is too large: replace it when it suits."""

    reason: str
    """``runs`` or ``memory``."""
    runs: int
    """How many it has executed."""
    memory: int
    """Bytes it has in memory."""


class Stalled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The last word of a worker that ends itself: task code has blocked its loop for too long."""

    seconds: float


class Pong(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to :class:`Ping`."""


class Drained(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The last message of a worker that leaves in order."""


FromSupervisor = (
    Welcome
    | Assign
    | CancelRun
    | InterruptRun
    | Ping
    | Drain
    | Triggered
    | TriggerRefused
    | ChildrenDone
    | ChildrenPostponed
    | NoticeSent
)
FromWorker = (
    Ready
    | Outcomes
    | Trigger
    | Suspended
    | Resumed
    | Overdue
    | Leaving
    | Stalled
    | Pong
    | Drained
    | NoticeSent
)

_PART_BYTES: Final = 16 * 1024 * 1024
"""Bytes of runs or outcomes that are sent together; one alone may have more."""

_encoder: Final = msgspec.msgpack.Encoder()


def parts(items: Iterable[PartT]) -> list[list[PartT]]:
    """Divide *items* into lists that fit into a frame each; at least one, which may be empty."""
    found: list[list[PartT]] = [[]]
    total = 0
    for item in items:
        total += (size := _size(item))
        if found[-1] and total > _PART_BYTES:
            found.append([])
            total = size
        found[-1].append(item)

    return found


def _size(item: AssignedRun | RunOutcome | ChildOutcome) -> int:
    """Return about how many bytes *item* has in a frame."""
    if isinstance(item, AssignedRun):
        return len(item.payload) + len(item.metadata or b"")
    error = item.error
    text = 0 if error is None else len(error.message) + len(error.traceback)

    return len(item.output or b"") + text


def encode_frame(message: msgspec.Struct) -> bytes:
    """Return *message* as one frame."""
    body = _encoder.encode(message)
    return _HEADER.pack(len(body)) + body


def decode_frames(buffer: bytearray, *, limit: int = MAX_FRAME) -> list[bytes]:
    """Take every whole frame off the front of *buffer* and return their bodies.

    Raises:
        FrameTooLargeError: A header announces more than *limit* bytes.
    """
    bodies: list[bytes] = []
    position = 0
    while len(buffer) - position >= _HEADER.size:
        (length,) = _HEADER.unpack_from(buffer, position)
        if length > limit:
            raise FrameTooLargeError(f"a frame of {length} bytes, at most {limit} are allowed")
        end = position + _HEADER.size + length
        if len(buffer) < end:
            break
        bodies.append(bytes(memoryview(buffer)[position + _HEADER.size : end]))
        position = end
    del buffer[:position]

    return bodies
