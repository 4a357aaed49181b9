"""What the processes of a campaign share: folders, the gateway's address, who is minting."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.scale import Scale


class Board:
    """One byte a writer, in memory that forks share: how many mints it has in flight."""

    def __init__(self, writers: int) -> None:
        self._writers = writers
        self._cells = mmap.mmap(-1, writers)

    def change(self, writer: int, by: int) -> None:
        """Count a mint that begins or ends."""
        self._cells[writer] = max(0, self._cells[writer] + by)

    def clear(self, writer: int) -> None:
        """Forget a process that was killed."""
        self._cells[writer] = 0

    def minting(self) -> list[int]:
        """Give the writers with a mint in flight."""
        return [writer for writer in range(self._writers) if self._cells[writer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """Where a campaign takes place."""

    scale: Scale
    folder: Path
    """Everything the campaign leaves behind."""
    disk: Path
    """Holds the credentials; a small tmpfs if it may be mounted."""
    url: str
    secret_key: str
    board: Board
    starts_at: float
    """Wall-clock seconds of the first write."""

    @property
    def credentials(self) -> Path:
        """The shared folder of credentials."""
        return self.disk / "credentials"

    @property
    def diaries(self) -> Path:
        """One diary a process."""
        return self.folder / "diaries"

    @property
    def output(self) -> Path:
        """What the processes print and log."""
        return self.folder / "output"
