"""Basins: namespaces of streams, each with its own defaults."""

from __future__ import annotations

import re
import sqlite3
import time
from datetime import UTC, datetime
from typing import Final

import msgspec

from td_runtime.gateway.errors import (
    BasinNotFoundError,
    ConfigInvalidError,
    NameTakenError,
    PermissionDeniedError,
)
from td_runtime.gateway.platform.holder import BASIN
from td_runtime.gateway.platform.storage import Storage
from td_runtime.gateway.platform.stream_config import BasinConfig

LOCATION: Final = "local"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{6,46}[a-z0-9]")


class Basin(msgspec.Struct, frozen=True):
    """One basin. ``created_at`` is in milliseconds."""

    name: str
    config: BasinConfig
    created_at: int
    request_token: str | None = None

    def store_name(self, stream: str) -> str:
        """What a stream of this basin is stored as; a stream's own name has no NUL."""
        return stream if self.name == BASIN else f"{self.name}\0{stream}"

    @property
    def store_prefix(self) -> str:
        """What the stored names of its streams begin with."""
        return self.store_name("")

    def to_dict(self) -> dict[str, object]:
        """The basin as S2 shows it."""
        return {
            "name": self.name,
            "location": LOCATION,
            "created_at": rfc3339(self.created_at),
            "deleted_at": None,
        }


class Basins:
    """All basins: the one that the control plane hands out, and those that were made."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._basins = {
            BASIN: Basin(BASIN, BasinConfig(create_stream_on_append=True), int(time.time() * 1000))
        }
        connection = storage.connect_reader()
        for name, config, created_at, token in connection.execute("SELECT * FROM basins"):
            basin = Basin(name, msgspec.json.decode(config, type=BasinConfig), created_at, token)
            self._basins[name] = basin
        connection.close()

    def get(self, name: str) -> Basin:
        """A basin.

        Raises:
            BasinNotFoundError: There is none of that name.
        """
        basin = self._basins.get(name)
        if basin is None:
            raise BasinNotFoundError(f"basin `{name}` not found")

        return basin

    def find(self, name: str) -> Basin | None:
        """A basin, or None."""
        return self._basins.get(name)

    def all(self) -> list[Basin]:
        """All basins by name."""
        return [self._basins[name] for name in sorted(self._basins)]

    async def create(self, name: str, config: BasinConfig, request_token: str | None) -> Basin:
        """Make a basin; asking again with the same request token is the same request.

        Raises:
            ConfigInvalidError: It cannot be made like this.
            NameTakenError: There is one of that name.
        """
        if not _NAME.fullmatch(name):
            raise ConfigInvalidError(
                f"basin `{name}`: a name has 8 to 48 characters of a-z, 0-9 and inner hyphens"
            )
        config.check()
        known = self._basins.get(name)
        if known is not None:
            if request_token is not None and known.request_token == request_token:
                return known
            raise NameTakenError(f"basin `{name}` already exists")

        return await self._keep(Basin(name, config, int(time.time() * 1000), request_token))

    async def configure(self, name: str, config: BasinConfig) -> Basin:
        """Give a basin another configuration.

        Raises:
            BasinNotFoundError: There is none of that name.
            ConfigInvalidError: It cannot be configured so.
            PermissionDeniedError: It is the control plane's own.
        """
        basin = self.get(name)
        _refuse_own(name)
        config.check()

        return await self._keep(msgspec.structs.replace(basin, config=config))

    async def delete(self, name: str) -> None:
        """Delete a basin; its streams are the caller's concern.

        Raises:
            BasinNotFoundError: There is none of that name.
            PermissionDeniedError: It is the control plane's own.
        """
        self.get(name)
        _refuse_own(name)
        del self._basins[name]

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM basins WHERE name = ?", (name,))

        await self._storage.write(delete)

    async def _keep(self, basin: Basin) -> Basin:
        row = (
            basin.name,
            msgspec.json.encode(basin.config).decode(),
            basin.created_at,
            basin.request_token,
        )

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO basins VALUES (?, ?, ?, ?)", row)

        await self._storage.write(insert)
        self._basins[basin.name] = basin

        return basin


def rfc3339(milliseconds: int) -> str:
    """A point in time as S2 writes it."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat().replace("+00:00", "Z")


def _refuse_own(name: str) -> None:
    if name == BASIN:
        raise PermissionDeniedError(f"basin `{BASIN}` belongs to the control plane")
