"""Access tokens of the stream store: what happens when several ask at once."""

from __future__ import annotations

import asyncio

from td_runtime.gateway.platform.issued_tokens import IssuedTokens, TokenInfo, TokenScope
from td_runtime.gateway.platform.storage import Storage


async def test_two_may_revoke_at_once(storage: Storage) -> None:
    """Both are answered, and so is whoever's write was committed along with theirs."""
    issued = IssuedTokens(storage)
    await issued.issue(TokenInfo("t", TokenScope(ops=["read"])))

    both = asyncio.gather(issued.revoke("t"), issued.revoke("t"))
    await asyncio.wait_for(both, timeout=10)

    assert issued.all() == []
