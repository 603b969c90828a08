"""Published numbers and times as text, Markdown, CSV and JSON."""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal, get_args

from dfqbench.api.errors import unknown_name
from dfqbench.report.formatting import ABSENT, counted, optional
from dfqbench.report.literature.protocol_facts import FACTS, phrase
from dfqbench.report.literature.published import (
    PublishedNumber,
    PublishedTime,
    disagreements,
    reference,
    reference_lines,
    spread,
)
from dfqbench.report.renderers.csv import csv_text
from dfqbench.report.renderers.escape import markdown
from dfqbench.report.renderers.plain_text import WIDTH, bullet, grid

LiteratureFormat = Literal["text", "md", "csv", "json"]
LITERATURE_FORMATS: tuple[str, ...] = get_args(LiteratureFormat)
NARROWEST, WIDEST = 80, 160  # columns of a terminal that are filled
METHOD_WIDTH, NUMBERS_WIDTH = 22, 35  # columns of text: the first is wrapped, the second are bits, numbers and gaps
_HEADERS = ("bits", "method (here)", "full", "top-1", "drop", "printed in: protocol")
_ALIGNMENT = ("left", "left", "right", "right", "right", "left")
_COLUMNS = (
    *("method", "implemented", "dataset", "model", "w_bits", "a_bits", "protocol", "fp_top1", "top1", "drop"),
    *("selection", "paper", "reported_in", "place", "reference", "notes"),
)
_STATED = tuple(name for name in FACTS if name != "selection")
_LEGEND = (
    "Protocols are given as far as a source states them or its released code shows them. @gdfq: outputs of activation "
    "functions and all weights, first and last layer as the others."
)
_TIME_HEADERS = ("method", "model", "bits", "quantity", "time", "hardware", "printed in")
_TIME_WIDTHS = (22, 12, None, 24, 14, None, 30)


def render_numbers(numbers: Sequence[PublishedNumber], fmt: LiteratureFormat = "text", width: int = WIDTH) -> str:
    """Render published numbers with sources and protocols, and under them the cells about which sources disagree.

    `text` and `md` are for people, `csv` (a row a number) and `json` for programs; `width` is that of a terminal.

    Raises:
        UsageError: the format is unknown.
    """
    ordered = sorted(numbers, key=lambda n: (n.dataset, n.model, -n.w_bits, -n.top1, n.method.lower()))
    rows = [
        {column: getattr(number, column) for column in _COLUMNS}
        | {column: getattr(number.stated, column) for column in _STATED}
        for number in ordered
    ]
    data = _for_programs(rows, (*_COLUMNS, *_STATED), fmt)
    if data is not None:
        return data
    if not ordered:
        return "no claims\n"
    groups: dict[str, list[PublishedNumber]] = defaultdict(list)
    for number in ordered:
        groups[f"{number.dataset}, {number.model}"].append(number)
    width = min(max(width, NARROWEST), WIDEST)
    parts = []
    for title, group in groups.items():
        parts += [f"### {markdown(title)}" if fmt == "md" else title, _table(group, fmt, width)]
    disputed = map(_disagreement, disagreements(ordered))
    if bullets := _bullets(disputed, fmt, width):
        parts += ["Sources disagree about the same cell:", bullets]
    parts += [_bullets([_LEGEND], fmt, width), "Sources:", _sources((n.reported_in for n in ordered), fmt, width)]
    return "\n\n".join([*parts, _summary(ordered)]) + "\n"


def _sources(names: Iterable[str], fmt: str, width: int = WIDTH) -> str:
    return _bullets(reference_lines(names), fmt, width)


def _bullets(lines: Iterable[str], fmt: str, width: int) -> str:
    return "\n".join(f"* {markdown(line)}" if fmt == "md" else bullet(line, min(width, WIDTH)) for line in lines)


def render_times(times: Sequence[PublishedTime], fmt: LiteratureFormat = "text") -> str:
    """Render published times with their sources; arguments as in :func:`render_numbers`.

    Raises:
        UsageError: the format is unknown.
    """
    rows = [asdict(time) | {"reference": reference(time.source)} for time in times]
    data = _for_programs(rows, [*(field.name for field in fields(PublishedTime)), "reference"], fmt)
    if data is not None:
        return data
    if not times:
        return "no printed times\n"
    body = []
    for time in times:
        value = f"{time.value} {time.unit}".strip()
        model, bits, hardware = (text or ABSENT for text in (time.model, time.bits, time.hardware))
        body.append([time.method, model, bits, time.quantity, value, hardware, time.source])
    if fmt == "md":
        body = [list(map(markdown, row)) for row in body]
    alignment = ["left"] * len(_TIME_HEADERS)
    table = grid(body, _TIME_HEADERS, alignment, fmt, _TIME_WIDTHS if fmt == "text" else None)
    rule = "Times of different sources compare only where hardware and quantity are the same."
    return "\n\n".join([table, "Sources:", _sources((time.source for time in times), fmt), rule]) + "\n"


def _for_programs(rows: Sequence[dict[str, Any]], columns: Sequence[str], fmt: str) -> str | None:
    """Return rows as `csv` or `json`; None for the formats for people."""
    if fmt not in LITERATURE_FORMATS:
        raise unknown_name("format", fmt, LITERATURE_FORMATS)
    if fmt == "json":
        return json.dumps(rows, indent=2) + "\n"
    return csv_text(columns, rows) if fmt == "csv" else None


def _table(numbers: Sequence[PublishedNumber], fmt: str, width: int) -> str:
    merged: dict[tuple[str, ...], list[PublishedNumber]] = defaultdict(list)
    for number in numbers:
        accuracies = (optional(number.fp_top1), optional(number.top1), optional(number.drop))
        here = f"{number.method} ({number.implemented})" if number.implemented else number.method
        merged[number.bits, here, *accuracies, number.stated.words].append(number)
    rows: list[list[str]] = []
    previous = ""
    for (bits, method, full, top1, drop, words), same in merged.items():
        sources = "; ".join(dict.fromkeys(n.reported_in if fmt == "text" else n.source for n in same))
        told = f"{sources}: {words}" if words else sources
        if fmt == "text":
            shown = "" if bits == previous else bits
            last = _wrapped(told, width - NUMBERS_WIDTH - METHOD_WIDTH)
            rows.append([shown, _wrapped(method, METHOD_WIDTH), full, top1, drop, last])
        else:
            rows.append(list(map(markdown, (bits, method, full, top1, drop, told))))
        previous = bits
    return grid(rows, _HEADERS, _ALIGNMENT, fmt)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False))


def _disagreement(cell: list[PublishedNumber]) -> str:
    lowest = cell[0]
    first_of_each = {number.top1: number for number in reversed(cell)}
    values = "; ".join(f"{top1:.2f} ({number.reported_in})" for top1, number in reversed(first_of_each.items()))
    recipe = f", {phrase('recipe', lowest.kind)}" if lowest.kind else ""
    name = f"{lowest.method}, {lowest.dataset} {lowest.model} {lowest.bits}{recipe}"
    return f"{name}: {spread(cell):.2f} points apart: {values}"


def _summary(numbers: Sequence[PublishedNumber]) -> str:
    methods = {number.method for number in numbers}
    here = {number.method for number in numbers if number.implemented}
    sources = {number.reported_in for number in numbers}
    return (
        f"{counted(len(numbers), 'claim')} about {counted(len(methods), 'method')} from "
        f"{counted(len(sources), 'source')}; implemented here: {counted(len(here), 'method')}"
    )
