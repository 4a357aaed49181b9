"""Control and trim records travel through their slot's one appender, in order."""

from __future__ import annotations

import asyncio
import threading

import pytest

from td_sharedcache import Slot
from td_worker.context import Execution
from td_worker.errors import ChatChunkTooLargeError, StreamClosedError, StreamWriteError
from td_worker.streams.lane import Lane
from td_worker.streams.policy import StreamLimits
from td_worker.testing import FakePlatform
from tests.integration.streams.conftest import RUN

TURN_COMPLETE = [("trigger-control", "turn-complete"), ("session-in-event-id", "7")]


def open_lane(execution: Execution) -> Lane:
    """Open a lane into the default stream of `run_1`, drained at the end of the test."""
    return execution.streams.open(Slot.run(RUN, "default"), execution.opened)


def test_control_and_trim_keep_their_place_among_the_chunks(platform, execution):
    """Chunks, a control record, a trim and more chunks are stored as written, for one PUT."""
    lane = open_lane(execution)
    for chunk in ("a", "ü"):
        lane.offer(chunk)
    control = lane.control(TURN_COMPLETE)
    trim = lane.trim(1)
    lane.offer("c")
    lane.flush().result()
    records = platform.records(RUN)

    assert (control.result(), trim.result(), lane.last_seq) == (2, 3, 4)
    assert platform.chunks(RUN) == ["a", "ü", "c"]
    assert records[2].headers == tuple(TURN_COMPLETE)
    assert records[2].body == ""
    assert records[3].headers == (("", "trim"),)
    assert records[3].body.encode("latin-1") == (1).to_bytes(8, "big")
    assert platform.puts == {(RUN, "default"): 1}


def test_a_control_record_outlives_a_revoked_token(platform, execution):
    """A refused credential is renewed below a control record and what it follows."""
    lane = open_lane(execution)
    lane.offer("warm")
    lane.flush().result()
    platform.revoke_tokens()
    lane.offer("before")
    assert lane.control(TURN_COMPLETE).result() == 2
    assert platform.chunks(RUN) == ["warm", "before"]


def test_a_control_record_needs_no_room_in_the_buffer(platform):
    """A full buffer holds back chunks and takes a control record."""
    limits = StreamLimits(slot_bytes=1000)
    with platform.execution(run_id=RUN, limits=limits) as execution:
        lane = open_lane(execution)
        with platform.holding_appends():
            lane.offer("x" * 990)
            assert lane.offer("more") is not None
            receipt = lane.control(TURN_COMPLETE)
        assert receipt.result() == 1


def test_who_waits_for_a_given_up_control_record_hears_it(platform, execution):
    """A refusal for good rejects the record's future with how many were acked."""
    lane = open_lane(execution)
    platform.spoil("append", status=422)
    with pytest.raises(StreamWriteError) as caught:
        lane.control(TURN_COMPLETE).result()

    assert (caught.value.acked, caught.value.unacked) == (0, 1)


def test_an_abort_tells_who_waits_for_a_control_record(platform, execution):
    """An aborted lane rejects the futures of records that were not sent, and of one in flight."""
    lane = open_lane(execution)
    with platform.holding_appends():
        in_flight = lane.control(TURN_COMPLETE)
        platform.arrived.wait()
        waiting = lane.control(TURN_COMPLETE)
        lane.abort()
        for receipt in (in_flight, waiting):
            with pytest.raises(StreamClosedError):
                receipt.result()
    with pytest.raises(StreamClosedError):
        lane.control(TURN_COMPLETE)


@pytest.mark.parametrize("headers", [[], [("", "fence")], [("name", "s3cret"), ("", "trim")]])
def test_a_control_record_can_be_no_command(execution, headers):
    """A header without a name would be a command to S2: refused, and no value is shown."""
    with pytest.raises(ValueError, match="each with a name") as caught:
        open_lane(execution).control(headers)

    assert "s3cret" not in str(caught.value)


def test_headers_over_the_cap_are_refused(execution):
    """Headers count as much as a body does, and fail nobody else."""
    lane = open_lane(execution)
    with pytest.raises(ChatChunkTooLargeError):
        lane.control([("trigger-control", "x" * 1_100_000)])

    assert lane.control(TURN_COMPLETE).result() == 0


@pytest.mark.parametrize("seq", [-1, 2**64])
def test_a_trim_needs_a_sequence_number(execution, seq):
    """A number that eight bytes cannot say is refused."""
    with pytest.raises(ValueError, match="sequence number"):
        open_lane(execution).trim(seq)


async def test_control_records_of_many_threads_each_get_their_own_number(
    platform: FakePlatform, execution: Execution
):
    """Every one of 8 x 50 records gets the number that it is stored under."""
    numbers: dict[int, str] = {}

    def write(name: int) -> None:
        lane = open_lane(execution)
        for n in range(50):
            value = f"{name}-{n}"
            numbers[lane.control([("trigger-control", value)]).result()] = value

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)

    assert {r.seq_num: r.headers[0][1] for r in platform.records(RUN)} == numbers
    assert len(numbers) == 400
