"""Write `docs/reference/conformance.md`: `python -m tests.conformance [--collect]`."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict

import pytest

from tests.conformance.table import (
    PAGE,
    SUITES,
    ConformanceError,
    collect_tests,
    find_needless,
    judge,
    render,
)


class Recorder:
    """A pytest plugin: which tests passed, and which did anything else."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.others: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note one phase of one test; parameters of a test count as one."""
        name = report.nodeid.partition("[")[0]
        if report.failed or report.skipped:
            self.others[name] = report.outcome
        elif report.when == "call":
            self.passed.add(name)


def run() -> dict[str, list[str]]:
    """
    Run all tests that name a case; return them by case.

    Raises:
        ConformanceError: One of them did not pass.
    """
    recorder = Recorder()
    pytest.main(["-q", "-m", "conformance", *map(str, SUITES)], plugins=[recorder])
    found: defaultdict[str, list[str]] = defaultdict(list)
    for case, tests in collect_tests().items():
        for test in tests:
            if test in recorder.others or test not in recorder.passed:
                outcome = recorder.others.get(test, "not run")
                raise ConformanceError(f"{case} is not shown to hold: {test} {outcome}")
            found[case].append(test)

    return found


def main() -> int:
    """Write the page; 1 when a case is not held."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument(
        "--collect", action="store_true", help="trust the marks, and run none of the tests"
    )
    try:
        tests = collect_tests() if parser.parse_args().collect else run()
        PAGE.write_text(render(judge(tests)), "utf-8")
        if needless := find_needless(tests):
            print(f"held by tests; take the reason out of cases.toml: {' '.join(needless)}")
    except ConformanceError as error:
        print(error, file=sys.stderr)
        return 1

    return 0


if __name__ == "__main__":
    sys.exit(main())
