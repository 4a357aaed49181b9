"""Uploads over HTTP: where to send a large payload, and taking it."""

from __future__ import annotations

import hmac
import time
from typing import Final
from urllib.parse import urlencode

from td_runtime.gateway.errors import BodyTooLargeError
from td_runtime.gateway.exchange import BODY_BYTES_MAX, Exchange, Reply, json_reply
from td_runtime.gateway.platform.access import Access
from td_runtime.gateway.platform.packets import JSON, SUPER_JSON, TEXT
from td_runtime.gateway.platform.references import make_reference
from td_runtime.gateway.platform.uploads import Upload, Uploads, is_id, new_upload_id

URL_LIFE_S: Final = 300

_URL_INVALID: Final = json_reply(403, {"error": "The upload's URL is invalid, or has expired"})
_TOO_LARGE: Final = json_reply(
    413, {"error": "The payload is larger than 16 MiB; limits.payload is never more than 15 MiB"}
)
_ENCODING_UNKNOWN: Final = json_reply(
    415, {"error": f"The Content-Type must be {JSON}, {SUPER_JSON} or {TEXT}"}
)
_NO_TEXT: Final = json_reply(400, {"error": "The payload is no UTF-8"})


class UploadRoutes:
    """Answers requests about uploads.

    Args:
        access: Who may ask for a URL; signs it.
        uploads: Where they are stored.
    """

    def __init__(self, *, access: Access, uploads: Uploads) -> None:
        self._access = access
        self._uploads = uploads

    def allow(self, exchange: Exchange) -> Reply:
        """PUT packets/<name>: a URL for one upload. Its name is the client's, and nothing to us."""
        self._access.identify(exchange).require_secret()
        upload_id, expires = new_upload_id(), int(time.time()) + URL_LIFE_S
        query = urlencode({"expires": expires, "signature": self._sign(upload_id, expires)})
        # The guard has checked that this is a name of ours, and it is the one the client knows.
        host = exchange.headers["host"]

        return json_reply(
            200,
            {
                "presignedUrl": f"http://{host}/api/v1/uploads/{upload_id}?{query}",
                "storagePath": make_reference(upload_id),
            },
        )

    async def receive(self, exchange: Exchange, upload_id: str) -> Reply:
        """PUT uploads/<id>: the payload. The URL is all the leave that it takes."""
        if not self._is_allowed(exchange, upload_id):
            return _URL_INVALID
        encoding = exchange.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if encoding not in {JSON, SUPER_JSON, TEXT}:
            return _ENCODING_UNKNOWN
        try:
            text = (await exchange.read_body(limit=BODY_BYTES_MAX)).decode()
        except BodyTooLargeError:
            return _TOO_LARGE
        except UnicodeDecodeError:
            return _NO_TEXT
        await self._uploads.store(upload_id, Upload(encoding, text))

        return Reply(200)

    def _is_allowed(self, exchange: Exchange, upload_id: str) -> bool:
        expires, signature = (exchange.query.get(name, "") for name in ("expires", "signature"))
        if not is_id(upload_id) or not (expires.isascii() and expires.isdecimal()):
            return False
        right = self._sign(upload_id, expires)

        return hmac.compare_digest(signature.encode(), right.encode()) and (
            int(expires) > time.time()
        )

    def _sign(self, upload_id: str, expires: int | str) -> str:
        return self._access.sign(f"upload {upload_id} {expires}")
