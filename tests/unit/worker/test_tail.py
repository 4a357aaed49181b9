"""How a tail hands records out: upstream's cases MT1 to MT5 and PD5, and ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import pytest
from httpx_sse import ServerSentEvent
from structlog.testing import capture_logs

from td_worker.chat.session import MainChannel
from td_worker.control_plane import SseBody
from td_worker.errors import SessionReadError
from td_worker.tail import Record, Tail, Waiter, parse_twice
from td_worker.tails import Tails


class Here:
    """A runtime loop that is the test's own."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[Any]] = set()

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run `work` here."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return Future()

    def call(self, function: Callable[[], object]) -> None:
        """Call it soon."""
        self.loop.call_soon(function)

    async def settle(self) -> None:
        """Return when what was submitted is done."""
        while self.tasks:
            await asyncio.wait(set(self.tasks))


class Asked:
    """A handler that notes what it is offered, and takes what it is told to."""

    def __init__(self, *takes: int) -> None:
        self.seen: list[int] = []
        self.takes = takes
        self.closed = False

    def offer(self, record: Record) -> Future[bool]:
        """Say at once whether it takes the record."""
        self.seen.append(record.seq_num)
        answer: Future[bool] = Future()
        answer.set_result(record.seq_num in self.takes)
        return answer

    def release(self) -> None:
        """There is nothing under way."""

    def close(self) -> None:
        """Note the end."""
        self.closed = True


def unread(_cursor: str | None) -> Any:
    """Open nothing: the tests dispatch by themselves."""
    raise AssertionError("not reached: no tail of these tests is opened")


@pytest.fixture
async def here() -> Here:
    return Here()


@pytest.fixture
def tail(here: Here, monkeypatch: pytest.MonkeyPatch) -> Tail:
    """A tail that reads nothing by itself."""
    monkeypatch.setattr(Tail, "_open", lambda _: None)
    return Tail("session/s/main/in", unread, here)


def record(seq_num: int, *, timestamp: int = 0) -> Record:
    """Return a record whose data is its number."""
    return Record(seq_num=seq_num, data=seq_num, timestamp=timestamp)


async def dispatch(tail: Tail, *records: Record) -> None:
    """Have them come in."""
    for one in records:
        await tail.dispatch(one)


async def took(here: Here, waiter: Waiter) -> int:
    """Return the number of what a waiter got."""
    await here.settle()
    return waiter.future.result(timeout=0).seq_num


# --- the filter by time --------------------------------------------------------------------------


@pytest.mark.conformance("MT1")
async def test_without_a_filter_all_come(here: Here, tail: Tail):
    """MT1: with no filter every record is handed out."""
    handler = Asked(1, 2)
    tail.add(handler)
    await here.settle()
    await dispatch(tail, record(1, timestamp=10), record(2, timestamp=20))

    assert handler.seen == [1, 2]


@pytest.mark.conformance("MT2")
async def test_a_filter_drops_what_is_not_later(here: Here, tail: Tail):
    """MT2: with a filter of t, what comes with t or before is dropped, and later records stay."""
    handler = Asked()
    tail.add(handler)
    await here.settle()
    tail.ignore_until(20)
    await dispatch(tail, *(record(seq, timestamp=seq * 10) for seq in (1, 2, 3)))

    assert handler.seen == [3]
    assert tail.last_received == 3
    assert tail.peek() == record(3, timestamp=30)


@pytest.mark.conformance("MT3")
async def test_a_filter_can_be_taken_away(tail: Tail):
    """MT3: a filter that is taken away drops nothing."""
    tail.ignore_until(1000)
    tail.ignore_until(None)
    await dispatch(tail, record(1, timestamp=10))

    assert tail.peek() == record(1, timestamp=10)


@pytest.mark.conformance("MT4", "MT5")
async def test_a_filter_is_one_tails(here: Here, tail: Tail):
    """MT4, MT5: a filter concerns its tail alone, and the next execution's has none."""
    tail.ignore_until(1000)
    other = Tail("session/s/main/out", unread, here)
    await dispatch(other, record(1, timestamp=10))

    assert other.peek() == record(1, timestamp=10)


# --- who gets what -------------------------------------------------------------------------------


@pytest.mark.conformance("PD5")
async def test_both_cursors_are_exact(here: Here, tail: Tail):
    """PD5: after a wait that record 5 answered, what is read and what is taken are both 5."""
    tail.resume_after(4)
    waiter = tail.take()
    await here.settle()
    await tail.dispatch(record(5))

    assert await took(here, waiter) == 5
    assert (tail.last_received, tail.last_taken) == (5, 5)


