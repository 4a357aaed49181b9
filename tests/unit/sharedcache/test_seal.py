"""Rows that were not written here for this slot do not open."""

import base64
import pickle

import pytest

from td_sharedcache import Slot
from td_sharedcache.errors import MintError, RowRefusedError
from td_sharedcache.policy import Policy
from td_sharedcache.row import NOTHING, Live
from td_sharedcache.seal import Seal
from tests.unit.sharedcache.test_policy import make_credential

SLOT = Slot.run("run_1", "chat")
LIVE = Live(credential=make_credential(), churn=2, refresh_at=1080.0)
GAP = NOTHING.failed(Policy(), 5.0, MintError("m", status=503, retryable=True), refused="f")


def make_seal(origin="http://a", api_key="tr_dev_key"):
    return Seal(origin=origin, api_key=api_key)


@pytest.mark.parametrize("row", [LIVE, GAP], ids=["live", "gap"])
def test_a_row_comes_back_as_it_was(row):
    """What one process seals, another with the same key opens, slot type and masking included."""
    opened = make_seal().open(SLOT, make_seal().close(SLOT, row))

    assert row == opened
    if isinstance(opened, Live):
        assert isinstance(opened.credential.slot, Slot)
        assert "***" in repr(opened)


def test_a_sealed_row_tells_nothing():
    """C10: neither token nor key is in the text, not even encoded."""
    text = make_seal().close(SLOT, LIVE)
    body = base64.b64decode(text.rsplit("|", 1)[1])

    assert b"token" not in body
    assert "tr_dev_key" not in text
    assert make_seal().close(SLOT, LIVE) != text


def test_namespaces_differ_by_key_and_origin_and_say_nothing_of_either():
    """C10: the folder's name and the row key are different outputs of the key."""
    names = {make_seal().namespace, make_seal("http://b").namespace, make_seal("x", "y").namespace}

    assert len(names) == 3
    assert make_seal().namespace == make_seal().namespace
    assert "tr_dev_key" not in str(names)


def _of_other_key():
    return make_seal(api_key="other").close(SLOT, LIVE)


def _of_other_slot():
    return make_seal().close("run/run_2/chat", LIVE)


def _with_newer_time():
    version, _, body = make_seal().close(SLOT, LIVE).split("|")
    return f"{version}|9999.0|{body}"


def _flipped():
    version, time, body = make_seal().close(SLOT, LIVE).split("|")
    raw = bytearray(base64.b64decode(body))
    raw[-1] ^= 1
    return f"{version}|{time}|{base64.b64encode(raw).decode()}"


def _sealed_nonsense():
    seal = make_seal()
    nonce = bytes(12)
    sealed = seal._cipher.encrypt(nonce, b'{"type":"live"}', f"{SLOT}\n1.0".encode())
    return f"v1|1.0|{base64.b64encode(nonce + sealed).decode()}"


@pytest.mark.parametrize(
    "text",
    [
        _of_other_key(),
        _of_other_slot(),
        _with_newer_time(),
        _flipped(),
        _sealed_nonsense(),
        "",
        "v1|1.0|",
        "v1|1.0|!!!",
        "v1|1.0|ü",
        '{"token": "x"}',
        pickle.dumps(LIVE.credential.id).decode("latin-1"),
    ],
    ids=[
        "key",
        "slot",
        "time",
        "bit",
        "layout",
        "empty",
        "body",
        "base64",
        "ascii",
        "json",
        "pickle",
    ],
)
def test_a_row_that_is_not_ours_is_refused(text):
    """C10: forged, foreign, swapped, aged or damaged rows raise instead of being believed."""
    with pytest.raises(RowRefusedError):
        make_seal().open(SLOT, text)
