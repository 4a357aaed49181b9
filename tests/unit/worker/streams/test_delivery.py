"""One batch's way to the store, with a scripted store and a scripted cache."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from td_sharedcache.credential import Credential
from td_sharedcache.errors import CredentialBackoffError, CredentialUnchangedError, MintError
from td_sharedcache.slot import Slot
from td_sharedcache.testing import make_grant
from td_worker.errors import (
    StreamStoreAuthError,
    StreamStoreBusyError,
    StreamStoreError,
    StreamStoreRefusedError,
    StreamStoreUnreachableError,
)
from td_worker.stream_store import Ack, Appended
from td_worker.streams.delivery import Delivery
from td_worker.streams.policy import StreamLimits

SLOT = Slot.run("run_1", "k")
LIMITS = StreamLimits(retry_base=0.0001, retry_cap=0.0001, retry_budget=5.0)
BODIES = [b"1", b"2"]
ACK = Ack(start=0, end=2, tail=2)


def credential(number: int, age: float = 0.0) -> Credential:
    """A credential minted `age` seconds ago; a negative age is in the future."""
    return Credential.of(
        make_grant(SLOT, number),
        SLOT,
        minted_at=time.time() - age,
        max_age=3600,
        freshness=0.8,
    )


class Cache:
    """Hands out credentials or raises, one after another; the last for ever."""

    def __init__(self, *script: Credential | Exception) -> None:
        self._script = list(script)
        self.evicted: list[tuple[str, bool]] = []
        self.gets = 0

    def peek(self, slot: Slot) -> Credential | None:
        return None

    async def get(self, slot: Slot) -> Credential:
        self.gets += 1
        found = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(found, Exception):
            raise found
        return found

    async def evict(
        self, slot: Slot, credential_id: str, *, reason: str, refused: bool = False
    ) -> bool:
        self.evicted.append((credential_id, refused))
        return True


class Store:
    """Raises what the script says, then acks; remembers what was sent with which credential."""

    def __init__(self, *errors: StreamStoreError) -> None:
        self._errors = list(errors)
        self.sent: list[tuple[str, Sequence[Appended]]] = []

    async def append(self, credential: Credential, records: Sequence[Appended]) -> Ack:
        self.sent.append((credential.id, records))
        if self._errors:
            raise self._errors.pop(0)
        return ACK


def delivery(cache: Cache, store: Store, limits: StreamLimits = LIMITS) -> Delivery:
    return Delivery(SLOT, credentials=cache, store=store, limits=limits)


def refused() -> StreamStoreAuthError:
    return StreamStoreAuthError("authn", status=401)


async def test_a_refused_credential_is_evicted_by_id_and_replaced():
    """The same bodies go out again with the next credential; the eviction names the refused one."""
    old, new = credential(1, age=60), credential(2, age=-60)
    cache, store = Cache(old, new), Store(refused())

    assert await delivery(cache, store).send(BODIES) == ACK
    assert cache.evicted == [(old.id, True)]
    assert store.sent == [(old.id, BODIES), (new.id, BODIES)]


async def test_a_stale_credential_of_another_worker_is_no_second_chance_lost():
    """What was minted before the first refusal may be stale as well: only a fresh one counts."""
    first, stale, fresh = credential(1, age=60), credential(2, age=30), credential(3, age=-60)
    cache, store = Cache(first, stale, fresh), Store(refused(), refused())

    assert await delivery(cache, store).send(BODIES) == ACK
    assert [one for one, _ in cache.evicted] == [first.id, stale.id]


async def test_a_fresh_credential_that_is_refused_ends_the_delivery():
    """Minted after the first refusal and refused too: the second is left to who gives up."""
    first, fresh = credential(1, age=60), credential(2, age=-60)
    cache, store = Cache(first, fresh), Store(refused(), refused())
    one = delivery(cache, store)
    with pytest.raises(StreamStoreAuthError):
        await one.send(BODIES)

    assert cache.evicted == [(first.id, True)]
    assert one.credential is fresh


async def test_stale_credentials_do_not_go_on_for_ever():
    """A cache that keeps handing out old credentials is given up after a bounded number."""
    cache = Cache(credential(1, age=60))
    store = Store(*[refused() for _ in range(100)])
    with pytest.raises(StreamStoreAuthError):
        await delivery(cache, store).send(BODIES)

    assert len(store.sent) < 20


@pytest.mark.parametrize(
    "error", [StreamStoreBusyError("503", status=503), StreamStoreUnreachableError("reset")]
)
async def test_trouble_is_retried_and_each_try_asks_for_the_credential(error):
    """Every try reads the credential anew, so one that was replaced meanwhile is found."""
    cache, store = Cache(credential(1), credential(2)), Store(error, error, error)

    assert await delivery(cache, store).send(BODIES) == ACK
    assert cache.gets == 4
    assert len({one for one, _ in store.sent}) == 2
    assert cache.evicted == []


@pytest.mark.parametrize(
    "error",
    [
        MintError("503", retryable=True),
        CredentialBackoffError(SLOT, seconds=0.001, until=0.0, because="503"),
    ],
)
async def test_a_mint_that_fails_for_now_is_tried_again(error):
    """Retryable mint errors and the cache's back-off are waited out within the budget."""
    cache, store = Cache(error, error, credential(1)), Store()

    assert await delivery(cache, store).send(BODIES) == ACK


@pytest.mark.parametrize("error", [MintError("404", status=404), CredentialUnchangedError(SLOT)])
async def test_a_mint_that_fails_for_good_ends_the_delivery(error):
    """An unknown run, or the very token that was just refused: no second try."""
    cache = Cache(error)
    with pytest.raises(type(error)):
        await delivery(cache, Store()).send(BODIES)

    assert cache.gets == 1


async def test_a_wish_to_wait_longer_than_the_budget_ends_the_delivery():
    """A server that asks for more than the budget is told no at once."""
    busy = StreamStoreBusyError("429", status=429, retry_after=3600)
    store = Store(busy)
    with pytest.raises(StreamStoreBusyError):
        await delivery(Cache(credential(1)), store).send(BODIES)

    assert len(store.sent) == 1


async def test_a_refusal_for_good_ends_the_delivery():
    """The same bytes would be refused again."""
    store = Store(StreamStoreRefusedError("422", status=422))
    with pytest.raises(StreamStoreRefusedError):
        await delivery(Cache(credential(1)), store).send(BODIES)

    assert len(store.sent) == 1


async def test_the_flush_interval_is_the_control_planes():
    """100 ms until a credential says otherwise."""
    one = delivery(Cache(credential(1)), Store())
    before = one.flush_interval
    await one.send(BODIES)

    assert (before, one.flush_interval) == (0.1, 0.2)
