"""Tables for people: drawn on a terminal, plain columns in a pipe; and how times are written."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import typer

__all__ = ["moment", "print_table", "short_moment", "span"]

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400
_YEAR: Final = 365.2425 * _DAY

_SHORT: Final = 12
"""Columns up to this width stay on one line; wider ones share what the terminal has left."""

Rows = Sequence[Sequence[str]]


def print_table(header: Sequence[str], rows: Rows) -> None:
    """Print a table; its first column is never cut, since it is what other commands take.

    On a terminal columns without anything are left out.
    """
    if sys.stdout.isatty():
        _draw(header, rows)
    else:
        _align([header, *rows])


def _draw(header: Sequence[str], rows: Rows) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    columns = [column for column in zip(header, *rows, strict=True) if any(column[1:])]
    for number, column in enumerate(columns):
        width = max(map(len, column))
        if number == 0 or width <= _SHORT:
            table.add_column(column[0], no_wrap=True, min_width=width)
        else:
            table.add_column(column[0], overflow="fold")
    for row in zip(*(column[1:] for column in columns), strict=True):
        # As text: brackets in a tag are no markup.
        table.add_row(*map(Text, row))
    Console().print(table)


def _align(lines: Rows) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def moment(at: float | None) -> str:
    """Write seconds since the epoch as this host's date and time; nothing for None."""
    if at is None:
        return ""

    try:
        return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):
        return f"in the year {1970 + at / _YEAR:,.0f}"


def short_moment(at: float) -> str:
    """Write the time of a moment of today, and the date of any other."""
    when = datetime.fromtimestamp(at).astimezone()
    is_today = when.date() == datetime.now().astimezone().date()

    return when.strftime("%H:%M:%S" if is_today else "%Y-%m-%d")


def span(seconds: float) -> str:
    """Write how long something took with two units at most: "531 ms", "5.3 s", "2 h 05 m"."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} m {seconds % _MINUTE:02.0f} s"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:02.0f} m"

    return f"{seconds // _DAY:.0f} d {seconds % _DAY // _HOUR:.0f} h"
