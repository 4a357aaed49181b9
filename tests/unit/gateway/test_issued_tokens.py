"""Access tokens of the stream store: what happens when several ask at once."""

from __future__ import annotations

import asyncio

import pytest

from td_runtime.gateway.errors import StoreUnavailableError
from td_runtime.gateway.platform.issued_tokens import IssuedTokens, TokenInfo, TokenScope
from td_runtime.gateway.platform.storage import Storage


async def test_two_may_revoke_at_once(storage: Storage) -> None:
    """Both are answered, and so is whoever's write was committed along with theirs."""
    issued = IssuedTokens(storage)
    await issued.issue(TokenInfo("t", TokenScope(ops=["read"])))

    both = asyncio.gather(issued.revoke("t"), issued.revoke("t"))
    await asyncio.wait_for(both, timeout=10)

    assert issued.all() == []


async def test_a_token_whose_client_hung_up_can_be_revoked_and_issued_again(
    storage: Storage,
) -> None:
    """Issued during a hang-up it is stored, so its id is known: taken, until it is revoked."""
    issued = IssuedTokens(storage)
    info = TokenInfo("t", TokenScope(ops=["read"]))
    asking = asyncio.ensure_future(issued.issue(info))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert issued.all() == [info]
    await issued.revoke("t")
    assert await issued.issue(info)


async def test_a_token_that_could_not_be_stored_is_forgotten(storage: Storage) -> None:
    """What is not in the file is not known either, and its id stays free."""
    issued, other = IssuedTokens(storage), IssuedTokens(storage)
    info = TokenInfo("t", TokenScope(ops=["read"]))
    await other.issue(info)

    with pytest.raises(StoreUnavailableError):
        await issued.issue(info)

    assert issued.all() == []
