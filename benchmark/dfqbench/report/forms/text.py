"""Pages for a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from dfqbench.report.forms.claims import RULE, claim_alignment, claim_fields, claim_headers, unjudged
from dfqbench.report.page import Page

WIDTH = 100
"""Columns of a terminal that a table fits into, where one group of columns alone does."""
SOURCE_WIDTH = 30


def text_page(page: Page) -> str:
    """The page as plain text; tables that are too wide are split by columns."""
    tables: list[str] = []
    groups = len(page.columns)
    for each in range(_most_groups(page), 0, -1):
        tables = [_table(page, range(start, min(start + each, groups))) for start in range(0, groups, each)]
        if max(len(line) for table in tables for line in table.splitlines()) <= WIDTH:
            break
    lines = [page.title, "", "\n\n".join(tables), ""]
    for number, note in enumerate(page.footnotes, start=1):
        lines.append(textwrap.fill(f"[{number}] {note}", WIDTH, subsequent_indent="    "))
    lines += [
        textwrap.fill(line, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)
        for line in page.caption
    ]
    return "\n".join([*lines, *_claims(page)])


def _most_groups(page: Page) -> int:
    """No more groups than this can stand side by side; trying more would only take time."""
    narrow = min((len(column.name) for column in page.columns), default=1)
    fields = min((sum(2 + len(value.header) for value in column.values) for column in page.columns), default=1)
    return max(1, min(len(page.columns), WIDTH // max(1, narrow, fields)))


def _table(page: Page, groups: range) -> str:
    from tabulate import SEPARATING_LINE, tabulate

    headers = list(page.heads)
    for group in groups:
        name, values = page.columns[group].name, page.columns[group].values
        headers += [f"{name}\n{values[0].header}", *(f"\n{value.header}" for value in values[1:])]
    body: list[Any] = []
    before = None
    for row in page.rows:
        if before is not None and row.block != before.block:
            body.append(SEPARATING_LINE)
        elif before is not None and row.control and not before.control:
            body.append([""] * len(headers))
        head = list(row.head)
        if before is not None and len(head) > 1 and head[0] == before.head[0]:
            head[0] = ""
        fields = []
        for group in groups:
            width = len(page.columns[group].values)
            fields += [_field(entry.text, entry.notes) for entry in row.entries[group * width : (group + 1) * width]]
        body.append([*head, *fields])
        before = row
    aligned = ("left",) * len(page.heads) + ("right",) * (len(headers) - len(page.heads))
    table = tabulate(body, headers, tablefmt="simple", colalign=aligned, disable_numparse=True)
    return "\n".join(line.rstrip() for line in table.splitlines())


def _field(text: str, notes: tuple[int, ...]) -> str:
    return text + "".join(f" [{number}]" for number in notes)


def _claims(page: Page) -> list[str]:
    if page.judged is None:
        return []
    from tabulate import tabulate

    if not page.judged:
        return ["", unjudged(page)]
    rows = [
        [*fields[:-1], "\n".join(textwrap.wrap(fields[-1], SOURCE_WIDTH))] for fields in map(claim_fields, page.judged)
    ]
    headers, aligned = claim_headers(page), claim_alignment(page)
    table = tabulate(rows, headers, tablefmt="simple", colalign=aligned, disable_numparse=True)
    rule = textwrap.fill(RULE, WIDTH, initial_indent="* ", subsequent_indent="  ")
    shown = "\n".join(line.rstrip() for line in table.splitlines())
    return ["", "Published numbers for these cells:", "", shown, "", rule]
