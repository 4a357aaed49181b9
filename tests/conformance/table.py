"""The cases, the tests that hold them, and the page that lists both."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "conformance.md"
SUITES = [ROOT / "tests" / name for name in ("unit", "integration", "acceptance", "interop")]

VERDICTS = {
    "differs": "differs on purpose",
    "not_applicable": "not applicable",
    "later": "later",
}
"""The tables of `cases.toml` that say why a case is no plain pass, and their words."""

_HEAD = """\
# Conformance

The official SDK's own tests, case by case, and which test here holds each.

- `python -m tests.conformance` runs the tests that name a case and writes this page.
- `python -m tests.conformance --collect` writes it from the marks alone.
- The cases and the reasons are in `tests/conformance/cases.toml`.
- A test names its cases with `@pytest.mark.conformance("RC1", ...)`.

"""


class ConformanceError(Exception):
    """The cases and the tests do not fit together; the message says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: what it says, what became of it, who holds it or why nobody does."""

    id: str
    title: str
    verdict: str
    why: str
    tests: tuple[str, ...]


def read_sections() -> dict[str, dict[str, str]]:
    """Return every case's title by section and id."""
    sections: dict[str, dict[str, str]] = _document()["sections"]

    return sections


def collect_tests() -> dict[str, list[str]]:
    """Return the tests that name each case, as pytest calls them, read from the sources."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for suite in SUITES:
        for path in sorted(suite.rglob("test_*.py")):
            module = ast.parse(path.read_text("utf-8"))
            for name, case in _marks(module):
                found[case].append(f"{path.relative_to(ROOT)}::{name}")

    return found


def judge(tests: Mapping[str, list[str]]) -> dict[str, list[Case]]:
    """
    Return the cases of each section with their verdicts.

    Raises:
        ConformanceError: A case has neither test nor reason, or a test names an unknown case.
    """
    sections = read_sections()
    known = {case for cases in sections.values() for case in cases}
    if unknown := sorted(set(tests) - known):
        raise ConformanceError(f"tests name cases that cases.toml does not have: {unknown}")
    reasons = {verdict: _document()[verdict] for verdict in VERDICTS}

    return {
        section: [
            _judge(case, title, tests.get(case, []), reasons) for case, title in cases.items()
        ]
        for section, cases in sections.items()
    }


def find_needless(tests: Mapping[str, list[str]]) -> list[str]:
    """Return the cases that tests hold and `cases.toml` still calls later or not applicable."""
    excused = [*_document()["not_applicable"], *_document()["later"]]

    return sorted(case for case in tests if case in excused)


def render(judged: Mapping[str, list[Case]]) -> str:
    """Return the page."""
    text = _HEAD + _summary(judged)
    for section, cases in judged.items():
        text += f"\n## {section}\n\n| case | what it says | verdict | held by, or why not |\n"
        text += "|---|---|---|---|\n"
        for case in cases:
            proof = "<br>".join([f"`{_short(test)}`" for test in case.tests])
            note = "<br>".join(part for part in (case.why, proof) if part)
            text += f"| {case.id} | {case.title} | {case.verdict} | {note} |\n"

    return text


def _judge(
    case: str, title: str, tests: list[str], reasons: Mapping[str, Mapping[str, str]]
) -> Case:
    verdict, why = next(
        (
            (word, why)
            for table, word in VERDICTS.items()
            for pattern, why in reasons[table].items()
            if fnmatchcase(case, pattern)
        ),
        ("pass", ""),
    )
    if tests and verdict in {"later", "not applicable"}:
        verdict, why = "pass", ""  # it came sooner than thought
    if not tests and verdict in {"pass", "differs on purpose"}:
        raise ConformanceError(f"{case} ({title}): no test holds it and cases.toml gives no reason")

    return Case(id=case, title=title, verdict=verdict, why=why, tests=tuple(sorted(tests)))


def _summary(judged: Mapping[str, list[Case]]) -> str:
    verdicts = [case.verdict for cases in judged.values() for case in cases]
    words = ["pass", *VERDICTS.values()]

    return ", ".join(f"{word}: {verdicts.count(word)}" for word in words) + ".\n"


def _short(test: str) -> str:
    return test.removeprefix("tests/")


def _marks(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each test's name with each case that its decorators, or its class's, name."""
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    for case in [*_cases(node), *_cases(inner)]:
                        yield f"{node.name}::{inner.name}", case
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for case in _cases(node):
                yield node.name, case


def _cases(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> list[str]:
    calls = [
        call
        for decorator in node.decorator_list
        for call in ast.walk(decorator)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.conformance"
    ]

    return list(
        dict.fromkeys(ast.literal_eval(argument) for call in calls for argument in call.args)
    )


def _document() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "cases.toml").read_text("utf-8"))
