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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, get_origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One block of code in a docstring."""

    name: str
    """Whose docstring, and which of its blocks."""
    code: str

    def __str__(self) -> str:
        return self.name


def find_examples(
    module: ModuleType, *, names: Iterable[str] | None = None, beside: ModuleType | None = None
) -> list[Example]:
    """Return the examples of a module, of its public names and of their public methods.

    Args:
        module: Where to look.
        names: Its public names, if `__all__` does not say.
        beside: A module whose names are left out where they are the very same.
    """
    return [
        Example(name=f"{name}-{number}", code=code)
        for name, text in _docstrings(module, names, beside)
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
        if not _is_type_alias(getattr(module, name))
        and not any(found == name or found.startswith(f"{name}.") for found in examples)
    ]


def run_example(
    example: Example, names: dict[str, Any], *, on_loop: bool = False
) -> dict[str, Any]:
    """Execute an example, which may await, among `names`; return them with what it has bound.

    Args:
        example: What to execute.
        names: What it may take for given.
        on_loop: Execute it on an event loop, even if it does not await.
    """
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(example.code, f"<example {example}>", "exec", flags=flags)

    async def execute() -> None:
        result = eval(code, names)
        if inspect.iscoroutine(result):
            await result

    if on_loop or code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(execute())
    else:
        eval(code, names)

    return names


def _docstrings(
    module: ModuleType, names: Iterable[str] | None, beside: ModuleType | None
) -> Iterator[tuple[str, str]]:
    yield module.__name__, module.__doc__ or ""
    for name in module.__all__ if names is None else names:
        public = getattr(module, name)
        if beside is not None and public is getattr(beside, name, None):
            continue
        yield name, getattr(public, "__doc__", None) or ""
        if not inspect.isroutine(public) and not _is_type_alias(public):
            owner = public if inspect.isclass(public) else type(public)
            for member, value in vars(owner).items():
                if not member.startswith("_") and (text := getattr(value, "__doc__", None)):
                    yield f"{name}.{member}", text


def _is_type_alias(public: object) -> bool:
    return get_origin(public) is not None
