"""What can go wrong in the gateway.

::

    GatewayError
    ├── SettingsError               the supervisor's settings do not fit
    ├── StoreOpenError              platform.db cannot be opened (exit code 6)
    ├── PortUnavailableError        nothing can listen on the port
    ├── StoreUnavailableError       a write could not be committed; nothing of it was stored
    ├── RequestError                the caller's fault, before anything was stored
    │   ├── BodyTooLargeError
    │   ├── ClientGoneError         the body broke off
    │   ├── RecordsInvalidError
    │   ├── QueryInvalidError
    │   ├── FormatUnsupportedError
    │   ├── HeaderInvalidError
    │   ├── EncodingInvalidError    a body that does not decompress
    │   ├── ProtobufInvalidError
    │   ├── FrameInvalidError       in a session
    │   └── ConfigInvalidError      of a stream, a basin or a token
    ├── SessionBrokenError          an earlier batch of the session failed
    ├── DrainingError               the gateway ends; what it accepted is acknowledged
    ├── StreamNotFoundError
    ├── BasinNotFoundError
    ├── TokenNotFoundError
    ├── NameTakenError              a stream, a basin or a token of that name exists
    ├── RangeUnsatisfiableError     a read that starts beyond the tail
    ├── ConditionFailedError
    │   ├── SeqNumMismatchError
    │   └── FencingTokenMismatchError
    └── AccessError
        ├── TokenRefusedError       unknown, expired or revoked
        └── PermissionDeniedError   a good token for something else

Each domain error is turned into an HTTP answer at one border: the S2 shapes in
``platform/refusals.py``, the control plane's in ``platform/control_plane.py``.
"""

from __future__ import annotations


class GatewayError(Exception):
    """Root of everything the gateway raises itself."""


class SettingsError(GatewayError):
    """The JSON settings on standard input do not fit; the supervisor writes them."""


class StoreOpenError(GatewayError):
    """The store cannot be opened: check that the data folder is writable and not full."""


class PortUnavailableError(GatewayError):
    """The port cannot be listened on.

    Attributes:
        host: The interface asked for.
        port: The port.
    """

    def __init__(self, *, host: str, port: int, reason: str) -> None:
        super().__init__(
            f"cannot listen on {host}:{port}: {reason}; end the process that has it or configure"
            " another port"
        )
        self.host = host
        self.port = port


class StoreUnavailableError(GatewayError):
    """The write was not committed and nothing of it is stored; try again."""


class RequestError(GatewayError):
    """The request cannot be served as it is; sending it again changes nothing."""


class BodyTooLargeError(RequestError):
    """A request body beyond a limit.

    Attributes:
        limit: The limit, in bytes.
    """

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"request body too large: the HTTP body limit is {limit} bytes")
        self.limit = limit


class ClientGoneError(RequestError):
    """The client went away before all of its request had come; nothing of it was used."""


class RecordsInvalidError(RequestError):
    """A batch that the stream store refuses as a whole."""


class QueryInvalidError(RequestError):
    """A query parameter that does not parse."""


class HeaderInvalidError(RequestError):
    """A header that is missing or does not parse."""


class FormatUnsupportedError(RequestError):
    """A content type or encoding that is not known."""


class EncodingInvalidError(RequestError):
    """A body that is not compressed as its header says."""


class ProtobufInvalidError(RequestError):
    """A body that is not the message expected."""


class FrameInvalidError(RequestError):
    """What comes in a session is no frame; nothing of it was used, nor of what followed."""


class ConfigInvalidError(RequestError):
    """A stream, basin or token is asked for in a way that it cannot be made."""


class SessionBrokenError(GatewayError):
    """An earlier batch of the same session failed, so this one was not stored either."""


class DrainingError(GatewayError):
    """The gateway ends. All that it accepted in the session is acknowledged; nothing else was."""


class StreamNotFoundError(GatewayError):
    """The stream does not exist.

    Attributes:
        stream: The stream's name.
    """

    def __init__(self, stream: str) -> None:
        self.stream = stream.rpartition("\0")[2]  # what comes before is its basin
        super().__init__(f"stream `{self.stream}` not found")


class BasinNotFoundError(GatewayError):
    """The request names a basin that does not exist."""


class TokenNotFoundError(GatewayError):
    """No access token has that id."""


class NameTakenError(GatewayError):
    """There is one of that name, and it was asked for as a new one."""


class RangeUnsatisfiableError(GatewayError):
    """The read starts beyond the tail, or at it without leave to wait.

    Attributes:
        seq_num: The tail's sequence number.
        timestamp: The last record's timestamp, in milliseconds.
    """

    def __init__(self, *, seq_num: int, timestamp: int) -> None:
        super().__init__(f"the read starts at or beyond the tail ({seq_num})")
        self.seq_num = seq_num
        self.timestamp = timestamp


class ConditionFailedError(GatewayError):
    """The batch named a condition that does not hold; nothing was stored."""


class SeqNumMismatchError(ConditionFailedError):
    """The first record would get another sequence number.

    Attributes:
        expected: The number it would get.
    """

    def __init__(self, expected: int) -> None:
        super().__init__(f"the next sequence number is {expected}")
        self.expected = expected


class FencingTokenMismatchError(ConditionFailedError):
    """Somebody else has fenced the stream.

    Attributes:
        current: The fencing token in force.
    """

    def __init__(self, current: str) -> None:
        super().__init__("the fencing token is another")
        self.current = current


class AccessError(GatewayError):
    """The caller may not do this."""


class TokenRefusedError(AccessError):
    """The access token is missing, unknown, expired or revoked."""


class PermissionDeniedError(AccessError):
    """The access token is good, but not for this stream or this operation."""
