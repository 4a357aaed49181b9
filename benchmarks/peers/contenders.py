"""How each cache is used to share a token between processes, as its documentation says.

Every contender is opened in the process that uses it, after the fork. One that says how to look up,
but has no lock of its own, is given the kind of lock its documentation offers, and looks again once
it has the lock. What a contender imports is there in its own environment only.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peers.control_plane import Address, PutFailedError, put, put_async

TTL = 3600
LEASE = 10
"""Seconds after which a lock that is a row belongs to nobody, where one is given at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where everything is that the processes share."""

    folder: Path
    control_plane: Address
    redis: str = ""
    """A URL."""


class Contender:
    """A cache in one process."""

    is_async = False
    modules: tuple[str, ...] = ()
    """What it imports."""
    failures: tuple[type[Exception], ...] = (PutFailedError,)
    """What a caller gets when the PUT has failed."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @classmethod
    def lay_out(cls, place: Place) -> None:
        """Make what must be there before several processes open the cache at once."""

    def prepare(self, name: str) -> Any:
        """Return what the contender calls a credential by that name."""
        return name

    def get(self, key: Any) -> str:
        """Return the token, from the control plane if nobody has it."""
        raise NotImplementedError

    async def get_async(self, key: Any) -> str:
        """Do the same on an event loop."""
        raise NotImplementedError

    def advised_pause(self, error: Exception) -> float | None:
        """Return how long the cache asks its caller to wait after a failure, if it does."""
        del error
        return None

    def put(self, key: Any) -> str:
        """Ask the control plane."""
        return put(self.place.control_plane, key)


class AsyncContender(Contender):
    """A cache for event loops; `get` is for callers that have none."""

    is_async = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.loop = asyncio.new_event_loop()

    def get(self, key: Any) -> str:
        return self.loop.run_until_complete(self.get_async(key))

    async def put_async(self, key: Any) -> str:
        """Ask the control plane."""
        return await put_async(self.place.control_plane, key)


class OursBlocking(Contender):
    """Our cache, called from a plain thread."""

    modules = ("td_sharedcache.cache",)
    revalidate_every = 10.0

    def __init__(self, place: Place) -> None:
        from td_sharedcache import CredentialCache, MintError, Policy

        super().__init__(place)
        self.failures = (MintError,)
        self.cache = CredentialCache(
            place.folder / "credentials",
            origin="http://127.0.0.1",
            api_key="tr_dev_benchmark",
            minter=_AsyncGranting(place) if self.is_async else _Granting(place),
            policy=Policy(revalidate_every=self.revalidate_every),
        )

    def prepare(self, name: str) -> Any:
        from td_sharedcache import Slot

        return Slot.run(name, "chat")

    def get(self, key: Any) -> str:
        return self.cache.get_blocking(key).access_token

    def advised_pause(self, error: Exception) -> float | None:
        return getattr(error, "retry_after", None) or 0.0


class OursShared(OursBlocking):
    """Our cache, made to look at the shared file at every call."""

    revalidate_every = 0.0


class OursAsync(AsyncContender, OursBlocking):
    """Our cache, called from an event loop."""

    async def get_async(self, key: Any) -> str:
        return (await self.cache.get(key)).access_token


class _Granting:
    def __init__(self, place: Place) -> None:
        self._place = place

    def mint(self, slot: Any) -> Any:
        with _refusals():
            return _grant(put(self._place.control_plane, slot))


class _AsyncGranting:
    def __init__(self, place: Place) -> None:
        self._place = place

    async def mint(self, slot: Any) -> Any:
        with _refusals():
            return _grant(await put_async(self._place.control_plane, slot))


@contextmanager
def _refusals() -> Iterator[None]:
    from td_sharedcache import MintError

    try:
        yield
    except PutFailedError as error:
        raise MintError(str(error), retryable=True) from error


def _grant(token: str) -> Any:
    from td_sharedcache import Grant

    return Grant(
        access_token=token,
        basin="basin",
        stream="stream",
        endpoint="http://127.0.0.1/v1",
        flush_interval=0.2,
        max_retries=3,
        version="v2",
    )


class PerProcess(Contender):
    """A dict in every process, which is what upstream's SDK has."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._entries: dict[str, tuple[float, str]] = {}

    def get(self, key: Any) -> str:
        entry = self._entries.get(key)
        if entry is None or entry[0] <= time.monotonic():
            entry = self._entries[key] = (time.monotonic() + TTL, self.put(key))

        return entry[1]


class DiskcacheStampede(Contender):
    """diskcache's recipe against stampedes."""

    modules = ("diskcache",)

    def __init__(self, place: Place) -> None:
        import diskcache

        super().__init__(place)
        cache = diskcache.Cache(str(place.folder / "diskcache"))
        self._get = diskcache.memoize_stampede(cache, expire=TTL)(self.put)

    def get(self, key: Any) -> str:
        return str(self._get(key))


