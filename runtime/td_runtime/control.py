"""The control socket: how the command line and other clients talk to the supervisor (design §3).

The client's end. What is said over it is in `control_messages`, the supervisor's end in
`control_server`: a command that only asks something starts without asyncio.

A Unix stream socket, mode 0600, whose peers must be of the same user or root. Typed messages in
frames of length and msgpack; the first one either way is a hello with the version. Nothing is
ever unpickled.
"""

import socket
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from td_runtime.control_messages import (
    Accepted,
    AddTags,
    Answer,
    CanceledRuns,
    CancelRuns,
    Done,
    GetRun,
    GetStatus,
    GetTree,
    Hello,
    ListRuns,
    ListSchedules,
    ListTasks,
    Refused,
    ReplayRun,
    RescheduleRun,
    RunDetails,
    RunItem,
    RunsPage,
    RunView,
    SchedulesView,
    ScheduleView,
    SetMetadata,
    StatusView,
    Stopping,
    StopRuntime,
    TasksView,
    TaskView,
    TreeView,
    TriggerRuns,
    WaitForRun,
    WorkerView,
)
from td_runtime.data_dir import DataDir
from td_runtime.errors import TdRuntimeError
from td_worker.messages import MAX_CONTROL_FRAME, MAX_FRAME, decode_frames, encode_frame

__all__ = [
    "Accepted",
    "AddTags",
    "CancelRuns",
    "CanceledRuns",
    "ControlClient",
    "ControlRefusedError",
    "Done",
    "GetRun",
    "GetStatus",
    "GetTree",
    "Hello",
    "ListRuns",
    "ListSchedules",
    "ListTasks",
    "NotRunningError",
    "Refused",
    "ReplayRun",
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
    "not_running",
]


class NotRunningError(TdRuntimeError):
    """No supervisor is running."""


class ControlRefusedError(TdRuntimeError):
    """The supervisor refused a request; the message is its own.

    Attributes:
        code: Why, for programs; see :class:`Refused`.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        advice: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(what, where=where, advice=advice)
        self.code = code


_answer_decoder: Final = msgspec.msgpack.Decoder(Answer)

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


class ControlClient:
    """A client's end; blocking, a context manager, one request at a time.

    Args:
        data_dir: The supervisor's data folder.
        name: Who is calling, in a word or two, for the record.

    Raises:
        NotRunningError: Nobody listens at the data folder's control socket, or this user may not
            enter the folder.
    """

    def __init__(self, data_dir: DataDir, *, name: str = "command line") -> None:
        self._data_dir = data_dir
        self._incoming = bytearray()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with data_dir.control_address() as address:
                self._sock.connect(address)
        except OSError as error:
            self._sock.close()
            raise not_running(data_dir.path, error) from error
        try:
            self.ask(Hello(name=name), Hello)
        except BaseException:
            self.close()
            raise

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

    @property
    def is_gone(self) -> bool:
        """Whether the supervisor has hung up; for a client that waits for no answer."""
        # Not by a flag of this one call: a socket with a time-out would wait all the same.
        self._sock.setblocking(False)
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._sock.setblocking(True)

    def ask(
        self, request: msgspec.Struct, kind: type[AnswerT], *, timeout: float | None = None
    ) -> AnswerT:
        """Send *request* and return its answer.

        Args:
            request: What is asked.
            kind: What is answered.
            timeout: Seconds without a sign of the supervisor after which it is given up; this
                client is then of no use any more. None: never.

        Raises:
            ControlRefusedError: The supervisor says no, and why.
            NotRunningError: The supervisor went away.
            TimeoutError: Nothing came in time; the request may still be carried out.
        """
        self._sock.settimeout(timeout)
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
                code="too_large",
            )
        try:
            self._sock.sendall(frame)
        except TimeoutError:
            raise
        except OSError as error:
            raise not_running(self._data_dir.path, error) from error

    def receive(self, kind: type[AnswerT]) -> AnswerT:
        """Return the next answer; raises as :meth:`ask`."""
        # An answer may have a run's payload and its output.
        while not (bodies := decode_frames(self._incoming, limit=MAX_FRAME)):
            self._incoming += self._receive_some()
        answer = _answer_decoder.decode(bodies[0])
        if isinstance(answer, Refused):
            raise ControlRefusedError(answer.message, advice=answer.advice, code=answer.code)
        if not isinstance(answer, kind):
            raise AssertionError(f"asked for {kind.__name__}, got {type(answer).__name__}")

        return answer

    def _receive_some(self) -> bytes:
        try:
            data = self._sock.recv(256 * 1024)
        except TimeoutError:
            raise
        except OSError as error:
            raise not_running(self._data_dir.path, error) from error
        if not data:
            raise not_running(self._data_dir.path)

        return data


def not_running(path: Path, error: Exception | None = None) -> NotRunningError:
    """Return the error for a supervisor that cannot be asked, by the system's own *error*."""
    if isinstance(error, PermissionError):
        # There may well be one, and to start another would be refused.
        return NotRunningError(
            f"the data folder may not be entered: {error.strerror}",
            where=str(path),
            advice="Ask as the user that owns it (`sudo -u USER td-runtime …`), or as root.",
        )

    return NotRunningError(
        "no supervisor answers",
        where=str(path),
        advice="Start one with `td-runtime start`, with the same config file.",
    )
