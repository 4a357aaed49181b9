"""Looks for tokens and the key where nobody may write them."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_TOKEN = re.compile(rb"tds_[A-Za-z0-9_-]{16,}")
"""What every token of the gateway looks like."""


def leaks_in_files(folders: Iterable[Path], secret_key: str) -> Iterator[str]:
    """Tell every file below the folders, and every name of one, that holds a secret."""
    for folder in folders:
        for path in folder.rglob("*"):
            yield from _leaks(f"the name {path}", str(path).encode(), secret_key)
            # Files come and go while they are looked at.
            with suppress(OSError):
                if path.is_file():
                    yield from _leaks(f"the file {path}", path.read_bytes(), secret_key)


def leaks_in_processes(secret_key: str) -> Iterator[str]:
    """Tell every process of this one's descent, itself too, whose arguments hold a secret."""
    for pid in _descent(os.getpid()):
        with suppress(OSError):
            path = Path(f"/proc/{pid}/cmdline")
            yield from _leaks(f"the arguments in {path}", path.read_bytes(), secret_key)


def _descent(ancestor: int) -> Iterator[int]:
    """Give a process and all that come from it: others may say what they like."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        # The name, in brackets, may hold blanks.
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    for pid in parents:
        above = pid
        while above in parents and above != ancestor:
            above = parents[above]
        if above == ancestor:
            yield pid


def _leaks(where: str, text: bytes, secret_key: str) -> Iterator[str]:
    key = secret_key.encode()
    if key in text or base64.b64encode(key).rstrip(b"=") in text:
        yield f"secret: {where} holds the key"
    if _TOKEN.search(text):
        yield f"secret: {where} holds a token"
