"""Everything that can go wrong with a shared credential.

The tree, in the order a reader meets it::

    CacheError
    ├── CacheDirectoryError            the folder may not hold credentials
    ├── CacheUnavailableError          reset() or list() could not reach the shared file
    └── MintError                      no credential could be had
        ├── CredentialBackoffError     too soon after the last failure: nothing was sent
        └── CredentialUnchangedError   the mint returned the very token that was just refused

Three more never leave the package: `StoreBusyError` (try again in a moment), `StoreDownError` (go
on without the shared file) and `RowRefusedError` (a row that we did not write).
"""

from __future__ import annotations

from typing import Any


class CacheError(Exception):
    """The root of every error that td_sharedcache raises on purpose."""


class CacheDirectoryError(CacheError):
    """The folder for shared credentials is not safe to use.

    Attributes:
        path: The folder in question.
        advice: What to do about it.
    """

    def __init__(self, path: str, problem: str, advice: str) -> None:
        super().__init__(f"{path} cannot hold credentials: {problem}. {advice}")
        self.path = path
        self.problem = problem
        self.advice = advice

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.problem, self.advice)


class CacheUnavailableError(CacheError):
    """The shared credentials could not be reset or listed: their file cannot be reached."""


class MintError(CacheError):
    """The control plane gave no credential.

    Minters raise it, or a subclass; every caller that waits on the same flight gets it.

    Attributes:
        retryable: Whether the same call may succeed later.
        retry_after: Seconds the control plane asked to be left alone, if it said so.
        status: The HTTP status, if there was an answer.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class CredentialBackoffError(MintError):
    """No mint was tried: the slot failed a moment ago and is backing off, on the whole host.

    Attributes:
        retry_after: Seconds until a mint may be tried.
        until: The same as a wall-clock time.
    """

    retry_after: float

    def __init__(self, slot: str, *, seconds: float, until: float, because: str) -> None:
        super().__init__(
            f"no credential for {slot} yet: {because}. The next try is due in {seconds:.2f} s",
            retryable=True,
            retry_after=seconds,
        )
        self.until = until


class CredentialUnchangedError(MintError):
    """The control plane returned the token that the stream store had just refused.

    Sending with it again would fail again, so the caller is told instead.
    """

    def __init__(self, slot: str) -> None:
        super().__init__(
            f"the new credential for {slot} carries the token that was just refused. "
            "Check that the stream exists and that the control plane's own token cache is not stale"
        )


class StoreBusyError(Exception):
    """Another process is using the store right now."""


class StoreDownError(Exception):
    """The store cannot be used: gone, full, read-only, insecure or locked for too long."""


class RowRefusedError(Exception):
    """A row is not one that this namespace wrote for this slot."""


def _rebuild(kind: type[MintError], args: tuple[Any, ...], facts: dict[str, Any]) -> MintError:
    """Unpickle an error without calling a constructor whose arguments were already rendered."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)

    return error