class DiskcacheLock(Contender):
    """diskcache and its own lock, which is a row."""

    modules = ("diskcache",)
    lease: int | None = None

    def __init__(self, place: Place) -> None:
        import diskcache

        super().__init__(place)
        self._cache = diskcache.Cache(str(place.folder / "diskcache"))
        self._lock = diskcache.Lock

    def get(self, key: Any) -> str:
        token = self._cache.get(key)
        if token is None:
            with self._lock(self._cache, f"{key}.lock", expire=self.lease):
                token = self._cache.get(key)
                if token is None:
                    token = self.put(key)
                    self._cache.set(key, token, expire=TTL)

        return str(token)


class DiskcacheLease(DiskcacheLock):
    """The same, with a lock that ends by itself."""

    lease = LEASE


class FilelockJson(Contender):
    """A JSON file that is replaced by renaming, under a `filelock.FileLock`."""

    modules = ("filelock",)

    def __init__(self, place: Place) -> None:
        import filelock  # type: ignore[import-not-found]  # in the peers' environment

        super().__init__(place)
        self._lock: Callable[[str], Any] = filelock.FileLock

    def get(self, key: Any) -> str:
        path = f"{self.place.folder}/{key}.json"
        token = self._read(path)
        if token is None:
            with self._lock(f"{path}.lock"):
                token = self._read(path)
                if token is None:
                    token = self.put(key)
                    self._write(path, token)

        return token

    def _read(self, path: str) -> str | None:
        try:
            with open(path, "rb") as file:
                entry = json.loads(file.read())
        except FileNotFoundError:
            return None

        return str(entry["token"]) if entry["until"] > time.time() else None

    def _write(self, path: str, token: str) -> None:
        fresh = f"{path}.{secrets.token_hex(4)}"
        with open(fresh, "w") as file:
            json.dump({"token": token, "until": time.time() + TTL}, file)
        os.replace(fresh, path)


class DogpileFile(Contender):
    """dogpile.cache on a dbm file, under its own file lock."""

    modules: tuple[str, ...] = ("dogpile.cache.backends.file",)

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._region = self._open()

    @classmethod
    def lay_out(cls, place: Place) -> None:
        # Whoever opens the file while another process makes it gets a `dbm.error`.
        cls(place)

    def get(self, key: Any) -> str:
        return str(self._region.get_or_create(key, self.put, creator_args=((key,), {})))

    def _open(self) -> Any:
        return self._configure("dogpile.cache.dbm", filename=str(self.place.folder / "dogpile.dbm"))

    def _configure(self, backend: str, **arguments: Any) -> Any:
        from dogpile.cache import make_region  # type: ignore[import-not-found]  # see FilelockJson

        region = make_region()

        return region.configure(backend, expiration_time=TTL, arguments=arguments)


class DogpileRedis(DogpileFile):
    """dogpile.cache on Redis as it comes: a lock in each process."""

    modules = ("dogpile.cache.backends.redis", "redis")
    options: Mapping[str, Any] = MappingProxyType({})

    def _open(self) -> Any:
        url = self.place.redis

        return self._configure("dogpile.cache.redis", url=url, **self.options)


class DogpileRedisLock(DogpileRedis):
    """dogpile.cache on Redis with `distributed_lock`."""

    options = MappingProxyType({"distributed_lock": True, "thread_local_lock": False})


class DogpileRedisLease(DogpileRedis):
    """The same, with a lock that ends by itself."""

    options = MappingProxyType({**DogpileRedisLock.options, "lock_timeout": LEASE})


class CashewsDisk(AsyncContender):
    """cashews on diskcache, with its lock only where nothing is found.

    `@cache(lock=True)` takes the lock at every hit as well, which costs milliseconds.
    """

    modules = ("cashews", "diskcache")

    def __init__(self, place: Place) -> None:
        from cashews import Cache  # type: ignore[import-not-found]  # see FilelockJson

        super().__init__(place)
        self._cache = Cache()
        self._cache.setup(self._url())

    async def get_async(self, key: Any) -> str:
        token = await self._cache.get(key)
        if token is None:
            async with self._cache.lock(f"{key}.lock", LEASE):
                token = await self._cache.get(key)
                if token is None:
                    token = await self.put_async(key)
                    await self._cache.set(key, token, expire=TTL)

        return str(token)

    def _url(self) -> str:
        return f"disk://?directory={self.place.folder}/cashews&shards=0"


class CashewsRedis(CashewsDisk):
    """cashews on Redis, likewise."""

    modules = ("cashews", "redis.asyncio")

    def _url(self) -> str:
        return self.place.redis


CONTENDERS: dict[str, type[Contender]] = {
    contender.__name__: contender
    for contender in (
        OursBlocking,
        OursAsync,
        OursShared,
        PerProcess,
        DiskcacheStampede,
        DiskcacheLock,
        DiskcacheLease,
        FilelockJson,
        DogpileFile,
        DogpileRedis,
        DogpileRedisLock,
        DogpileRedisLease,
        CashewsDisk,
        CashewsRedis,
    )
}
