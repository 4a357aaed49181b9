"""Rows that only the holder of the API key can read, write or move.

A row is text: `v1|<mint time>|<nonce and ciphertext, base64>`. Slot and mint time are authenticated
with it, so a row that was forged, written under another key, copied to another slot or given a
newer time does not open. Nothing here can unpickle.
"""

from __future__ import annotations

import base64
import binascii
import os

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from td_sharedcache.errors import RowRefusedError
from td_sharedcache.row import Row

_VERSION = "v1"
_NONCE_SIZE = 12


class Seal:
    """One namespace: its folder's name and its row key, both derived from the API key.

    The labels differ, so the folder's name, which anyone may see, says nothing about the row key.
    """

    def __init__(self, *, origin: str, api_key: str) -> None:
        secret = api_key.encode()
        self.namespace = _derive(secret, f"td-runtime namespace|{origin}", size=16).hex()
        self._cipher = AESGCM(_derive(secret, f"td-runtime rows|{origin}", size=32))
        self._decoder: msgspec.json.Decoder[Row] = msgspec.json.Decoder(
            Row, dec_hook=lambda kind, value: kind(value)
        )
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def close(self, slot: str, row: Row) -> str:
        """Seal a row for one slot."""
        nonce = os.urandom(_NONCE_SIZE)
        time = repr(row.at)
        sealed = self._cipher.encrypt(nonce, self._encoder.encode(row), _bind(slot, time))

        return f"{_VERSION}|{time}|{base64.b64encode(nonce + sealed).decode()}"

    def open(self, slot: str, text: str) -> Row:
        """Open a row of one slot.

        Raises:
            RowRefusedError: It is not a row that this namespace wrote for this slot.
        """
        version, _, rest = text.partition("|")
        time, _, body = rest.partition("|")
        if version != _VERSION:
            raise RowRefusedError("it is not a sealed row")

        try:
            sealed = binascii.a2b_base64(body, strict_mode=True)
            plain = self._cipher.decrypt(
                sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:], _bind(slot, time)
            )
            return self._decoder.decode(plain)
        except (InvalidTag, binascii.Error, ValueError) as error:
            # ValueError covers a short nonce, and msgspec's ValidationError of an older layout.
            raise RowRefusedError("it was not sealed here for this slot") from error


def _bind(slot: str, time: str) -> bytes:
    return f"{slot}\n{time}".encode()


def _derive(secret: bytes, label: str, *, size: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=size, salt=None, info=label.encode()).derive(secret)
