"""Tables that fit the terminal, and colours."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

COLORS = {"ok": "32", "missing": "33", "unavailable": "33", "broken": "31", "failed": "31", "error": "1;31"}
"""ANSI colours of words that tell a state."""


def fitted_table(rows: Sequence[Sequence[str]], columns: Sequence[str] = ()) -> str:
    """Return a table as wide as the terminal at most: cells are wrapped between words, where that is enough.

    A cell that is the name of a state has its colour.
    """
    from tabulate import tabulate

    cells = list(zip(*rows, strict=True)) or [()] * len(columns)
    # Headers have two more characters; a column narrower than its longest word is not narrower on the screen.
    heads = [len(name) + 2 for name in columns] or [0] * len(cells)
    widths = [max(head, 0, *map(len, column)) for head, column in zip(heads, cells, strict=True)]
    least = [
        max(head, 0, *(len(word) for cell in column for word in cell.split()))
        for head, column in zip(heads, cells, strict=True)
    ]
    spare = [width - narrowest for width, narrowest in zip(widths, least, strict=True)]
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


def wrapped(text: str) -> str:
    """Return a paragraph as wide as the terminal at most."""
    return "\n".join(_wrapped(text, shutil.get_terminal_size().columns))


def stderr_console() -> Console:
    """Return a console for progress: plain lines where standard error is no terminal, whatever FORCE_COLOR says."""
    from rich.console import Console

    alive = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return Console(stderr=True, force_terminal=None if alive else False)


def color_wanted() -> bool | None:
    """Return what NO_COLOR and FORCE_COLOR say; None: colours on terminals only."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def colored(text: str, state: str) -> str:
    """Return text in the colour of a state; `typer.echo` removes colours where none are wanted."""
    return f"\033[{COLORS[state]}m{text}\033[0m" if state in COLORS else text


def _wrapped(text: str, width: int) -> list[str]:
    # A path or command is to be copied: it is longer than a line before it is broken.
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
