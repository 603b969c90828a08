"""The table: methods × models, as text, Markdown, CSV or JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from dfqbench.api.errors import unknown_name
from dfqbench.report.caption import caption, short_names, title
from dfqbench.report.flat import to_csv
from dfqbench.report.outcome import outcome
from dfqbench.report.sheet import Sheet, sheets
from dfqbench.report.values import ABSENT, latest, plain

Format = Literal["text", "md", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)
WIDTH = 100
"""Columns of a terminal that a text table fits into, where one model alone does."""


def render(
    records: Sequence[Mapping[str, Any]], fmt: Format = "text", hardware: Mapping[str, str] | None = None
) -> str:
    """Renders records.

    Only the latest attempt at each cell counts. Records of older schemas, with keys missing, are shown as far as
    they go.

    Args:
        records: as in the record files.
        fmt: `text` and `md` for people: one table for each target, evaluation set and budget, seeds summed up, with
            caption and footnotes; `csv` (a row a cell) and `json` (the records) for programs.
        hardware: words for the environments that the records name (see `report.hardware`).

    Returns:
        The text, with a line end.

    Raises:
        UsageError: the format is unknown.
    """
    if fmt == "json":
        return json.dumps([plain(record) for record in latest(records)], indent=2, allow_nan=False, default=str) + "\n"
    if fmt == "csv":
        return to_csv(latest(records))
    if fmt not in FORMATS:
        raise unknown_name("format", fmt, FORMATS)
    pages = [
        _text(sheet, hardware or {}) if fmt == "text" else _markdown(sheet, hardware or {}) for sheet in sheets(records)
    ]
    return "\n\n".join(pages) + "\n" if pages else "no records\n"


class _Footnotes:
    """Numbers the reasons; the same reason has one number."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def mark(self, notes: Sequence[str]) -> str:
        """The marks of some notes, for example ` [1]`."""
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
        return "".join(f" [{self.notes.index(note) + 1}]" for note in notes)


def _body(sheet: Sheet, models: Sequence[str], footnotes: _Footnotes) -> list[list[str]]:
    """Rows of scheme, method, and three columns a model."""
    body = []
    for row in sheet.rows:
        line = [row.scheme, row.label]
        for model in models:
            if model not in row.cells:
                line += [ABSENT] * 3
                continue
            place = outcome(row.cells[model])
            line += [place.top1 + footnotes.mark(place.notes), place.drop, place.synthesis]
        body.append(line)
    return body


def _text(sheet: Sheet, hardware: Mapping[str, str]) -> str:
    footnotes = _Footnotes()
    _body(sheet, sheet.models, footnotes)
    tables: list[str] = []
    for each in range(len(sheet.models), 0, -1):
        tables = [
            _text_table(sheet, sheet.models[start : start + each], footnotes)
            for start in range(0, len(sheet.models), each)
        ]
        if max(len(line) for table in tables for line in table.splitlines()) <= WIDTH:
            break
    lines = [title(sheet), "", "\n\n".join(tables), ""]
    for number, note in enumerate(footnotes.notes, start=1):
        lines.append(textwrap.fill(f"[{number}] {note}", WIDTH, subsequent_indent="    "))
    lines += [
        textwrap.fill(line, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)
        for line in caption(sheet, hardware)
    ]
    return "\n".join(lines)


def _text_table(sheet: Sheet, models: Sequence[str], footnotes: _Footnotes) -> str:
    from tabulate import SEPARATING_LINE, tabulate

    names = short_names(sheet.models)
    headers = ["scheme", "method"]
    for model in models:
        headers += [f"{names[model]}\ntop-1", "\ndrop", "\nsynthesis"]
    body: list[Any] = []
    scheme = ""
    for line in _body(sheet, models, footnotes):
        if scheme and line[0] != scheme:
            body.append(SEPARATING_LINE)
        body.append(["" if line[0] == scheme else line[0], *line[1:]])
        scheme = line[0]
    aligned = ("left", "left", *(("right",) * (3 * len(models))))
    table = tabulate(body, headers, tablefmt="simple", colalign=aligned, disable_numparse=True)
    return "\n".join(line.rstrip() for line in table.splitlines())


def _markdown(sheet: Sheet, hardware: Mapping[str, str]) -> str:
    from tabulate import tabulate

    footnotes = _Footnotes()
    names = short_names(sheet.models)
    headers = ["scheme", "method"]
    for model in sheet.models:
        headers += [f"{_escaped(names[model])}<br>top-1", "drop", "synthesis"]
    body = [[_escaped(field) for field in line] for line in _body(sheet, sheet.models, footnotes)]
    aligned = ("left", "left", *(("right",) * (3 * len(sheet.models))))
    table = tabulate(body, headers, tablefmt="pipe", colalign=aligned, disable_numparse=True)
    notes = [f"{number}. {_escaped(note)}" for number, note in enumerate(footnotes.notes, start=1)]
    lines = [f"### {_escaped(title(sheet))}", "", table, ""]
    if notes:
        lines += ["Notes, by the number in brackets:", "", *notes, ""]
    return "\n".join([*lines, *(f"* {_escaped(line)}" for line in caption(sheet, hardware))])


def _escaped(field: str) -> str:
    """Text in which Markdown sees no markup and no column."""
    for character in "\\`*_|<>":
        field = field.replace(character, f"\\{character}")
    return field
