"""How the stream store tells a client of an error: status, code, and S2's special bodies."""

from typing import Final

from td_runtime.gateway.errors import (
    BasinNotFoundError,
    BodyTooLargeError,
    ClientGoneError,
    ConfigInvalidError,
    DrainingError,
    EncodingInvalidError,
    FencingTokenMismatchError,
    FormatUnsupportedError,
    FrameInvalidError,
    GatewayError,
    HeaderInvalidError,
    NameTakenError,
    PermissionDeniedError,
    ProtobufInvalidError,
    QueryInvalidError,
    RangeUnsatisfiableError,
    RecordsInvalidError,
    SeqNumMismatchError,
    SessionBrokenError,
    StoreUnavailableError,
    StreamNotFoundError,
    TokenNotFoundError,
    TokenRefusedError,
)
from td_runtime.gateway.exchange import Reply, json_reply
from td_runtime.gateway.platform.records import StreamPosition

# One line an error: status and code. The special bodies of 412 and 416 are in ``_special``.
_CODES: Final[dict[type[GatewayError], tuple[int, str]]] = {
    QueryInvalidError: (400, "bad_query"),
    HeaderInvalidError: (400, "bad_header"),
    EncodingInvalidError: (400, "bad_header"),
    ProtobufInvalidError: (400, "bad_proto"),
    FrameInvalidError: (400, "bad_frame"),
    TokenRefusedError: (401, "authn"),
    PermissionDeniedError: (403, "permission_denied"),
    StreamNotFoundError: (404, "stream_not_found"),
    BasinNotFoundError: (404, "basin_not_found"),
    TokenNotFoundError: (404, "access_token_not_found"),
    NameTakenError: (409, "resource_already_exists"),
    BodyTooLargeError: (413, "payload_too_large"),
    FormatUnsupportedError: (415, "unsupported_media_type"),
    RecordsInvalidError: (422, "invalid"),
    ConfigInvalidError: (422, "invalid"),
    ClientGoneError: (499, "client_hangup"),
    SessionBrokenError: (500, "other"),
    StoreUnavailableError: (503, "unavailable"),
    DrainingError: (503, "server_draining"),
}


def reply_to(error: GatewayError) -> Reply:
    """The answer that tells a client of an error."""
    special = _special(error)
    if special is not None:
        return special
    status, code = _CODES[type(error)]

    return json_reply(status, {"code": code, "message": str(error)})


def _special(error: GatewayError) -> Reply | None:
    match error:
        case SeqNumMismatchError():
            return json_reply(412, {"seq_num_mismatch": error.expected})
        case FencingTokenMismatchError():
            return json_reply(412, {"fencing_token_mismatch": error.current})
        case RangeUnsatisfiableError():
            tail = StreamPosition(error.seq_num, error.timestamp)
            return json_reply(416, {"tail": tail})

    return None
