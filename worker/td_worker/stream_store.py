"""
The only module that speaks to the stream store: S2, s2-lite or the gateway.

It speaks S2's JSON API over HTTP/1.1 keep-alive, one POST a batch. aiohttp costs a fifth of httpx's
CPU a request, and here the request is the unit of cost.

A proxy from the environment is used for real hosts and never for loopback. Neither `.netrc` nor
redirects are followed: both would send a token where it does not belong.
"""

# msgspec reads the annotations of these classes, so they must not be postponed.
import io
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NoReturn, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from td_sharedcache.credential import Credential, Secret
from td_worker.errors import (
    StreamStoreAuthError,
    StreamStoreBusyError,
    StreamStoreRefusedError,
    StreamStoreUnreachableError,
)
from td_worker.http import is_loopback, retry_after, say

T = TypeVar("T")

_BIG_BODY: Final = 1024 * 1024
"""aiohttp warns of longer bytes, which it would write in one go; it reads a file in pieces."""

_RETRYABLE: Final = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """The sequence numbers one append got: `start` of the first record, `end` one past the last."""

    start: int
    end: int
    tail: int


class _Record(msgspec.Struct, gc=False):
    body: str


class _Append(msgspec.Struct):
    records: list[_Record]


class _Position(msgspec.Struct):
    seq_num: int


class _AckBody(msgspec.Struct):
    start: _Position
    end: _Position
    tail: _Position


class _TailBody(msgspec.Struct):
    tail: _Position


class _ErrorBody(msgspec.Struct):
    code: str | None = None
    message: str | None = None


class StreamStore:
    """
    Appends to streams and asks for their tails. Lives on one loop; an async context manager.

    Args:
        timeout: Seconds one request may take in all.
        connect_timeout: Seconds its connection may take.
    """

    def __init__(self, *, timeout: float = 10.0, connect_timeout: float = 3.0) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=connect_timeout)
        self._session: aiohttp.ClientSession | None = None
        self._encoder = msgspec.json.Encoder()
        self._acks = msgspec.json.Decoder(_AckBody)
        self._tails = msgspec.json.Decoder(_TailBody)

    async def __aenter__(self) -> "StreamStore":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def append(self, credential: Credential, records: Sequence[bytes]) -> Ack:
        """
        Append UTF-8 `records` as one atomic batch: 1 to 1000, at most 1 MiB metered.

        Raises:
            StreamStoreError: Which one says whether to renew, retry or give up.
        """
        body = self._encoder.encode(_Append([_Record(record.decode()) for record in records]))
        answer = await self._request("POST", credential, "records", body)
        ack = self._decode(self._acks, answer)
        if ack.end.seq_num - ack.start.seq_num != len(records):
            raise StreamStoreRefusedError(
                f"{_where(credential)} acked {ack.end.seq_num - ack.start.seq_num} records "
                f"of {len(records)}"
            )

        return Ack(start=ack.start.seq_num, end=ack.end.seq_num, tail=ack.tail.seq_num)

    async def tail(self, credential: Credential) -> int:
        """
        Return the sequence number that the next record will get.

        Raises:
            StreamStoreError: As for `append`.
        """
        answer = await self._request("GET", credential, "records/tail", None)

        return self._decode(self._tails, answer).tail.seq_num

    async def close(self) -> None:
        """Close all connections. The store opens new ones when it is used again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _request(
        self, method: str, credential: Credential, path: str, body: bytes | None
    ) -> bytes:
        try:
            async with self._open().request(
                method,
                _url(credential.endpoint, credential.stream, path),
                data=body if body is None or len(body) <= _BIG_BODY else io.BytesIO(body),
                headers=_headers(credential),
                proxy=_proxy(credential.endpoint),
                allow_redirects=False,
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise StreamStoreUnreachableError(
                f"{_where(credential)} does not answer: {say(error)}"
            ) from error
        if response.status != 200:
            _refuse(credential, response.status, response.headers, answer)

        return answer

    def _open(self) -> aiohttp.ClientSession:
        # Made on first use: a session belongs to the loop it is made on.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
            )

        return self._session

    def _decode(self, decoder: msgspec.json.Decoder[T], answer: bytes) -> T:
        try:
            return decoder.decode(answer)
        except msgspec.DecodeError as error:
            raise StreamStoreRefusedError(
                f"the stream store's answer is not what S2 would say: {error}"
            ) from error


def _refuse(
    credential: Credential, status: int, headers: Mapping[str, str], answer: bytes
) -> NoReturn:
    """Raise what an answer other than 200 means."""
    body = _error_body(answer)
    message = f"{_where(credential)} answered {status} {body.code or ''}".rstrip()
    if body.message:
        message += f": {body.message[:500]}"
    if status in {401, 403}:
        raise StreamStoreAuthError(message, status=status, code=body.code)
    if status in _RETRYABLE or body.code == "transaction_conflict":
        raise StreamStoreBusyError(
            message, status=status, code=body.code, retry_after=retry_after(headers)
        )
    raise StreamStoreRefusedError(message, status=status, code=body.code)


def _error_body(answer: bytes) -> _ErrorBody:
    try:
        return msgspec.json.decode(answer, type=_ErrorBody)
    except msgspec.DecodeError:
        return _ErrorBody(message=answer[:200].decode(errors="replace"))


def _headers(credential: Credential) -> dict[str, str]:
    return {
        "authorization": Secret(f"Bearer {credential.access_token}"),
        "content-type": "application/json",
        "accept": "application/json",
        "s2-basin": credential.basin,
        "s2-format": "raw",
    }


def _where(credential: Credential) -> str:
    return f"the stream store at {credential.endpoint} (stream {credential.stream})"


@lru_cache(maxsize=1024)
def _url(endpoint: str, stream: str, path: str) -> URL:
    # The name is one segment, its slashes encoded; `encoded` keeps yarl from decoding them.
    return URL(f"{endpoint}/streams/{quote(stream, safe='')}/{path}", encoded=True)


@lru_cache(maxsize=64)
def _proxy(endpoint: str) -> str | None:
    url = URL(endpoint)
    if url.host is None or is_loopback(url.host) or urllib.request.proxy_bypass(url.host):
        return None

    return urllib.request.getproxies().get(url.scheme)
