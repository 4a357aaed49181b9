"""Payloads that clients send ahead of the request for their run: one file each.

They are not kept in the platform's file: a few of them would hold up everybody's next commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import Final

import msgspec

from td_runtime.gateway.errors import StoreUnavailableError

KEPT_S: Final = 3600.0
USED_KEPT_S: Final = 300.0
"""A client that has not heard whether its run was accepted asks again, for about a minute."""

_ID: Final = re.compile(r"[A-Za-z0-9_-]{32}")


class Upload(msgspec.Struct, frozen=True):
    """A packet: a text, and the name of its encoding."""

    encoding: str
    text: str


class Uploads:
    """The uploads of a data folder. Whoever knows an id may use it, and nobody can guess one.

    Args:
        folder: Where they are; made with the first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def store(self, upload_id: str, upload: Upload) -> None:
        """Keep an upload for an hour; one that is sent again takes the place of the first.

        Raises:
            StoreUnavailableError: It could not be written; nothing of it is there.
        """
        await asyncio.to_thread(self._store, upload_id, upload)

    async def load(self, upload_id: str) -> Upload | None:
        """The upload with this id, which is then deleted soon; None if it is not there any more.

        Raises:
            StoreUnavailableError: It is there and cannot be read.
        """
        if not is_id(upload_id):
            return None
        upload = await asyncio.to_thread(self._load, upload_id)
        if upload is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(USED_KEPT_S, _delete, self._folder / upload_id)

        return upload

    async def forget_old(self) -> None:
        """Delete what no run came for.

        Raises:
            StoreUnavailableError: The folder cannot be read.
        """
        await asyncio.to_thread(self._forget, time.time() - KEPT_S)

    def _store(self, upload_id: str, upload: Upload) -> None:
        part = self._folder / f"{upload_id}.{secrets.token_hex(8)}"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(f"{upload.encoding}\n{upload.text}".encode())
            part.replace(self._folder / upload_id)
        except OSError as error:
            _delete(part)
            raise StoreUnavailableError(f"the upload cannot be stored: {error.strerror}") from error

    def _load(self, upload_id: str) -> Upload | None:
        try:
            encoding, _, text = (self._folder / upload_id).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailableError(f"the upload cannot be read: {error.strerror}") from error

        return Upload(encoding.decode(), text.decode())

    def _forget(self, before: float) -> None:
        try:
            with os.scandir(self._folder) as files:
                for file in files:
                    with contextlib.suppress(FileNotFoundError):
                        if file.stat().st_mtime < before:
                            _delete(Path(file.path))
        except FileNotFoundError:
            return  # there was no upload yet
        except OSError as error:
            raise StoreUnavailableError(f"uploads cannot be read: {error.strerror}") from error


def new_upload_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_urlsafe(24)


def is_id(text: str) -> bool:
    """Whether an upload may be called so; nothing else becomes a file's name."""
    return _ID.fullmatch(text) is not None


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):  # a file that stays is tried again when it is old
        path.unlink()
