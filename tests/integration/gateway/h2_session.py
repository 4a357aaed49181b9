"""An s2s session as raw HTTP/2, so that a test can cut and spoil it where it likes."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events

from tests.integration.gateway.client import Stream

TIMEOUT_S = 30.0
HEAD = 9


def varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def append_input(*bodies: bytes, match_seq_num: int | None = None) -> bytes:
    condition = b"" if match_seq_num is None else b"\x10" + varint(match_seq_num)
    return b"".join(field(1, field(3, body)) for body in bodies) + condition


def frame(body: bytes, *, flag: int = 0) -> bytes:
    return struct.pack(">I", len(body) + 1)[1:] + bytes([flag]) + body


def ack_end(body: bytes) -> int:
    """The `end.seq_num` of an `AppendAck`, which has `end` second."""
    start_size = body[1]
    end = body[2 + start_size + 2 :]
    assert end[0] == 0x08
    value = shift = 0
    for byte in end[1:]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return value


class H2Session:
    """One request whose body stays open, and the frames of its answer.

    Attributes:
        status: Of the answer, None before its head.
        is_ended: The answer is complete.
    """

    def __init__(self, url: str, headers: dict[str, str], method: str = "POST") -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), TIMEOUT_S)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._connection = h2.connection.H2Connection(config)
        self._connection.initiate_connection()
        self.status: int | None = None
        self.is_ended = False
        self._input = b""
        self._is_going = False
        self._body = b""
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        head = {":method": method, ":path": path, ":scheme": "http", ":authority": parts.netloc}
        self.stream_id = self._connection.get_next_available_stream_id()
        self._connection.send_headers(
            self.stream_id, [*head.items(), *headers.items()], end_stream=method == "GET"
        )
        self._flush()

    def send(self, data: bytes) -> None:
        while data:
            window = self._connection.local_flow_control_window(self.stream_id)
            size = min(window, len(data), self._connection.max_outbound_frame_size)
            if not size:
                self._flush()
                self._receive()
                continue
            self._connection.send_data(self.stream_id, data[:size])
            data = data[size:]
        self._flush()

    def send_each(self, pieces: list[bytes]) -> None:
        """Each piece in an HTTP/2 frame of its own."""
        for piece in pieces:
            while self._connection.local_flow_control_window(self.stream_id) < len(piece):
                self._flush()
                self._receive()
            self._connection.send_data(self.stream_id, piece)
        self._flush()

    def end(self) -> None:
        self._connection.end_stream(self.stream_id)
        self._flush()

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Flag and body of each frame, until the answer ends."""
        while True:
            while len(self._body) >= 3:
                size = int.from_bytes(self._body[:3], "big")
                if len(self._body) < 3 + size:
                    break
                whole, self._body = self._body[3 : 3 + size], self._body[3 + size :]
                yield whole[0], whole[1:]
            if self.is_ended:
                assert not self._body
                return
            self._receive()

    def terminal(self) -> tuple[int, Any, int]:
        """Status and document of the terminal frame, and how many frames came before it."""
        count = 0
        for flag, body in self.frames():
            if flag & 0x80:
                assert list(self.frames()) == []
                return int.from_bytes(body[:2], "big"), json.loads(body[2:]), count
            count += 1
        raise AssertionError(f"no terminal frame after {count} frames")

    def await_head(self) -> int:
        while self.status is None:
            self._receive()
        return self.status

    def close(self) -> None:
        self._socket.close()

    def _flush(self) -> None:
        self._socket.sendall(self._connection.data_to_send())

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the connection was closed")
        self._input += data
        # One frame at a time: h2 forgets what came before a frame that it does not expect, and it
        # expects nothing after the frame that says the server is about to go.
        while len(self._input) >= HEAD and not self._is_going:
            size = HEAD + int.from_bytes(self._input[:3], "big")
            if len(self._input) < size:
                break
            whole, self._input = self._input[:size], self._input[size:]
            for event in self._connection.receive_data(whole):
                self._note(event)
        if not self._is_going:
            self._flush()

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            headers: Any = dict(event.headers)
            self.status = int(headers[":status"])
        elif isinstance(event, h2.events.DataReceived):
            self._body += event.data
            self._connection.acknowledge_received_data(
                event.flow_controlled_length or 0, self.stream_id
            )
        elif isinstance(event, h2.events.StreamEnded):
            self.is_ended = True
        elif isinstance(event, h2.events.ConnectionTerminated):
            assert not event.error_code, event.additional_data
            self._is_going = True


@contextmanager
def append_session(stream: Stream) -> Iterator[H2Session]:
    session = H2Session(f"{stream.url}/records", {**stream.headers, "content-type": "s2s/proto"})
    try:
        yield session
    finally:
        session.close()


@contextmanager
def read_session(stream: Stream, query: str) -> Iterator[H2Session]:
    headers = {**stream.headers, "content-type": "s2s/proto"}
    session = H2Session(f"{stream.url}/records?{query}", headers, "GET")
    try:
        yield session
    finally:
        session.close()
