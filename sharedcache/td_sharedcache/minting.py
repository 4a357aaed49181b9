"""What happens to a slot, step by step, and under which lock.

Everything here is steps (see `flight`): the same code runs on an event loop and in a plain thread.
A slot's stripe is held from the look that finds nothing until the answer is installed; the store's
own lock only inside a single load or replace; never two stripes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from td_sharedcache.credential import Credential
from td_sharedcache.errors import (
    CacheUnavailableError,
    CredentialBackoffError,
    CredentialUnchangedError,
    MintError,
    StoreBusyError,
    StoreDownError,
)
from td_sharedcache.event import Level, Reporter
from td_sharedcache.flight import Steps, T
from td_sharedcache.info import CredentialInfo
from td_sharedcache.local import LocalCredentials
from td_sharedcache.patience import Patience
from td_sharedcache.policy import Clock, Policy, poll_pause
from td_sharedcache.row import NOTHING, Gap, Live, Row, fingerprint
from td_sharedcache.slot import Slot
from td_sharedcache.store import Store
from td_sharedcache.stores import Stores


class Minting:
    """Finds, mints, refreshes and evicts the credentials of one namespace."""

    def __init__(
        self,
        shared: Store,
        local: LocalCredentials,
        *,
        policy: Policy,
        clock: Clock,
        reporter: Reporter,
        max_age: float,
    ) -> None:
        self._local = local
        self._policy = policy
        self._clock = clock
        self._tell = reporter.tell
        self._max_age = max_age
        self._stores = Stores(
            shared,
            try_again_every=policy.revalidate_every,
            is_usable=self._is_usable,
            reporter=reporter,
            now=clock.monotonic,
        )

    def look(self, slot: Slot) -> tuple[Row, Credential | None]:
        """Look into the store once, without waiting.

        Returns:
            The row, and the credential to use if there is one.

        Raises:
            StoreBusyError: Another process is using the store right now.
            CredentialBackoffError: It is too soon to mint.
        """
        era = self._local.era
        try:
            row = self._stores.of(slot).load(slot)
        except StoreDownError as down:
            self.go_alone(slot, down)
            row = self._stores.memory.load(slot)

        return row, self._judge(slot, row, row.id, era)

    def is_due(self, row: Row) -> bool:
        """Tell whether a row's credential is good but should be refreshed."""
        return isinstance(row, Live) and row.refresh_at <= self._clock.wall()

    def fetch(self, slot: Slot, seen: str | None) -> Steps[Credential]:
        """Find or mint a credential, with the shared store if that is possible.

        Args:
            slot: What it is for.
            seen: The id of the row at the time of asking. A failure under another id is one this
                caller was waiting for, in whatever process it happened. None if no look was
                possible: the first row that is read counts.
        """
        try:
            return (yield from self._fetch_from(self._stores.of(slot), slot, seen))
        except StoreDownError as down:
            self.go_alone(slot, down)

        return (yield from self._fetch_from(self._stores.memory, slot, None))

    def refresh(self, slot: Slot) -> Steps[None]:
        """Replace a good credential by a newer one, unless somebody is at it already."""
        store = self._stores.of(slot)
        try:
            with store.stripe(slot) as held:
                era = self._local.era
                row = yield from self._patiently(lambda: store.load(slot))
                if held and isinstance(row, Live) and self._is_usable(row) and self.is_due(row):
                    yield from self._renew(store, slot, row, era)
        except StoreDownError as down:
            self.go_alone(slot, down)

    def evict(self, slot: Slot, credential_id: str, *, reason: str, refused: bool) -> Steps[bool]:
        """Take a credential from every process, if it is still the slot's current one.

        Returns:
            Whether it was this call that took it out of the shared store.
        """
        # Banned before anything else: from here on no path of this process leads back to it.
        held = self._local.ban(slot, credential_id)
        store = self._stores.of(slot)
        try:
            hit = yield from self._cut(store, slot, credential_id, refused)
        except StoreDownError as down:
            self.go_alone(slot, down)
            hit = False
            if held is not None:
                live = Live(credential=held, refresh_at=held.refresh_at)
                self._stores.memory.put(slot, self._evicted(live, refused=refused))
        name = "credential.evicted" if hit else "credential.eviction_refused"
        level: Level = "info" if hit else "debug"
        self._tell(name, level, slot, credential_id=credential_id, reason=reason)

        return hit and store is self._stores.shared

    def list(self) -> Steps[tuple[CredentialInfo, ...]]:
        """Give what is known of every credential in the shared store that may be used.

        Raises:
            CacheUnavailableError: The store could not be reached.
        """
        with _reaching("listed"):
            rows = yield from self._patiently(self._stores.shared.rows)

        return tuple(
            CredentialInfo.of(slot, row, used_at)
            for slot, row, used_at in rows
            if isinstance(row, Live) and self._is_usable(row)
        )

    def reset(self) -> Steps[None]:
        """Drop every credential of the namespace.

        Raises:
            CacheUnavailableError: The shared ones could not be reached.
        """
        self.drop_all()
        with _reaching("reset"):
            yield from self._patiently(self._stores.shared.clear)
        # Once more: a look that began before the shared rows were gone may have ended since.
        self.drop_all()
        self._tell("credential.reset", "info")

    def drop_all(self) -> bool:
        """Forget every credential of this process; tells whether it had one."""
        self._stores.memory.clear()

        return self._local.drop_all()

    def go_alone(self, slot: Slot, down: StoreDownError) -> None:
        """Do without the shared store for one slot, with the credential this process has."""
        self._stores.go_alone(slot, down, self._local.held(slot))

    def _is_usable(self, row: Row) -> bool:
        if not isinstance(row, Live) or self._local.is_banned(row.id):
            return False
        credential = row.credential

        return self._policy.is_usable(
            credential.minted_at, credential.expires_at, self._clock.wall()
        )

    def _judge(self, slot: Slot, row: Row, seen: str | None, era: int) -> Credential | None:
        """Decide what a row means to a caller that came when the row's id was `seen`.

        Returns:
            The credential to use; None if it is time to mint.
        """
        if isinstance(row, Gap):
            self._local.drop(slot)
            if row.failure is not None and row.id != seen:
                raise row.failure.to_error()
            self._check_backoff(slot, row)
            return None

        if not self._is_usable(row):
            return None
        self._local.keep(row.credential, era)
        self._tell("credential.shared", "debug", slot, credential_id=row.id)

        return row.credential

    def _check_backoff(self, slot: Slot, gap: Gap) -> None:
        left = gap.pause_left(self._policy, self._clock.wall())
        if left <= 0:
            return

        because = gap.failure.message if gap.failure else "its credentials keep being evicted"
        self._tell("credential.mint_backed_off", "debug", slot, seconds=round(left, 3))
        raise CredentialBackoffError(slot, seconds=left, until=gap.until, because=because)

    def _fetch_from(self, store: Store, slot: Slot, seen: str | None) -> Steps[Credential]:
        since, stamp = self._clock.monotonic(), None
        while True:
            with store.stripe(slot) as held:
                now = store.stamp()
                found = None
                # Nothing new is read while somebody else is at it, and the file stays the same.
                if held or now != stamp:
                    stamp, era = now, self._local.era
                    # Read again under the lock: whoever held it before us was probably minting.
                    row = yield from self._patiently(lambda: store.load(slot))
                    seen = row.id if seen is None else seen
                    found = self._judge(slot, row, seen, era)
                    if found is None and held:
                        found = yield from self._fill(store, slot, row, era)
            if found is not None:
                return found
            self._check_wait(slot, since)
            yield poll_pause(self._clock.monotonic() - since)

    def _fill(self, store: Store, slot: Slot, row: Row, era: int) -> Steps[Credential | None]:
        """Mint for a slot without a usable credential; its stripe is held.

        Returns:
            The new credential, or None if the row has changed and must be read again.
        """
        if isinstance(row, Gap):
            return (yield from self._mint(store, slot, row, era))
        if self._local.is_banned(row.id):
            # An eviction of this process that has not got there yet: it counts as churn.
            gap = self._evicted(row, refused=False)
            if (yield from self._patiently(lambda: store.replace(slot, row.id, gap))):
                reason = "it has failed in this process"
                self._tell("credential.evicted", "info", slot, credential_id=row.id, reason=reason)
            return None

        return (yield from self._mint(store, slot, Gap(id=row.id, at=row.at, until=0.0), era))

    def _mint(self, store: Store, slot: Slot, gap: Gap, era: int) -> Steps[Credential | None]:
        started = self._clock.monotonic()
        try:
            credential = yield from self._ask(slot, gap.refused)
        except MintError as error:
            # A token that came back once is let through the next time: it may have been refused
            # for something that has passed, and nobody can make the control plane forget it.
            refused = "" if isinstance(error, CredentialUnchangedError) else gap.refused
            failed = gap.failed(self._policy, self._clock.wall(), error, refused=refused)
            yield from self._install(store, slot, gap.id, failed)
            self._tell_failed(slot, error, failures=failed.failures, pause=failed.until - failed.at)
            raise

        is_used = yield from self._install(store, slot, gap.id, gap.filled(credential))
        if is_used:
            self._local.keep(credential, era)
        self._tell_minted("credential.minted", slot, credential, started, is_used)

        return credential if is_used else None

    def _renew(self, store: Store, slot: Slot, row: Live, era: int) -> Steps[None]:
        started = self._clock.monotonic()
        try:
            credential = yield from self._ask(slot, "")
        except MintError as error:
            later = row.refresh_failed(self._policy, self._clock.wall(), error)
            yield from self._install(store, slot, row.id, later)
            pause = later.refresh_at - self._clock.wall()
            self._tell_failed(slot, error, failures=later.failures, pause=pause)
            return

        is_used = yield from self._install(store, slot, row.id, NOTHING.filled(credential))
        if is_used:
            self._local.keep(credential, era)
        self._tell_minted("credential.refreshed", slot, credential, started, is_used)

    def _ask(self, slot: Slot, refused: str) -> Steps[Credential]:
        """Send the PUT.

        Args:
            slot: What for.
            refused: The fingerprint of a token that must not come back.
        """
        # Taken before the PUT, so that a slow answer does not lengthen the credential's life.
        minted_at = self._clock.wall()
        grant = yield slot
        if grant is None:
            raise MintError(f"minting {slot} gave nothing")
        if refused and fingerprint(grant.access_token) == refused:
            self._tell("credential.remint_unchanged", "error", slot)
            raise CredentialUnchangedError(slot)

        return Credential.of(
            grant,
            slot,
            minted_at=minted_at,
            max_age=self._max_age,
            freshness=self._policy.freshness(),
        )

    def _install(self, store: Store, slot: Slot, expected: str, row: Row) -> Steps[bool]:
        """Put a row into the store; a store that fails now costs sharing, not the answer."""
        try:
            return (yield from self._patiently(lambda: store.replace(slot, expected, row)))
        except StoreDownError as down:
            self.go_alone(slot, down)
            self._stores.memory.put(slot, row)

        return True

    def _cut(self, store: Store, slot: Slot, credential_id: str, refused: bool) -> Steps[bool]:
        row = yield from self._patiently(lambda: store.load(slot))
        if not isinstance(row, Live) or row.id != credential_id:
            return False
        gap = self._evicted(row, refused=refused)

        return (yield from self._patiently(lambda: store.replace(slot, credential_id, gap)))

    def _evicted(self, live: Live, *, refused: bool) -> Gap:
        return live.evicted(self._policy, self._clock.wall(), refused=refused)

    def _patiently(self, work: Callable[[], T]) -> Steps[T]:
        """Do something with a store, waiting while other processes use it."""
        patience = Patience(self._policy, self._clock.monotonic, self._stores.shared.idle_holders)
        while True:
            try:
                return work()
            except StoreBusyError as busy:
                if patience.is_over():
                    raise StoreDownError("the store's own lock is held by somebody else") from busy
            yield poll_pause(patience.waited)

    def _check_wait(self, slot: Slot, since: float) -> None:
        waited = self._clock.monotonic() - since
        if waited < self._policy.lock_wait:
            return

        self._tell("lock.timed_out", "warning", slot, seconds=round(waited, 3))
        raise StoreDownError("another process holds the slot's lock beyond its bound")

    def _tell_minted(
        self, name: str, slot: Slot, credential: Credential, started: float, is_used: bool
    ) -> None:
        self._tell(
            name,
            "info",
            slot,
            credential_id=credential.id,
            seconds=round(self._clock.monotonic() - started, 3),
            used=is_used,
        )

    def _tell_failed(self, slot: Slot, error: MintError, *, failures: int, pause: float) -> None:
        self._tell(
            "credential.mint_failed",
            "warning",
            slot,
            error=str(error),
            status=error.status,
            retryable=error.retryable,
            failures=failures,
            retry_in=round(max(0.0, pause), 3),
        )


@contextmanager
def _reaching(purpose: str) -> Iterator[None]:
    """Turn a store that cannot be used into what the caller may be told."""
    try:
        yield
    except StoreDownError as down:
        raise CacheUnavailableError(
            f"the shared credentials could not be {purpose}: {down}. "
            "Check the folder named by [credentials] dir and try again"
        ) from down
