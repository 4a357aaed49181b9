"""A string that does not show itself."""

from __future__ import annotations

__all__ = ["Secret"]


class Secret:
    """A secret whose `repr`, `str` and `format` are masks; only `reveal()` gives the text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: hand it to the wire or to a child's pipe, never to a log."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented

        import hmac  # where it is compared: it brings OpenSSL along

        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)
