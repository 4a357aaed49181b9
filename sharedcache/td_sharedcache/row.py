"""What is known about one slot: a credential, or the gap where one should be.

Pure values. Every change makes a new row under a new `id`, and a store replaces a row only while it
still holds the id that the change was made from. That one comparison keeps late failures, late
refreshes and forgotten minters from undoing newer work.
"""

# msgspec reads the annotations of these classes, so they must not be postponed.
import hashlib
import secrets

import msgspec

from td_sharedcache.credential import Credential
from td_sharedcache.errors import MintError
from td_sharedcache.policy import Policy


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a failed mint, for callers in other processes."""

    message: str
    retryable: bool
    retry_after: float | None
    status: int | None

    @classmethod
    def of(cls, error: MintError) -> "Failure":
        """Take the facts out of an error."""
        return cls(
            message=str(error),
            retryable=error.retryable,
            retry_after=error.retry_after,
            status=error.status,
        )

    def to_error(self) -> MintError:
        """Make the error that the caller would have got in the process that minted."""
        return MintError(
            self.message,
            retryable=self.retryable,
            retry_after=self.retry_after,
            status=self.status,
        )


class Live(msgspec.Struct, frozen=True, kw_only=True, tag="live"):
    """The slot has a credential."""

    credential: Credential
    churn: int = 0
    """How many credentials in a row died young before this one."""
    failures: int = 0
    """How many refreshes of this one failed."""
    refresh_at: float
    """The credential's own time, or later once a refresh has failed."""

    @property
    def id(self) -> str:
        """The credential's identity is the row's."""
        return self.credential.id

    @property
    def at(self) -> float:
        """Mint time, bound into the sealed row."""
        return self.credential.minted_at

    def evicted(self, policy: Policy, now: float, *, refused: bool) -> "Gap":
        """Give the gap that its eviction leaves."""
        churn = self.churn + 1 if policy.is_churn(self.at, now) else 0

        return Gap(
            id=secrets.token_hex(8),
            at=now,
            until=now + policy.backoff(churn),
            churn=churn,
            refused=fingerprint(self.credential.access_token) if refused else "",
        )

    def refresh_failed(self, policy: Policy, now: float, error: MintError) -> "Live":
        """Put the next refresh off; the credential stays."""
        failures = self.failures + 1
        pause = max(policy.revalidate_every, policy.pause_after(failures, error.retry_after))

        return Live(
            credential=self.credential,
            churn=self.churn,
            failures=failures,
            refresh_at=now + pause,
        )


class Gap(msgspec.Struct, frozen=True, kw_only=True, tag="gap"):
    """The slot has no credential, and perhaps a reason to wait before asking for one."""

    id: str
    at: float
    until: float
    """No mint before this wall-clock time."""
    failures: int = 0
    churn: int = 0
    refused: str = ""
    """Fingerprint of a token that the stream store refused."""
    failure: Failure | None = None

    def pause_left(self, policy: Policy, now: float) -> float:
        """Give the seconds to wait; none if no pause could be that long: the clock was set back."""
        left = self.until - now

        return left if left <= max(policy.backoff_cap, policy.retry_after_cap) else 0.0

    def failed(self, policy: Policy, now: float, error: MintError, *, refused: str) -> "Gap":
        """Give the gap that a failed mint leaves."""
        forgotten = now - self.until > policy.failures_remembered
        failures = 1 if forgotten else self.failures + 1

        return Gap(
            id=secrets.token_hex(8),
            at=now,
            until=now + policy.pause_after(failures, error.retry_after),
            failures=failures,
            churn=self.churn,
            refused=refused,
            failure=Failure.of(error),
        )

    def filled(self, credential: Credential) -> Live:
        """Give the row of a credential that was minted for this gap."""
        return Live(credential=credential, churn=self.churn, refresh_at=credential.refresh_at)


Row = Live | Gap

NOTHING = Gap(id="", at=0.0, until=0.0)
"""The row of a slot that nobody has asked for yet."""


def fingerprint(token: str) -> str:
    """Tell two tokens apart without keeping either."""
    return hashlib.sha256(token.encode()).hexdigest()
