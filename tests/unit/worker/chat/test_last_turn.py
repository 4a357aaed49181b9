"""Where a chat's earlier runs have left off, read page by page."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from td_worker.chat.session import MainChannel
from td_worker.session_calls import Control
from td_worker.tail import Record


class _Out:
    """An `out` that answers a page at a time."""

    def __init__(self, *pages: list[Record | Control]) -> None:
        self._pages = list(pages)

    def records(self, after: int | None) -> Future[list[Record | Control]]:
        assert (after is None) == (len(self._pages) > 1)
        page: Future[list[Record | Control]] = Future()
        page.set_result(self._pages.pop(0) if self._pages else [])

        return page


async def test_an_end_without_a_cursor_keeps_the_one_of_an_earlier_page():
    """A turn-complete that task code has written names none: nothing is answered twice for it."""
    turn = {"session-in-event-id": "4", "session-in-consumed-id": "5"}
    channel: Any = MainChannel.__new__(MainChannel)
    channel.out = _Out(
        [Control(subtype="turn-complete", headers=turn, seq_num=7)],
        [Control(subtype="turn-complete", headers={}, seq_num=9)],
    )
    last = await channel.last_turn()

    assert last == (9, 4, 5, None)
