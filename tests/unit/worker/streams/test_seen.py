"""What a reader remembers of the envelopes it has seen."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from td_worker.streams.envelope import new_nonce
from td_worker.streams.seen import Seen


def test_the_window_forgets_the_oldest_foreign_ids():
    """Memory is bounded: another client's id older than the window counts as new again."""
    seen = Seen(window=2)

    assert [seen.add(one) for one in ("a", "b", "a", "c", "a")] == [True, True, False, True, True]


def test_a_copy_is_known_however_much_lies_between():
    """A writer's record is hidden a hundred thousand records of other writers later."""
    seen, nonce, others = Seen(), new_nonce(), [new_nonce() for _ in range(4)]
    assert all(seen.add(f"{nonce}-{n}") for n in range(1000))
    assert all(seen.add(f"{other}-{n}") for n in range(25_000) for other in others)

    assert not any(seen.add(f"{nonce}-{n}") for n in range(1000))
    assert seen.add(f"{nonce}-1000")


def test_a_writer_at_work_outlives_a_crowd_of_short_ones():
    """A hot loop of appends is a writer each; one that goes on writing is not forgotten."""
    seen, nonce = Seen(window=100), new_nonce()
    for n in range(1000):
        assert seen.add(f"{nonce}-{n}")
        assert seen.add(f"{new_nonce()}-0")

    assert not seen.add(f"{nonce}-0")


def test_a_chunk_overtaken_by_any_distance_is_read():
    """A thread that waits for room while others write on has its chunk read all the same."""
    seen, nonce = Seen(), new_nonce()
    assert all(seen.add(f"{nonce}-{n}") for n in range(50_000) if n != 10)

    assert seen.add(f"{nonce}-10")
    assert not seen.add(f"{nonce}-10")


def test_a_reader_in_the_middle_misses_no_straggler():
    """The first number seen says nothing of those just below it."""
    seen, nonce = Seen(), new_nonce()

    assert [seen.add(f"{nonce}-{n}") for n in (7000, 6999, 7001, 6999)] == [True, True, True, False]


def test_ids_of_other_clients_are_no_numbers():
    """Seven letters with a dash and digits are an id like any other."""
    seen = Seen()

    assert seen.add("abcde-2")
    assert seen.add("abcde-1")
    assert not seen.add("abcde-2")


@given(st.integers(1, 200), st.randoms(use_true_random=False))
def test_any_order_with_any_copies_is_read_once(count: int, chance: random.Random):
    """Shuffled and repeated, every record of a writer is new exactly once."""
    numbers = [*range(count), *chance.choices(range(count), k=count)]
    chance.shuffle(numbers)
    seen, nonce = Seen(), new_nonce()
    new = [number for number in numbers if seen.add(f"{nonce}-{number}")]

    assert sorted(new) == list(range(count))
