"""What one credential is for."""

from __future__ import annotations

from urllib.parse import quote, unquote


class Slot(str):
    """One stream to write to, as its canonical text: `run/<run id>/<stream key>` and the like.

    A slot is its own text, so that looking one up costs what a string costs. Each part is
    percent-encoded: a slash inside a stream key cannot make two slots look alike.
    """

    __slots__ = ()

    @classmethod
    def run(cls, run_id: str, key: str) -> Slot:
        """Name the stream `key` of one run."""
        return cls._of("run", run_id, key)

    @classmethod
    def session(cls, session_id: str, channel: str, io: str) -> Slot:
        """Name one direction (`io`, for example "out") of a session's channel."""
        return cls._of("session", session_id, channel, io)

    @classmethod
    def _of(cls, kind: str, *parts: str) -> Slot:
        if not all(parts):
            raise ValueError(f"no part of a {kind} slot may be empty, got {parts!r}")

        return cls("/".join((kind, *(quote(part, safe="") for part in parts))))

    @property
    def kind(self) -> str:
        """Either "run" or "session"."""
        return self.partition("/")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names the slot was made of, decoded."""
        return tuple(unquote(part) for part in self.split("/")[1:])
