"""A session's two id forms are one slot: credentials by the one name that the session goes by."""

from __future__ import annotations

from typing import Protocol

from td_sharedcache.credential import Credential
from td_sharedcache.slot import Slot
from td_worker.streams.delivery import Credentials


class SessionIds(Protocol):
    """Who knows what a session is called: the control plane."""

    async def canonical_id(self, session_id: str) -> str:
        """Return the one id of a session."""
        ...

    def known_id(self, session_id: str) -> str | None:
        """Return it without asking, None when it is not known here."""
        ...


class CanonicalCredentials:
    """
    The credential cache, with slots of sessions resolved to their canonical ones.

    A session may be opened by the id that the control plane gave it, which is resolved by the first
    write, on the runtime loop: opening needs no request and blocks nobody.
    """

    def __init__(self, credentials: Credentials, sessions: SessionIds) -> None:
        self._credentials = credentials
        self._sessions = sessions

    def peek(self, slot: Slot) -> Credential | None:
        """Return the credential at hand, without any I/O."""
        known = known_slot(slot, self._sessions)

        return None if known is None else self._credentials.peek(known)

    async def get(self, slot: Slot) -> Credential:
        """Return a credential, minted if need be."""
        known = known_slot(slot, self._sessions)
        if known is None:
            session_id, channel, io = slot.parts
            known = Slot.session(await self._sessions.canonical_id(session_id), channel, io)

        return await self._credentials.get(known)

    async def evict(
        self, slot: Slot, credential_id: str, *, reason: str, refused: bool = False
    ) -> bool:
        """Remove the slot's credential if it is still that one."""
        known = known_slot(slot, self._sessions)
        if known is None:  # then none was ever handed out for it here
            return False

        return await self._credentials.evict(known, credential_id, reason=reason, refused=refused)


def known_slot(slot: Slot, sessions: SessionIds) -> Slot | None:
    """Return the canonical form of `slot` as far as it is known, without asking."""
    if not slot.startswith("session/session_"):
        return slot
    session_id, channel, io = slot.parts
    known = sessions.known_id(session_id)

    return None if known is None else Slot.session(known, channel, io)
