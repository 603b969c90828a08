"""Grids and bullets in plain text and Markdown."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH = 100  # columns of a terminal


def grid(
    rows: Sequence[Any],
    headers: Sequence[str],
    alignment: Sequence[str],
    fmt: str = "text",
    widths: Sequence[int | None] | None = None,
) -> str:
    """Lay out rows under headers as `text`, or as `md`: a Markdown table, whose fields must be escaped already.

    Each column is aligned `left` or `right`; fields are wrapped to its width, where one is given.
    """
    from tabulate import SEPARATING_LINE, tabulate

    layout: dict[str, Any] = {"colalign": alignment, "disable_numparse": True, "maxcolwidths": widths}
    if fmt == "md":
        lines = tabulate(rows, headers, "pipe", **layout).splitlines()
    else:
        # As rows, since tabulate makes columns two characters wider than headers, and drops empty rows under those of
        # two lines. It draws the outer lines only where there are no headers.
        head = itertools.zip_longest(*(header.split("\n") for header in headers), fillvalue="")
        lines = tabulate([*head, SEPARATING_LINE, *rows], (), "simple", **layout).splitlines()[1:-1]
    return "\n".join(line.rstrip() for line in lines)


def bullet(text: str, width: int = WIDTH, *, break_on_hyphens: bool = True) -> str:
    """Return the text as a list item, wrapped to a terminal's width."""
    return textwrap.fill(text, width, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=break_on_hyphens)
