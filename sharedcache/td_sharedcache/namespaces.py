"""Removes the namespaces of keys that nobody uses any more.

A key that was rotated leaves a folder behind whose rows nobody can read. It goes once every token
in it has died, which the control plane lets happen after a day.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from td_sharedcache.locks import FileLocks

DEAD_AFTER: Final = 24 * 3600.0
"""Seconds without a write after which no token can be alive; use alone writes once a minute."""

_NAMESPACE: Final = re.compile(r"[0-9a-f]{32}")
_LEFTOVER: Final = re.compile(r"[0-9a-f]{32}\.removed")


def remove_dead_namespaces(directory: Path, *, mine: str, now: float) -> list[str]:
    """Remove the namespaces in which nothing was written for a day and which nobody has open.

    Never waits, and never raises: what cannot be removed now is left to the next one who comes.

    Args:
        directory: The folder that holds them.
        mine: The name of the one to leave alone.
        now: Wall-clock time.

    Returns:
        The names of those that were removed.
    """
    try:
        names = os.listdir(directory)
    except OSError:
        return []

    for name in filter(_LEFTOVER.fullmatch, names):
        shutil.rmtree(directory / name, ignore_errors=True)
    candidates = [name for name in filter(_NAMESPACE.fullmatch, names) if name != mine]

    return [name for name in candidates if _remove_if_dead(directory / name, now)]


def _remove_if_dead(folder: Path, now: float) -> bool:
    removed = folder.with_name(f"{folder.name}.removed")
    with suppress(OSError):
        if not _is_dead(folder, now):
            return False
        # Another user's folder, or one that lost its locks, raises here and stays.
        with FileLocks(folder / "locks").hold_all() as held:
            # Looked at again: somebody may have come and gone before we had the locks.
            if not held or not _is_dead(folder, now):
                return False
            # Renamed first: whoever comes now finds either all of it or nothing. Whoever has
            # opened one of its locks in the meantime notices that the path leads elsewhere.
            os.rename(folder, removed)
        shutil.rmtree(removed, ignore_errors=True)
        return True

    return False


def _is_dead(folder: Path, now: float) -> bool:
    try:
        written = os.stat(folder / "cache.db").st_mtime
    except FileNotFoundError:
        written = os.stat(folder).st_mtime

    return now - written > DEAD_AFTER
