"""Forged marks of a message's source, where the parsers of others see more than ours."""

from __future__ import annotations

import json

import pytest

from td_runtime.gateway.errors import RecordsInvalidError
from td_runtime.gateway.platform.forgery import strip_forged_record, strip_forged_source

LONG = f'{{"payload":{{"actionSource":"webhook","n":{"1" * 5000}}}}}'


def test_a_message_with_an_endless_number_is_refused() -> None:
    """Python refuses integers of so many digits, and JavaScript does not: it cannot be let by."""
    with pytest.raises(RecordsInvalidError, match="digits"):
        strip_forged_source(LONG)
    with pytest.raises(RecordsInvalidError, match="digits"):
        strip_forged_record(LONG.encode())
    with pytest.raises(RecordsInvalidError, match="digits"):
        strip_forged_record(json.dumps({"data": LONG, "id": "1"}).encode())
