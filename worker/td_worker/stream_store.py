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
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NoReturn, TypeVar, cast
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

_Format = Literal["raw", "base64"]

_BIG_BODY: Final = 1024 * 1024
"""aiohttp warns of longer bytes, which it would write in one go; it reads a file in pieces."""

_RETRYABLE: Final = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """The sequence numbers one append got: `start` of the first record, `end` one past the last."""

    start: int
    end: int
    tail: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderRecord:
    """
    A record with headers: a control record of a session, or a command to S2.

    Its body may be any bytes, while a plain record is UTF-8 text.
    """

    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    @property
    def metered(self) -> int:
        """What S2 meters for it: 8 bytes, 2 for each header, and all names, values and the body."""
        texts = sum(len(name.encode()) + len(value.encode()) for name, value in self.headers)

        return 8 + 2 * len(self.headers) + texts + len(self.body)


Appended = bytes | HeaderRecord
"""What one append takes: UTF-8 bodies, which cost nothing more, and records with headers."""


_PLAIN: Final = {bytes}


class _Record(msgspec.Struct, gc=False):
    body: str


class _Headed(msgspec.Struct):
    headers: list[tuple[str, str]]
    body: str


class _Append(msgspec.Struct):
    records: list[_Record] | list[_Record | _Headed]


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

    async def append(self, credential: Credential, records: Sequence[Appended]) -> Ack:
        """
        Append `records` as one atomic batch: 1 to 1000, at most 1 MiB metered.

        Raises:
            StreamStoreError: Which one says whether to renew, retry or give up.
        """
        append, s2_format = _append_of(records)
        body = self._encoder.encode(append)
        answer = await self._request("POST", credential, "records", body, s2_format)
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
        self,
        method: str,
        credential: Credential,
        path: str,
        body: bytes | None,
        s2_format: _Format = "raw",
    ) -> bytes:
        try:
            async with self._open().request(
                method,
                _url(credential.endpoint, credential.stream, path),
                data=body if body is None or len(body) <= _BIG_BODY else io.BytesIO(body),
                headers=_headers(credential, s2_format),
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


def _append_of(records: Sequence[Appended]) -> tuple[_Append, _Format]:
    """Return the request and how its texts are encoded; bodies that are no text need base64."""
    if set(map(type, records)) == _PLAIN:
        return _Append(
            [_Record(record.decode()) for record in cast("Sequence[bytes]", records)]
        ), "raw"
    if all(isinstance(record, bytes) or not record.body for record in records):
        return _Append([_raw(record) for record in records]), "raw"

    return _Append([_base64(record) for record in records]), "base64"


def _raw(record: Appended) -> _Record | _Headed:
    if isinstance(record, bytes):
        return _Record(record.decode())

    return _Headed(list(record.headers), "")


def _base64(record: Appended) -> _Record | _Headed:
    if isinstance(record, bytes):
        return _Record(_to_base64(record))
    headers = [(_to_base64(n.encode()), _to_base64(v.encode())) for n, v in record.headers]

    return _Headed(headers, _to_base64(record.body))


def _to_base64(data: bytes) -> str:
    return b64encode(data).decode()


def _headers(credential: Credential, s2_format: _Format) -> dict[str, str]:
    return {
        "authorization": Secret(f"Bearer {credential.access_token}"),
        "content-type": "application/json",
        "accept": "application/json",
        "s2-basin": credential.basin,
        "s2-format": s2_format,
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
