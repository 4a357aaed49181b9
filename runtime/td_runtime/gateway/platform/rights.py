"""What the holder of a token may do, and to what."""

from typing import Final

import msgspec

from td_runtime.gateway.errors import PermissionDeniedError

NEVER: Final = float("inf")
OPERATIONS: Final[dict[str, dict[str, frozenset[str]]]] = {
    "account": {
        "read": frozenset(
            {
                "list-basins",
                "get-basin-config",
                "list-access-tokens",
                "list-locations",
                "get-default-location",
                "account-metrics",
            }
        ),
        "write": frozenset(
            {
                "create-basin",
                "delete-basin",
                "reconfigure-basin",
                "issue-access-token",
                "revoke-access-token",
                "set-default-location",
            }
        ),
    },
    "basin": {
        "read": frozenset({"list-streams", "get-stream-config", "basin-metrics"}),
        "write": frozenset({"create-stream", "delete-stream", "reconfigure-stream"}),
    },
    "stream": {
        "read": frozenset({"check-tail", "read", "stream-metrics"}),
        "write": frozenset({"append", "trim", "fence"}),
    },
}
"""Every operation there is, by the group that S2 puts it in."""


class Match(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which names are meant: one, or all that start so. Neither, or an empty ``exact``: none."""

    exact: str | None = None
    prefix: str | None = None

    def allows(self, name: str) -> bool:
        """Whether ``name`` is among them."""
        if self.prefix is not None:
            return name.startswith(self.prefix)

        return bool(self.exact) and name == self.exact


ALL: Final = Match(prefix="")
NONE: Final = Match()


class Rights(msgspec.Struct, frozen=True):
    """What a bearer may do: these operations (None for all) on what is named so.

    ``prefix`` goes before every stream name that the bearer says, and is taken off those it hears.
    """

    ops: frozenset[str] | None
    basins: Match = NONE
    streams: Match = NONE
    access_tokens: Match = NONE
    prefix: str = ""
    expires_at: float = NEVER
    is_sender: bool = False
    """Whose records are looked at: he may send messages, but not as anybody."""

    def may(self, op: str) -> bool:
        """Whether the operation is allowed somewhere."""
        return self.ops is None or op in self.ops

    def require(self, ops: set[str]) -> None:
        """Refuse operations that are not among those allowed.

        Raises:
            PermissionDeniedError: Not all are.
        """
        missing = set() if self.ops is None else ops - self.ops
        if missing:
            raise PermissionDeniedError(
                f"the access token does not allow {', '.join(sorted(missing))}; it allows"
                f" {', '.join(sorted(self.ops or ()))}"
            )

    def require_basin(self, basin: str) -> None:
        """Refuse another basin.

        Raises:
            PermissionDeniedError: It is not among those allowed.
        """
        if not self.basins.allows(basin):
            raise PermissionDeniedError(f"the access token is not for basin `{basin}`")

    def resolve(self, stream: str) -> str:
        """The whole name of a stream that the bearer names.

        Raises:
            PermissionDeniedError: It is not among those allowed.
        """
        name = self.prefix + stream
        if not self.streams.allows(name):
            raise PermissionDeniedError(f"the access token is not for stream `{name}`")

        return name


OWNER: Final = Rights(None, ALL, ALL, ALL)
