from __future__ import annotations

import re
from functools import partial

from td_runtime.store.run_id import RunIds, first_id


def test_an_id_has_the_usual_form():
    """`run_` and 25 lower-case letters and digits, as the control plane's friendly ids."""
    assert re.fullmatch(r"run_[0-9a-z]{25}", RunIds().next())


def test_ids_sort_by_their_moment():
    """Ids of a later millisecond are greater, whoever made them."""
    times = [1.0, 1.01, 1.7e9, 1.7e9 + 0.01, 4e9]

    ids = [RunIds(partial(float, at)).next() for at in times]

    assert ids == sorted(ids)


def test_ids_of_one_moment_are_in_order():
    """A clock that stands still disturbs neither order nor uniqueness."""
    ids = RunIds(lambda: 1.7e9)

    made = [ids.next() for _ in range(10_000)]

    assert made == sorted(set(made))


def test_a_clock_that_goes_back_keeps_the_order():
    """The order is that of the calls, not that of the clock."""
    times = iter([1.7e9, 1.6e9, 1.5e9])
    ids = RunIds(lambda: next(times))

    made = [ids.next() for _ in range(3)]

    assert made == sorted(set(made))


def test_ids_of_one_moment_cannot_be_guessed():
    """The step from one id to the next is random: two makers do not meet."""
    one, other = (RunIds(lambda: 1.7e9) for _ in range(2))

    assert {one.next() for _ in range(1000)}.isdisjoint(other.next() for _ in range(1000))


def test_a_moment_out_of_bounds_keeps_the_order():
    """Milliseconds taken for seconds lie behind all ids there are, a negative time before."""
    now = RunIds(lambda: 1.7e9).next()

    assert first_id(-1) < now < first_id(int(1.7e12 * 1000)) <= first_id(1 << 60)
