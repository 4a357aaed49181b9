"""Runs the examples that docstrings hold, so that none of them rots.

::

    for example in find_examples(streams):
        run_example(example, {"streams": streams, "run_id": "run_1"})
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One block of code in a docstring."""

    name: str
    """Whose docstring, and which of its blocks."""
    code: str

    def __str__(self) -> str:
        return self.name


def find_examples(module: ModuleType) -> list[Example]:
    """Return the examples of a module, of its public names and of their public methods."""
    return [
        Example(name=f"{name}-{number}", code=code)
        for name, text in _docstrings(module)
        for number, code in enumerate(
            re.findall(r"^```python\n(.+?)^```$", inspect.cleandoc(text), re.DOTALL | re.MULTILINE)
        )
    ]


def find_unexampled(module: ModuleType) -> list[str]:
    """Return the public names whose docstring, with those of their methods, has no example."""
    examples = {example.name.rpartition("-")[0] for example in find_examples(module)}

    return [
        name
        for name in module.__all__
        if callable(getattr(module, name))
        and not any(found == name or found.startswith(f"{name}.") for found in examples)
    ]


def run_example(example: Example, names: dict[str, Any]) -> dict[str, Any]:
    """Execute an example, which may await, among `names`; return them with what it has bound."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(example.code, f"<example {example}>", "exec", flags=flags)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        asyncio.run(result)

    return names


def _docstrings(module: ModuleType) -> Iterator[tuple[str, str]]:
    yield module.__name__, module.__doc__ or ""
    for name in module.__all__:
        public = getattr(module, name)
        yield name, getattr(public, "__doc__", None) or ""
        if inspect.isclass(public):
            for member, value in vars(public).items():
                if not member.startswith("_") and (text := getattr(value, "__doc__", None)):
                    yield f"{name}.{member}", text
