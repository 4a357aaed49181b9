"""Channels: what a session's name in a URL means, and what its streams and slots are called.

A session S has a main channel, and side channels by name, ``S/channels/name`` in a URL. A side
channel has no row of its own: it is open and closed with S, and who may read S may read it.
"""

import re
from typing import Final
from urllib.parse import quote

import msgspec

from td_runtime.gateway.platform.answers import STREAM_NAME_TOO_LONG, RefusalError
from td_runtime.gateway.platform.names import channel_stream, session_stream
from td_runtime.gateway.platform.sessions import ID_PREFIX, Session, Sessions
from td_runtime.gateway.platform.streams import NAME_BYTES_MAX

MAIN: Final = "main"
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One channel of a session; ``session`` is None for one that only its writers know."""

    key: str
    name: str
    ids: frozenset[str]
    session: Session | None

    def stream(self, io: str) -> str:
        """The stream store's name of one direction.

        Raises:
            RefusalError: It would be longer than the stream store takes.
        """
        is_main = self.name == MAIN
        stream = (
            session_stream(self.key, io) if is_main else channel_stream(self.key, self.name, io)
        )
        if len(stream.encode()) > NAME_BYTES_MAX:
            raise RefusalError(STREAM_NAME_TOO_LONG)

        return stream

    def slot(self, io: str) -> str:
        """The canonical text of the slot of one direction."""
        parts = (self.key, self.name, io)
        return "session/" + "/".join(quote(part, safe="") for part in parts)


def find_channel(sessions: Sessions, ref: str, name: str = MAIN) -> Channel | None:
    """The channel that a URL names.

    Args:
        sessions: Where to look.
        ref: A session's id, of either kind.
        name: The channel's name.

    Returns:
        None when the id is one that only we could have given, and have not.
    """
    session = sessions.find(ref)
    if session is None:
        if ref.startswith(ID_PREFIX):
            return None
        return Channel(key=ref, name=name, ids=frozenset({ref}), session=None)
    ids = {one for one in (ref, session.id, session.external_id) if one is not None}

    return Channel(key=session.key, name=name, ids=frozenset(ids), session=session)


def is_channel_name(text: str) -> bool:
    """Whether a channel may have this name."""
    return _NAME.fullmatch(text) is not None