async def test_waiters_are_served_in_order(here: Here, tail: Tail):
    """The first that waits gets the first record."""
    waiters = [tail.take() for _ in range(3)]
    await here.settle()
    await dispatch(tail, record(0), record(1), record(2))

    assert [await took(here, waiter) for waiter in waiters] == [0, 1, 2]


async def test_nothing_buffered_is_dropped(here: Here, tail: Tail):
    """What nobody takes stays in order, whatever waits come and go meanwhile."""
    await dispatch(tail, *map(record, range(5)))
    gone = tail.take()
    await here.settle()
    tail.give_back(gone)
    await here.settle()

    assert [await took(here, tail.take()) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert tail.last_taken == 4


async def test_a_cancelled_wait_gives_its_record_back(here: Here, tail: Tail):
    """A record that came to a caller that was cancelled is the next caller's, and not taken yet."""
    waiter = tail.take()
    await here.settle()
    await dispatch(tail, record(0), record(1))
    tail.give_back(waiter)
    await here.settle()

    assert tail.last_taken is None
    assert tail.peek() == record(0)
    assert [await took(here, tail.take()) for _ in range(2)] == [0, 1]


async def test_a_wait_that_is_over_is_passed_by(here: Here, tail: Tail):
    """A caller that gave up before a record came gets none."""
    waiter, other = tail.take(), tail.take()
    await here.settle()
    tail.give_back(waiter)
    await tail.dispatch(record(0))

    assert await took(here, other) == 0


async def test_handlers_see_everything_and_take_what_they_like(here: Here, tail: Tail):
    """Every handler is offered every record; what none takes is kept."""
    stops, all_ = Asked(1), Asked()
    tail.add(stops)
    tail.add(all_)
    await here.settle()
    await dispatch(tail, record(0), record(1), record(2))

    assert stops.seen == all_.seen == [0, 1, 2]
    assert tail.last_taken == 1
    assert [await took(here, tail.take()) for _ in range(2)] == [0, 2]


async def test_a_new_handler_is_offered_what_is_kept(here: Here, tail: Tail):
    """What waits is offered to a new handler, and only what it takes is gone."""
    await dispatch(tail, *map(record, range(3)))
    tail.add(handler := Asked(1))
    await here.settle()

    assert handler.seen == [0, 1, 2]
    assert [await took(here, tail.take()) for _ in range(2)] == [0, 2]


async def test_an_input_streams_handler_takes_on_sight(here: Here):
    """What a handler of an input stream has seen counts as taken."""
    tail = Tail("input/run_1/a", unread, here, takes_on_sight=True)
    tail._handlers.append(Asked())
    await tail.dispatch(record(0))

    assert tail.peek() is None
    assert tail.last_taken == 0


async def test_a_removed_handler_is_offered_nothing(here: Here, tail: Tail):
    """After `remove` a handler sees nothing more."""
    tail.add(handler := Asked())
    await here.settle()
    tail.remove(handler)
    await asyncio.sleep(0)
    await tail.dispatch(record(0))

    assert handler.seen == []


async def test_an_end_fails_who_waits_and_closes_handlers(here: Here, tail: Tail):
    """When an execution ends, its waits are cancelled and its handlers closed."""
    tails = Tails()
    assert tails.get("a", lambda: tail) is tails.get("a", lambda: tail)
    tail.add(handler := Asked())
    waiter = tail.take()
    await here.settle()
    tails.close()
    await asyncio.sleep(0)

    assert isinstance(waiter.future.exception(timeout=0), asyncio.CancelledError)
    assert handler.closed


async def test_an_interruption_reaches_later_waits_too(here: Here, tail: Tail):
    """A wait that begins after its attempt was told to end does not wait."""
    tails = Tails()
    tails.interrupt()
    tails.get("a", lambda: tail)
    waiter = tail.take()
    await here.settle()

    assert isinstance(waiter.future.exception(timeout=0), asyncio.CancelledError)


async def test_who_leaves_gives_back_what_it_has_not_dealt_with(here: Here, tail: Tail):
    """Restored records are handed out once more, in their order, and count as taken no longer."""
    waiters = [tail.take() for _ in range(3)]
    await here.settle()
    await dispatch(tail, *(record(seq) for seq in range(4)))
    assert [waiter.future.result(timeout=0).seq_num for waiter in waiters] == [0, 1, 2]
    await tail.restore([record(1), record(2)])

    assert tail.last_taken == 0
    assert [await took(here, tail.take()) for _ in range(3)] == [1, 2, 3]


async def test_a_reader_of_a_chat_that_is_cancelled_loses_nothing(here: Here, tail: Tail):
    """A record that was handed out and not looked at when its reader ends waits for the next."""
    channel: Any = MainChannel.__new__(MainChannel)
    channel._tail = tail
    reading = asyncio.ensure_future(anext(channel.records(None)))
    await asyncio.sleep(0)
    await here.settle()
    await tail.dispatch(record(0))
    reading.cancel()
    await asyncio.wait({reading})
    await here.settle()

    assert reading.cancelled()
    assert tail.last_taken is None
    assert tail.peek() == record(0)


@pytest.mark.parametrize(
    ("data", "meaning"),
    [('{"a": 1}', {"a": 1}), ("42", 42), ("hello", "hello"), ("", ""), ({"a": 1}, {"a": 1})],
)
def test_text_is_parsed_once_more(data: Any, meaning: Any):
    """What came as text inside an envelope is read as the JSON it is, or as the text."""
    assert parse_twice(data) == meaning


@pytest.mark.parametrize("data", ["[" * 100_000, '"\ud800'])
def test_text_that_cannot_be_read_as_json_is_left_as_it_is(data: str):
    """Text that is nested too deep, or no Unicode, ends no tail: anybody may send it."""
    assert parse_twice(data) == data


# --- the connection ------------------------------------------------------------------------------


def batch(*numbers: int) -> ServerSentEvent:
    """Return an event with these records, each of which holds its number."""
    records = [
        {"seq_num": n, "body": f'{{"data":{n},"id":"e{n}"}}', "timestamp": n} for n in numbers
    ]
    return ServerSentEvent(event="batch", data=json.dumps({"records": records}))


async def test_a_tail_goes_on_after_clean_ends(here: Here, monkeypatch: pytest.MonkeyPatch):
    """A body that ends is followed by a connection behind the last record, while somebody waits."""
    monkeypatch.setattr("td_worker.tail.reconnect_delay", lambda _: 0.0)
    bodies = [[batch(0, 1)], [], [batch(2)], [batch(3)]]
    cursors: list[str | None] = []

    @asynccontextmanager
    async def opener(cursor: str | None) -> AsyncIterator[SseBody]:
        cursors.append(cursor)
        yield SseBody(version="v2", events=events(bodies.pop(0)))

    async def events(found: list[ServerSentEvent]) -> AsyncIterator[ServerSentEvent]:
        for event in found:
            yield event

    tail = Tail("session/s/main/in", opener, here)
    waiters = [tail.take() for _ in range(3)]
    async with asyncio.timeout(60):
        found = [await asyncio.wrap_future(waiter.future) for waiter in waiters]

    assert [one.seq_num for one in found] == [0, 1, 2]
    assert cursors == [None, "1", "1"]
    tail.close()


async def test_a_full_buffer_stops_the_reading(here: Here, monkeypatch: pytest.MonkeyPatch):
    """When too much waits nothing more is read, until somebody takes what waits."""
    monkeypatch.setattr("td_worker.tail.MAX_BUFFERED", 2)
    read: list[int] = []

    @asynccontextmanager
    async def opener(_cursor: str | None) -> AsyncIterator[SseBody]:
        yield SseBody(version="v2", events=events())

    async def events() -> AsyncIterator[ServerSentEvent]:
        for number in range(4):
            read.append(number)
            yield batch(number)
        await asyncio.Event().wait()

    tail = Tail("session/s/main/in", opener, here)
    tail.add(Asked())
    async with asyncio.timeout(60):
        while tail.last_received != 1:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert read == [0, 1]
        found = [await asyncio.wrap_future(tail.take().future) for _ in range(4)]

    assert [one.seq_num for one in found] == [0, 1, 2, 3]
    tail.close()


async def test_whatever_ends_the_reading_is_heard_by_who_waits(here: Here):
    """An error of no known kind fails the waits, is logged, and the next wait tries anew."""
    tried: list[str | None] = []

    @asynccontextmanager
    async def opener(cursor: str | None) -> AsyncIterator[SseBody]:
        tried.append(cursor)
        raise KeyError("a bug")
        yield

    tail = Tail("session/s/main/in", opener, here)
    with capture_logs() as logs:
        async with asyncio.timeout(60):
            for _ in range(2):
                with pytest.raises(SessionReadError, match="a bug") as caught:
                    await asyncio.wrap_future(tail.take().future)
                await here.settle()

    assert isinstance(caught.value.__cause__, KeyError)
    assert tried == [None, None]
    assert [line["event"] for line in logs] == ["input.tail_failed"] * 2
