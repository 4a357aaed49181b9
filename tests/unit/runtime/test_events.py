"""The catalogue of events, held against the code that emits them and the page that lists them."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from td_runtime.config.decode import list_keys
from td_runtime.events import CATALOGUE, COMMON_FIELDS, RUN_FIELDS, render_table

ROOT = Path(__file__).parents[3]
PACKAGES = ("runtime/td_runtime", "worker/td_worker", "sharedcache/td_sharedcache")
NAME = re.compile(r"[a-z]+\.[a-z]+(_[a-z]+)*")
NOUNS = {name.partition(".")[0] for name in CATALOGUE}
KEYS = set(list_keys())
LEVELS = {"debug", "info", "warning", "error", "exception", "log"}
#: Strings that look like names of events and are names of files.
FILES = re.compile(r".*\.(db|sock|lock|json|toml|py)")
#: Functions that are told which call a user made, which looks like the name of an event.
TOLD_CALLS = {"bound_chat", "refuse_on_event_loop"}


class Emitted:
    """The names that a module's source emits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text("utf-8"))
        self.loggers = {
            target.id
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Assign) and _makes_logger(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def names(self) -> Iterator[str]:
        """Names that calls are given, and those that are kept or returned on the way to one."""
        for text, _ in self.calls():
            yield text
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign | ast.IfExp | ast.Dict | ast.Return | ast.keyword):
                yield from filter(_is_event, _strings(ast.iter_child_nodes(node)))

    def _is_logger_call(self, node: ast.Call) -> bool:
        return (
            isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in self.loggers
            and node.func.attr in LEVELS
        )

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """Calls that are given an event's name, each with that name: loggers and go-betweens."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and not _is_told_call(node):
                for text in _strings(node.args):
                    if self._is_logger_call(node) or _is_event(text):
                        yield text, node


def _makes_logger(node: ast.expr) -> bool:
    """Whether an expression is a call of structlog's `get_logger`."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""

    return name == "get_logger"


def _is_told_call(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id in TOLD_CALLS


def _strings(nodes: object) -> Iterator[str]:
    """String constants among nodes, the branches of conditional expressions included."""
    for node in nodes:  # type: ignore[attr-defined]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.IfExp):
            yield from _strings([node.body, node.orelse])


def _is_event(text: str) -> bool:
    return (
        NAME.fullmatch(text) is not None
        and text.partition(".")[0] in NOUNS
        and text not in KEYS
        and not FILES.fullmatch(text)
    )


@functools.cache
def sources() -> list[Emitted]:
    """Every module of the three packages but the catalogue itself."""
    return [
        Emitted(path)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != ROOT / "runtime/td_runtime/events.py"
    ]


@functools.cache
def emitted_names() -> dict[str, str]:
    """Every name the code emits, with one file that does."""
    return {
        name: str(source.path.relative_to(ROOT)) for source in sources() for name in source.names()
    }


def test_the_code_emits_only_what_the_catalogue_has():
    """Every event in the source of the three packages is in the catalogue."""
    unknown = {name: file for name, file in emitted_names().items() if name not in CATALOGUE}

    assert unknown == {}


def test_the_catalogue_has_only_what_the_code_emits():
    """No event is promised that nothing emits."""
    assert sorted(set(CATALOGUE) - set(emitted_names())) == []


@pytest.mark.parametrize("event", CATALOGUE.values(), ids=lambda event: event.name)
def test_an_event_is_well_formed(event):
    """A name is constant, `noun.past_participle`; a sentence says what happened."""
    assert NAME.fullmatch(event.name)
    assert event.summary[0].isupper()
    assert event.summary.endswith(".")
    assert len(set(event.fields)) == len(event.fields)


def test_a_field_the_catalogue_lacks_is_not_logged():
    """The keyword arguments that go with an event's name are fields the catalogue gives for it."""
    unknown = [
        f"{name}: {keyword.arg} in {source.path.name}"
        for source in sources()
        for name, call in source.calls()
        if name in CATALOGUE
        for keyword in call.keywords
        if keyword.arg not in {None, "exc_info", *RUN_FIELDS, *CATALOGUE[name].fields}
    ]

    assert unknown == []


def test_common_fields_are_not_repeated():
    """What every line has is not listed again; `worker` and the like belong to the writer."""
    repeated = [name for name, event in CATALOGUE.items() if {*event.fields} & {*COMMON_FIELDS}]

    assert repeated == []


def test_the_page_has_the_catalogue():
    """docs/reference/events.md has the table that `render_table` writes."""
    text = (ROOT / "docs" / "reference" / "events.md").read_text("utf-8")
    _, _, rest = text.partition("<!-- events -->\n")
    table, _, _ = rest.partition("<!-- /events -->")

    assert table == render_table()
