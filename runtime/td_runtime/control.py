"""The control socket: how the command line and other clients talk to the supervisor (design §3).

What is said over it, and the client's end; the supervisor's is `control_server`, so that a command
that only asks something starts without asyncio.

A Unix stream socket, mode 0600, whose peers must be of the same user or root. Typed messages in
frames of length and msgpack; the first one either way is a hello with the version. Nothing is
ever unpickled.
"""

import socket
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from td_runtime.data_dir import DataDir
from td_runtime.errors import TdRuntimeError
from td_worker.messages import (
    MAX_CONTROL_FRAME,
    ChildOutcome,
    TriggerItem,
    decode_frames,
    encode_frame,
)

__all__ = [
    "Accepted",
    "ControlClient",
    "ControlRefusedError",
    "GetStatus",
    "GetTree",
    "Hello",
    "NotRunningError",
    "Refused",
    "RunView",
    "StatusView",
    "TreeView",
    "TriggerRuns",
    "WaitForRun",
    "WorkerView",
]

PROTOCOL_VERSION: Final = 1


class NotRunningError(TdRuntimeError):
    """No supervisor is running."""


class ControlRefusedError(TdRuntimeError):
    """The supervisor refused a request; the message is its own."""


# ------------------------------------------------------------------ requests


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message of both sides."""

    version: int = PROTOCOL_VERSION


class TriggerRuns(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Accept runs; answered by :class:`Accepted` once they are durable (R1)."""

    items: list[TriggerItem]


class WaitForRun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answered by the run's :class:`RunView` once it has an outcome."""

    run_id: str


class GetTree(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answered by :class:`TreeView`: a root run and all below it."""

    root_id: str


class GetStatus(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answered by :class:`StatusView`."""


Request = Hello | TriggerRuns | WaitForRun | GetTree | GetStatus

# ------------------------------------------------------------------ answers


class Accepted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ids of accepted runs, in the order of the request."""

    run_ids: list[str]


class RunView(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A run as clients see it."""

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


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The request was not carried out; nothing has changed."""

    message: str
    advice: str | None = None


Answer = Hello | Accepted | RunView | TreeView | StatusView | Refused

_answer_decoder: Final = msgspec.msgpack.Decoder(Answer)

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


class ControlClient:
    """A client's end; blocking, a context manager, one request at a time.

    Raises:
        NotRunningError: Nobody listens at the data folder's control socket.
    """

    def __init__(self, data_dir: DataDir) -> None:
        self._data_dir = data_dir
        self._incoming = bytearray()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with data_dir.control_address() as address:
                self._sock.connect(address)
        except OSError as error:
            self._sock.close()
            raise _not_running(data_dir.path) from error
        self.ask(Hello(), Hello)

    def __enter__(self) -> "ControlClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, to be polled while an answer is awaited."""
        return self._sock.fileno()

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def ask(self, request: msgspec.Struct, kind: type[AnswerT]) -> AnswerT:
        """Send *request* and return its answer, however long that takes.

        Raises:
            ControlRefusedError: The supervisor says no, and why.
            NotRunningError: The supervisor went away.
        """
        self.send(request)

        return self.receive(kind)

    def send(self, request: msgspec.Struct) -> None:
        """Send *request*; its answer is for :meth:`receive`; raises as :meth:`ask`."""
        frame = encode_frame(request)
        if len(frame) > MAX_CONTROL_FRAME:
            raise ControlRefusedError(
                f"a request of {len(frame):,} bytes; the control socket takes "
                f"{MAX_CONTROL_FRAME:,}",
                advice="Ask for fewer runs at once.",
            )
        try:
            self._sock.sendall(frame)
        except OSError as error:
            raise _not_running(self._data_dir.path) from error

    def receive(self, kind: type[AnswerT]) -> AnswerT:
        """Return the next answer; raises as :meth:`ask`."""
        while not (bodies := decode_frames(self._incoming, limit=MAX_CONTROL_FRAME)):
            self._incoming += self._receive_some()
        answer = _answer_decoder.decode(bodies[0])
        if isinstance(answer, Refused):
            raise ControlRefusedError(answer.message, advice=answer.advice)
        if not isinstance(answer, kind):
            raise AssertionError(f"asked for {kind.__name__}, got {type(answer).__name__}")

        return answer

    def _receive_some(self) -> bytes:
        try:
            data = self._sock.recv(256 * 1024)
        except OSError as error:
            raise _not_running(self._data_dir.path) from error
        if not data:
            raise _not_running(self._data_dir.path)

        return data


def _not_running(path: Path) -> NotRunningError:
    return NotRunningError(
        "no supervisor answers",
        where=str(path),
        advice="Start one with `td-runtime start`, with the same config file.",
    )
