"""Options of a trigger: what Python says, and what would not be understood."""

from enum import StrEnum
from typing import Any

import pytest

from td_worker.trigger_options import make_item, make_items


class Names(StrEnum):
    """Names as careful people write them."""

    BOOKS = "books"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_attempts": "3"}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"priority": "high"}, "priority"),
        ({"tags": ["user", 7]}, "tags"),
        ({"queue": b"books"}, "queue"),
        ({"concurrency_key": 7}, "concurrency_key"),
        ({"idempotency_key": 7}, "idempotency_key"),
        ({"delay": "10m"}, "delay = '10m': must be seconds or a timedelta"),
        ({"ttl": "1h"}, "ttl = '1h': must be seconds or a timedelta"),
        ({"max_duration": "5"}, "max_duration = '5': must be seconds or a timedelta"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_where_it_is_said(
    options: dict[str, Any], said: str
) -> None:
    """The caller gets a TypeError that names the option; nothing travels that kills a worker."""
    with pytest.raises(TypeError, match=said):
        make_item("ship", None, options)  # type: ignore[arg-type]


def test_a_task_that_is_no_text_is_refused() -> None:
    """Alone and in a batch."""
    wrong: Any = 5
    with pytest.raises(TypeError, match="task"):
        make_item(wrong, None, {})
    with pytest.raises(TypeError, match="task"):
        make_items(wrong, [None], {})


def test_members_of_an_enumeration_of_texts_are_texts() -> None:
    """What travels as a text may be any text."""
    item = make_item(Names.BOOKS, None, {"queue": Names.BOOKS, "tags": [Names.BOOKS]})

    assert (item.task, item.queue, item.tags) == ("books", "books", ("books",))
