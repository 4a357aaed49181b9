"""What task code prints, as events: Python's own streams, and descriptors 1 and 2 below them."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Final, Literal

__all__ = ["CapturedOutput", "Emit", "LineStream", "StreamName"]

StreamName = Literal["stdout", "stderr"]
#: Called with the stream's name and one line without its newline.
Emit = Callable[[StreamName, str], None]

#: Characters after which a line is emitted though it has not ended.
_MAX_PENDING: Final = 65_536
_CHUNK: Final = 65_536


class LineStream(io.TextIOBase):
    """A text stream that emits each line as an event, in the context of whoever writes it.

    A line is kept per thread until it ends: `print` writes text and newline separately, and the
    halves of two threads' lines must not meet. Flushing does not end a line.
    """

    def __init__(self, name: StreamName, emit: Emit) -> None:
        super().__init__()
        self._name: StreamName = name
        self._emit = emit
        self._pending: dict[int, str] = {}
        self._bytes = _BytesOfLines(self)

    @property
    def name(self) -> str:
        """`<stdout>` or `<stderr>`, as the interpreter's own streams are called."""
        return f"<{self._name}>"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Always UTF-8."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """Bytes that are not UTF-8 are shown escaped."""
        return "backslashreplace"

    @property
    def buffer(self) -> io.RawIOBase:
        """The binary side, for code that writes bytes."""
        return self._bytes

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor of that name, so that subprocesses can be given this stream."""
        return 1 if self._name == "stdout" else 2

    def write(self, text: str, /) -> int:
        """Emit the lines that *text* ends; keep the rest."""
        thread = threading.get_ident()
        *lines, rest = (self._pending.pop(thread, "") + text).split("\n")
        while len(rest) > _MAX_PENDING:
            lines.append(rest[:_MAX_PENDING])
            rest = rest[_MAX_PENDING:]
        if rest:
            self._pending[thread] = rest
        for line in lines:
            self._emit(self._name, line.rstrip("\r"))

        return len(text)

    def end_lines(self) -> None:
        """Emit what every thread has left unfinished: nothing more is coming."""
        for thread in list(self._pending):
            self._emit(self._name, self._pending.pop(thread))


class _BytesOfLines(io.RawIOBase):
    """The `buffer` of a `LineStream`."""

    def __init__(self, lines: LineStream) -> None:
        super().__init__()
        self._lines = lines

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        raw = bytes(data)  # type: ignore[call-overload]
        self._lines.write(raw.decode("utf-8", "backslashreplace"))

        return len(raw)


class CapturedOutput:
    """Descriptors 1 and 2 turned into pipes, for what C code and subprocesses write.

    Made after the fork, on any thread. The caller watches `readers` with its own loop and calls
    `read` when one is readable; until it does, writers may wait once a pipe is full (64 KiB).

    The log itself must go elsewhere (`logs.configure` was given a descriptor of its own), else
    every line would come back as a printed one.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._streams: dict[int, StreamName] = {}
        self._pending: dict[int, bytes] = {}
        self._originals: dict[int, int] = {}
        for target, name in ((1, "stdout"), (2, "stderr")):
            self._redirect(target, name)  # type: ignore[arg-type]

    def _redirect(self, target: int, name: StreamName) -> None:
        self._originals[target] = os.dup(target)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.dup2(writer, target, inheritable=True)
        os.close(writer)
        self._streams[reader] = name
        self._pending[reader] = b""

    @property
    def readers(self) -> Mapping[int, StreamName]:
        """Non-blocking descriptors to watch, each with its stream's name."""
        return self._streams

    def read(self, reader: int) -> bool:
        """Emit the lines that are there.

        Returns:
            Whether more may come; False when every writer has closed.
        """
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(reader, _CHUNK)
            if not data:
                return False
        *lines, rest = (self._pending[reader] + data).split(b"\n")
        while len(rest) > _MAX_PENDING:
            lines.append(rest[:_MAX_PENDING])
            rest = rest[_MAX_PENDING:]
        self._pending[reader] = rest
        for line in lines:
            self._emit_bytes(reader, line)

        return True

    def _emit_bytes(self, reader: int, line: bytes) -> None:
        text = line.rstrip(b"\r").decode("utf-8", "backslashreplace")
        self._emit(self._streams[reader], text)

    def close(self) -> None:
        """Give descriptors 1 and 2 back, emit what is left, and close the pipes.

        The caller has stopped watching `readers`.
        """
        for target, original in self._originals.items():
            os.dup2(original, target, inheritable=True)
            os.close(original)
        self._originals.clear()
        for reader in list(self._streams):
            self._drain(reader)
            os.close(reader)
            del self._streams[reader]

    def _drain(self, reader: int) -> None:
        # A subprocess that still holds the pipe must not keep this from ending: what is there now
        # is taken, and no more than a full pipe of it.
        for _ in range(16):
            before = self._pending[reader]
            if not self.read(reader) or self._pending[reader] is before:
                break
        if self._pending[reader]:
            self._emit_bytes(reader, self._pending[reader])

    def __enter__(self) -> CapturedOutput:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[int]:
        return iter(self._streams)
