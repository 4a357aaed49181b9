"""The page of conformance cases: complete, and what the tests' marks say."""

from __future__ import annotations

import pytest

from tests.conformance.table import (
    PAGE,
    SUITES,
    VERDICTS,
    ConformanceError,
    collect_tests,
    judge,
    read_sections,
    render,
)


def test_the_page_is_current() -> None:
    """`python -m tests.conformance --collect` would write what is there."""
    assert PAGE.read_text("utf-8") == render(judge(collect_tests()))


def test_each_case_has_one_row_and_one_verdict() -> None:
    """No id is missing, none is there twice, and each has a verdict that says what it rests on."""
    ids = [case for cases in read_sections().values() for case in cases]
    judged = [case for cases in judge(collect_tests()).values() for case in cases]

    assert len(ids) == len(set(ids))
    assert [case.id for case in judged] == ids
    assert {case.verdict for case in judged} <= {"pass", *VERDICTS.values()}
    assert all(case.tests or case.why for case in judged)


def test_a_case_that_nobody_holds_or_explains_is_refused() -> None:
    """Without its tests a plain case has no row to stand in."""
    tests = collect_tests()
    del tests["RC1"]
    with pytest.raises(ConformanceError, match="RC1"):
        judge(tests)


def test_a_mark_that_names_no_case_is_refused() -> None:
    """A misspelt id would be a test that holds nothing."""
    with pytest.raises(ConformanceError, match="RC99"):
        judge({**collect_tests(), "RC99": ["test_x.py::test_x"]})


def test_marks_are_found_where_tests_are() -> None:
    """Every suite that is run is looked through."""
    assert all(suite.is_dir() for suite in SUITES)
    assert any("test_subscription.py::" in test for test in collect_tests()["SS1"])
