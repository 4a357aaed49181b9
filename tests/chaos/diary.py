"""What a process did, line by line, in a file that survives its SIGKILL."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from td_sharedcache import Slot

Entry = dict[str, Any]
"""A line: `at` (wall-clock seconds), `pid`, `what`, and the facts."""


class Diary:
    """Appends lines, each with one write: what a killed process has said stays said."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._pid = os.getpid()
        self._encoder = msgspec.json.Encoder(enc_hook=_to_plain)

    def note(self, what: str, **facts: Any) -> None:
        """Write one line."""
        entry = {"at": time.time(), "pid": self._pid, "what": what, **facts}
        os.write(self._fd, self._encoder.encode(entry) + b"\n")


class DiaryReader:
    """Reads the diaries of a folder, each line once."""

    def __init__(self, folder: Path, pattern: str = "*.jsonl") -> None:
        self._folder = folder
        self._pattern = pattern
        self._offsets: dict[Path, int] = {}

    def news(self) -> list[Entry]:
        """Give the lines written since the last call, ordered within each process."""
        paths = sorted(self._folder.glob(self._pattern))

        return [entry for path in paths for entry in self._of(path)]

    def _of(self, path: Path) -> Iterator[Entry]:
        with path.open("rb") as lines:
            lines.seek(self._offsets.get(path, 0))
            text = lines.read()
        # A line that is still being written, or was when its process was killed, is none yet.
        whole = text[: text.rfind(b"\n") + 1]
        self._offsets[path] = self._offsets.get(path, 0) + len(whole)
        for line in whole.splitlines():
            yield msgspec.json.decode(line)


def _to_plain(value: object) -> str:
    # Whatever else somebody puts into an event is shown as it would be in a log.
    return str(value) if isinstance(value, Slot) else repr(value)
