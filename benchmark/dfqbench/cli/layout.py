"""Tables that fit the terminal, and colours where there is one."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

COLORS = {"ok": "32", "missing": "33", "unavailable": "33", "broken": "31", "failed": "31", "error": "1;31"}
"""ANSI colours of words that tell a state."""


def fitted_table(rows: Sequence[Sequence[str]], columns: Sequence[str] = ()) -> str:
    """Return a table as wide as the terminal at most: cells are wrapped between words, where that is enough.

    A cell that is the name of a state has its colour.
    """
    from tabulate import tabulate

    cells = list(zip(*([columns] if columns else []), *rows, strict=True))
    widths = [max(map(len, column)) for column in cells]
    # A column that is narrower than its longest word would not be narrower on the screen.
    spare = [
        width - max(len(word) for cell in column for word in (cell.split() or [""]))
        for width, column in zip(widths, cells, strict=True)
    ]
    for _ in range(sum(widths) + 2 * (len(widths) - 1) - shutil.get_terminal_size().columns):
        i = spare.index(max(spare))
        if spare[i] == 0:
            break
        widths[i], spare[i] = widths[i] - 1, spare[i] - 1
    body = [
        [colored("\n".join(_wrapped(cell, width)), cell) for cell, width in zip(row, widths, strict=True)]
        for row in rows
    ]
    return tabulate(body, columns, tablefmt="simple" if columns else "plain", disable_numparse=True)


def wrapped(text: str, indent: str = "") -> str:
    """Return a paragraph as wide as the terminal at most; further lines are indented."""
    lines = _wrapped(text, shutil.get_terminal_size().columns, indent)
    return "\n".join(lines)


def colored(text: str, state: str, *, err: bool = False) -> str:
    """Return text in the colour of a state, if the stream is a terminal; NO_COLOR and FORCE_COLOR decide before it."""
    stream = sys.stderr if err else sys.stdout
    terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    on = not os.environ.get("NO_COLOR") and (bool(os.environ.get("FORCE_COLOR")) or terminal)
    return f"\033[{COLORS[state]}m{text}\033[0m" if on and state in COLORS else text


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    # A path or command is longer than a line before it is broken: it is to be copied.
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent) or [""]
