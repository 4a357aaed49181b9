"""The rules of the tree that a reader relies on: what imports what, and what is never imported."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = {"td_sharedcache": "sharedcache", "td_worker": "worker", "td_runtime": "runtime"}
MODULES = sorted(
    (path for package, folder in LAYERS.items() for path in (ROOT / folder / package).rglob("*.py"))
)
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each imported module's full name (dots first when relative) and its line."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno


def _offenders(path: Path, forbidden: set[str]) -> list[str]:
    name = path.relative_to(ROOT)
    return [
        f"{name}:{line} imports {module}"
        for module, line in _imports(path)
        if module.split(".")[0] in forbidden
    ]


def _above(package: str) -> set[str]:
    layers = list(LAYERS)
    return set(layers[layers.index(package) + 1 :])


def test_the_tree_holds_three_packages_with_modules() -> None:
    """The checks below look at something: each of the three packages has modules."""
    assert {path.relative_to(ROOT).parts[1] for path in MODULES} == set(LAYERS)


@pytest.mark.parametrize("package", LAYERS)
def test_dependencies_point_one_way(package: str) -> None:
    """td_runtime may import td_worker, which may import td_sharedcache, and never the reverse."""
    paths = [path for path in MODULES if path.relative_to(ROOT).parts[1] == package]

    assert [hit for path in paths for hit in _offenders(path, _above(package))] == []


def test_imports_are_absolute() -> None:
    """No relative import: with one, `import worker.td_worker` would make a class exist twice."""
    assert [hit for path in MODULES for hit in _offenders(path, {""})] == []


def test_nothing_is_unpickled() -> None:
    """No module of ours imports a serialiser that runs code while it reads."""
    assert [hit for path in MODULES for hit in _offenders(path, UNPICKLERS)] == []


def test_every_package_of_tests_is_one() -> None:
    """Each folder with tests has an __init__.py, without which mypy checks it by other rules."""
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}

    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


def _asked_for() -> list[str]:
    """Return the names of the run-time dependencies that pyproject.toml declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [re.split(r"[<>=!~\[;]", entry)[0].strip() for entry in project["dependencies"]]


@pytest.mark.parametrize("name", _asked_for())
def test_each_dependency_is_accounted_for(name: str) -> None:
    """A run-time dependency has an exact pin, and the documentation states that very version."""
    document = (ROOT / "docs" / "dependencies.md").read_text("utf-8")

    assert f"| {name} | {_pins()[name]} |" in document


def test_no_pin_names_a_registry() -> None:
    """Pins and the npm lock file name versions, not servers, so any mirror will do."""
    lock = (ROOT / "tests" / "interop" / "package-lock.json").read_text("utf-8")
    pins = (ROOT / "constraints.txt").read_text("utf-8")

    assert re.findall(r"://|@ file", pins) == []
    assert '"resolved"' not in lock


def _links(document: Path) -> set[Path]:
    """Return the files of this project that a document links to."""
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text("utf-8"))
    return {(document.parent / target).resolve() for target in targets if "://" not in target}


DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link in a document leads to a file or folder that exists."""
    assert [link for link in _links(document) if not link.exists()] == []


def test_the_index_lists_every_page() -> None:
    """Each page under docs/ is linked from docs/README.md, so that it can be found."""
    index = ROOT / "docs" / "README.md"

    assert set((ROOT / "docs").rglob("*.md")) - _links(index) - {index} == set()
