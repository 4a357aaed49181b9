"""What the control plane says when it does not do what was asked: every status and text.

They are upstream's, quirks included: official clients tell some of them apart by the letter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from td_runtime.gateway.errors import StoreUnavailableError
from td_runtime.gateway.exchange import Exchange, Reply, json_reply, text_reply

UNAUTHORIZED: Final = json_reply(401, {"error": "Invalid or Missing API key"})
TOKEN_INVALID: Final = json_reply(401, {"error": "Public Access Token is invalid"})
TOKEN_EXPIRED: Final = json_reply(401, {"error": "Public Access Token has expired"})
SECRET_NEEDED: Final = json_reply(
    403, {"error": "Public Access Tokens are not accepted here: use the secret key"}
)
SCOPE_MISSING: Final = json_reply(
    403,
    {
        "error": "Unauthorized",
        "code": "unauthorized",
        "param": "access_token",
        "type": "authorization",
    },
)
NOT_FOUND: Final = json_reply(404, {"error": "Not found"}, [("x-should-retry", "false")])
RESOURCE_NOT_FOUND: Final = json_reply(404, {"error": "Resource not found"})
BODY_TOO_LARGE: Final = json_reply(413, {"error": "Request body too large"})
BODY_EMPTY: Final = json_reply(400, {"error": "Request body is empty"})
BODY_NOT_JSON: Final = json_reply(400, {"error": "Invalid JSON"})

RUN_NOT_FOUND: Final = text_reply(404, "Run not found")
TARGET_NOT_FOUND: Final = text_reply(404, "Target not found")
RUN_FINISHED_PUT: Final = text_reply(400, "Cannot initialize a realtime stream on a completed run")
RUN_FINISHED_APPEND: Final = text_reply(
    400, "Cannot append to a realtime stream on a completed run"
)

SESSION_NOT_FOUND: Final = text_reply(404, "Session not found")
SESSION_OUT_PUT: Final = text_reply(403, "Only the secret key may initialize the `out` channel")
SESSION_OUT_APPEND: Final = json_reply(
    403, {"ok": False, "error": "Only the secret key may append to the `out` channel"}
)
NO_OBJECT_STORE: Final = json_reply(
    404,
    {"error": "There is no object store here: a chat goes on from its streams, not a snapshot"},
    [("x-should-retry", "false")],
)
STREAM_NAME_TOO_LONG: Final = text_reply(
    400, "The session's id is too long: its channels' names have 512 bytes at most"
)


class RefusalError(Exception):
    """Ends a request with an answer.

    Attributes:
        reply: The answer.
    """

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"refused with status {reply.status}")
        self.reply = reply


async def answer(exchange: Exchange, handle: Callable[[], Awaitable[Reply | None]]) -> None:
    """Send what ``handle`` returns, or what it refuses with; None has answered by itself."""
    try:
        reply = await handle()
    except RefusalError as error:
        reply = error.reply
    except StoreUnavailableError as error:
        reply = json_reply(500, {"error": f"Internal Server Error: {error}"})
    if reply is not None:
        await exchange.answer(reply)


def method_not_allowed(allow: str) -> Reply:
    """405, with the methods that are there."""
    return json_reply(405, {"error": "Method not allowed"}, [("Allow", allow)])


def params_error(details: str) -> Reply:
    """400 for a segment of the path."""
    return json_reply(400, {"error": "Params Error", "details": details})


def query_error(details: str) -> Reply:
    """400 for the query."""
    return json_reply(400, {"error": "Query Error", "details": details})


def not_appended(status: int, error: str) -> Reply:
    """An append route's own form of a refusal."""
    return json_reply(status, {"ok": False, "error": error})


def no_supervisor(advice: str | None) -> Reply:
    """503: a run is needed and cannot be started."""
    return json_reply(
        503, {"error": f"No supervisor answers, so the run was not started. {advice or ''}".strip()}
    )
