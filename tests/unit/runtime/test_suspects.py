"""Who must run alone, by ids alone."""

from __future__ import annotations

from td_runtime.suspects import Suspects


def test_neighbours_are_suspected_until_each_has_ended():
    """Whoever ends in a worker that lives is trusted again; the others are not."""
    suspects = Suspects()
    suspects.died_together(["a", "b", "c"])

    suspects.cleared("b")

    assert sorted(suspects) == ["a", "c"]
    assert suspects.waiting(0.0, held={"a"}) == ["c"]


def test_one_that_is_caught_clears_the_others():
    """It has died alone; it stays alone, and those of another death are still suspected."""
    suspects = Suspects()
    suspects.died_together(["a", "b"])
    suspects.died_together(["x", "y"])

    suspects.caught("a", not_before=5.0)

    assert sorted(suspects) == ["a", "x", "y"]
    assert suspects.waiting(4.9, held=()) == ["x", "y"]
    assert sorted(suspects.waiting(5.0, held=())) == ["a", "x", "y"]


def test_one_that_dies_alone_without_neighbours_runs_alone_from_then_on():
    """A run that has killed a worker once takes nobody with it the next time."""
    suspects = Suspects()

    suspects.caught("a")

    assert "a" in suspects
    suspects.cleared("a")
    assert len(suspects) == 0


def test_a_second_death_makes_new_groups():
    """Who dies with others again is suspected with them, and no more with the first ones."""
    suspects = Suspects()
    suspects.died_together(["a", "b", "c"])
    suspects.died_together(["a", "d"])

    suspects.caught("d")

    assert sorted(suspects) == ["b", "c", "d"]


def test_a_loop_is_trusted_again_within_a_minute():
    """Twice the time it had lived, as long as others can wait for that."""
    suspects = Suspects()
    suspects.died_together(["young", "other"], lived=5.0)
    assert suspects.probation("young") == 11.0

    suspects.died_together(["old", "other"], lived=86_400.0)
    assert suspects.probation("old") == 60.0
