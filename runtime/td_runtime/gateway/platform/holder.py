"""Whoever asks the stream store for something: what its bearer allows, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from td_runtime.gateway.errors import PermissionDeniedError, TokenRefusedError
from td_runtime.gateway.exchange import Exchange
from td_runtime.gateway.platform.tokens import Tokens

BASIN: Final = "td-embedded"
"""The basin that the control plane hands out; its streams have no basin in their stored name."""
NEVER: Final = float("inf")


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


class Holder:
    """A bearer that was found good when it came, and may not be any more."""

    def __init__(self, gate: Gate, bearer: str, rights: Rights) -> None:
        self._gate = gate
        self._bearer = bearer
        self.rights = rights

    def check(self) -> None:
        """Look again.

        Raises:
            TokenRefusedError: The token has expired or was revoked meanwhile.
        """
        if self.rights is not OWNER:
            self._gate.identify(self._bearer)

    @contextlib.contextmanager
    def watch(self, on_ended: Callable[[], None]) -> Iterator[None]:
        """Within the block, call ``on_ended`` when it may be that the token has ended."""
        if self.rights is OWNER:
            yield
            return
        with self._gate.watch(on_ended), _timer(self.rights.expires_at, on_ended):
            yield


class Gate:
    """Tells who a bearer is. The secret key is to this store what an account's token is to S2."""

    def __init__(self, *, secret_key: str, tokens: Tokens) -> None:
        self._secret_key = secret_key
        self._tokens = tokens

    def admit(self, exchange: Exchange) -> Holder:
        """Who sends a request.

        Raises:
            TokenRefusedError: There is no bearer, or it is unknown, expired or revoked.
        """
        bearer = exchange.bearer
        if not bearer:
            raise TokenRefusedError("the access token is missing")
        if exchange.has_key(self._secret_key):
            return Holder(self, bearer, OWNER)

        return Holder(self, bearer, self.identify(bearer))

    def identify(self, bearer: str) -> Rights:
        """What a token allows.

        Raises:
            TokenRefusedError: It is unknown, expired or revoked.
        """
        token = self._tokens.identify(bearer)
        return Rights(
            token.ops,
            basins=Match(exact=BASIN),
            streams=Match(exact=token.stream),
            expires_at=token.expires_at,
        )

    def watch(self, on_ended: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Within the block, call ``on_ended`` whenever tokens are expired or revoked."""
        return self._tokens.watch(on_ended)


@contextlib.contextmanager
def _timer(at: float, call: Callable[[], None]) -> Iterator[None]:
    if at == NEVER:
        yield
        return
    timer = asyncio.get_running_loop().call_later(max(0.0, at - time.time()), call)
    try:
        yield
    finally:
        timer.cancel()
