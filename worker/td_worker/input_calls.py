"""What the async and the plain `def` halves of reading input agree on."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

from td_worker.context import Execution
from td_worker.control_plane import segment
from td_worker.encoding import encode_json
from td_worker.streams.arguments import current_execution
from td_worker.streams.naming import check_key, check_run_id
from td_worker.tail import READ_TIMEOUT, Tail


class InputSource(Protocol):
    """Where input comes from, for whichever task asks."""

    def execution(self) -> Execution:
        """Return the execution that reads."""
        ...

    def tail(self) -> Tail:
        """Return its tail; the same for every call of one execution."""
        ...


class RunInputs:
    """An input stream of the current run."""

    def __init__(self, stream_id: str) -> None:
        self._stream_id = check_key(stream_id)

    def execution(self) -> Execution:
        """Return the execution that reads: the caller's."""
        return current_execution()

    def tail(self) -> Tail:
        """Return the caller's tail of this stream."""
        execution = current_execution()
        name = f"input/{execution.run.id}/{self._stream_id}"

        return execution.tails.get(name, lambda: self._open(name, execution))

    def _open(self, name: str, execution: Execution) -> Tail:
        client = execution.streams

        return Tail(
            name,
            lambda cursor: client.control_plane.open_input_stream(
                execution.run.id, self._stream_id, last_event_id=cursor, timeout_s=READ_TIMEOUT
            ),
            client,
            takes_on_sight=True,
        )


def send_input(run_id: str, stream_id: str, data: Any) -> Future[bytes]:
    """Start sending `data` to an input stream of any run."""
    client = current_execution().streams
    path = f"/realtime/v1/streams/{segment(check_run_id(run_id))}/input/{segment(stream_id)}"

    return client.submit(client.control_plane.call("POST", path, body=encode_json({"data": data})))
