"""Hands out credentials: the answer to every PUT that mints one."""

from __future__ import annotations

from typing import Final

from td_runtime.gateway.exchange import Reply, json_reply
from td_runtime.gateway.platform.tokens import TOKEN_LIFE_S, TOKEN_OPS, Tokens

FLUSH_INTERVAL_MS: Final = 100
MAX_RETRIES: Final = 10


class Issuer:
    """Answers mints.

    Args:
        tokens: Issues the access token.
        endpoint: The stream store's base URL, ``/v1`` included.
        basin: The stream store's basin.
    """

    def __init__(self, tokens: Tokens, *, endpoint: str, basin: str) -> None:
        self._tokens = tokens
        self._endpoint = endpoint
        self._basin = basin

    async def issue(
        self,
        *,
        slot: str,
        stream: str,
        ops: tuple[str, ...] = TOKEN_OPS,
        life_s: float = TOKEN_LIFE_S,
    ) -> Reply:
        """A credential for one stream, which is created if need be; arguments as ``Tokens.issue``.

        Raises:
            StoreUnavailableError: Nothing was stored.
        """
        token = await self._tokens.issue(slot=slot, stream=stream, ops=ops, life_s=life_s)
        headers = (
            ("X-S2-Access-Token", token),
            ("X-S2-Basin", self._basin),
            ("X-S2-Stream-Name", stream),
            ("X-S2-Flush-Interval-Ms", str(FLUSH_INTERVAL_MS)),
            ("X-S2-Max-Retries", str(MAX_RETRIES)),
            ("X-S2-Endpoint", self._endpoint),
        )

        return json_reply(202, {"version": "v2"}, headers)
