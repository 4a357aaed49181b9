"""The disk that holds the credentials: a small tmpfs of its own, if we may mount one."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

SIZE_MIB = 8
_PAGE = 4096


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small tmpfs for the length of the block; tells whether that was allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=700", "none", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.call(command, stderr=subprocess.DEVNULL) == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write a file until nothing more fits; removing it makes room again."""
    path = disk / "ballast"
    with path.open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(_PAGE))

    return path


def delete(credentials: Path, dice: random.Random) -> str:
    """Delete the folder of credentials, or a part of it; gives what."""
    part = dice.choice(("all of it", "the namespace", "the locks", "the shared file"))
    for namespace in credentials.glob("*"):
        match part:
            case "the locks":
                shutil.rmtree(namespace / "locks", ignore_errors=True)
            case "the shared file":
                (namespace / "cache.db").unlink(missing_ok=True)
            case _:
                shutil.rmtree(namespace, ignore_errors=True)
    if part == "all of it":
        shutil.rmtree(credentials, ignore_errors=True)

    return part


def corrupt(database: Path, dice: random.Random) -> str:
    """Damage the shared file in place; gives how."""
    damage = dice.choice((_spoil_header, _spoil_pages, _cut_in_half, _empty, _swap_rows))
    with suppress(OSError, sqlite3.Error):
        damage(database, dice)

    return damage.__name__.strip("_").replace("_", " ")


def spoil_header(database: Path) -> None:
    """Damage the shared file so that the next look at it notices."""
    with suppress(OSError):
        _spoil_header(database, random.Random(0))


def _spoil_header(database: Path, dice: random.Random) -> None:
    _overwrite(database, 0, dice.randbytes(100))


def _spoil_pages(database: Path, dice: random.Random) -> None:
    size = database.stat().st_size
    for _ in range(3):
        _overwrite(database, dice.randrange(_PAGE, max(size, _PAGE + 1)), dice.randbytes(512))


def _cut_in_half(database: Path, dice: random.Random) -> None:
    os.truncate(database, database.stat().st_size // 2)


def _empty(database: Path, dice: random.Random) -> None:
    os.truncate(database, 0)


def _swap_rows(database: Path, dice: random.Random) -> None:
    """Give slots each other's rows, and one a pickle: all must be refused."""
    with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=1)) as connection:
        rows = connection.execute("SELECT rowid, value FROM Cache").fetchall()
        dice.shuffle(rows)
        for (rowid, _), (_, value) in pairwise(rows):
            connection.execute("UPDATE Cache SET value = ? WHERE rowid = ?", (value, rowid))
        if rows:
            connection.execute("UPDATE Cache SET mode = 4 WHERE rowid = ?", (rows[-1][0],))
        connection.commit()


def _overwrite(database: Path, offset: int, junk: bytes) -> None:
    fd = os.open(database, os.O_WRONLY)
    try:
        os.pwrite(fd, junk, offset)
    finally:
        os.close(fd)
