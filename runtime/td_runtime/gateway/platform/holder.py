"""Whoever asks the stream store for something: what its bearer allows, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from td_runtime.gateway.errors import TokenRefusedError
from td_runtime.gateway.exchange import Exchange
from td_runtime.gateway.platform.forgery import strip_forged_record
from td_runtime.gateway.platform.issued_tokens import PREFIX, IssuedTokens
from td_runtime.gateway.platform.records import Batch
from td_runtime.gateway.platform.rights import NEVER, OWNER, Match, Rights
from td_runtime.gateway.platform.tokens import SENDER_OPS, Tokens

BASIN: Final = "td-embedded"
"""The basin that the control plane hands out; its streams have no basin in their stored name."""

_SENDER_OPS: Final = frozenset(SENDER_OPS)


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

    def admit(self, batch: Batch) -> None:
        """Look at what is to be appended, and take out of it what its sender may not claim.

        Raises:
            PermissionDeniedError: It needs operations that are not allowed.
            RecordsInvalidError: It cannot be looked at.
        """
        self.rights.require(batch.ops)
        if self.rights.is_sender:
            for record in batch.records:
                record.body = strip_forged_record(record.body)

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

    def __init__(self, *, secret_key: str, tokens: Tokens, issued: IssuedTokens) -> None:
        self._secret_key = secret_key
        self._tokens = tokens
        self._issued = issued

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
        if bearer.startswith(PREFIX):
            return self._issued.identify(bearer)
        token = self._tokens.identify(bearer)
        return Rights(
            token.ops,
            basins=Match(exact=BASIN),
            streams=Match(exact=token.stream),
            expires_at=token.expires_at,
            is_sender=token.ops == _SENDER_OPS,
        )

    @contextlib.contextmanager
    def watch(self, on_ended: Callable[[], None]) -> Iterator[None]:
        """Within the block, call ``on_ended`` whenever tokens are expired or revoked."""
        with self._tokens.watch(on_ended), self._issued.watch(on_ended):
            yield


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
