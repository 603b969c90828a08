"""The field: published numbers as a table, and where papers disagree about one cell."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, get_args

from dfqbench.api.errors import unknown_name
from dfqbench.report.claims import Claim, Disagreement, disagreements
from dfqbench.report.escape import markdown
from dfqbench.report.values import ABSENT

FieldFormat = Literal["text", "md", "csv", "json"]
FIELD_FORMATS: tuple[str, ...] = get_args(FieldFormat)
WIDTH = 100
SOURCE_WIDTH = 44
SELECTIONS = {"best": "best test epoch", "unknown": "not said"}
_HEADERS = ("bits", "method", "here", "full", "top-1", "drop", "epoch", "printed in")
_RIGHT = frozenset({"full", "top-1", "drop"})
_PLACE = re.compile(r"\s*\(.*\)$")


def render_field(claims: Sequence[Claim], fmt: FieldFormat = "text") -> str:
    """Renders claims with their sources, methods together, and under them the cells about which sources disagree.

    Args:
        claims: to show.
        fmt: `text` and `md` for people, `csv` (a row a claim) and `json` for programs.

    Raises:
        UsageError: the format is unknown.
    """
    if fmt not in FIELD_FORMATS:
        raise unknown_name("format", fmt, FIELD_FORMATS)
    ordered = sorted(claims, key=lambda c: (c.dataset, c.model, -c.w_bits, -c.top1, c.method.lower()))
    if fmt == "json":
        return json.dumps([_plain(claim) for claim in ordered], indent=2) + "\n"
    if fmt == "csv":
        return _csv(ordered)
    if not ordered:
        return "no claims\n"
    parts = [*_tables(ordered, fmt), *_disagreements(disagreements(ordered), fmt), _summary(ordered)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tables(claims: Sequence[Claim], fmt: str) -> list[str]:
    """One table for each data set and network."""
    groups: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        groups.setdefault((claim.dataset, claim.model), []).append(claim)
    parts = []
    for (dataset, model), group in groups.items():
        title = f"{dataset}, {model}"
        parts += [f"### {markdown(title)}" if fmt == "md" else title, _table(group, fmt)]
    return parts


def _table(claims: Sequence[Claim], fmt: str) -> str:
    from tabulate import tabulate

    rows, bits = [], ""
    for same in _merged(claims):
        claim = same[0]
        sources = "; ".join(dict.fromkeys(_short(entry) if fmt == "text" else entry.source for entry in same))
        fields = [
            "" if claim.bits == bits and fmt == "text" else claim.bits,
            claim.method,
            claim.implemented or ABSENT,
            _number(claim.fp_top1),
            _number(claim.top1),
            _number(claim.drop),
            SELECTIONS[claim.selection],
            "\n".join(textwrap.wrap(sources, SOURCE_WIDTH)) if fmt == "text" else sources,
        ]
        rows.append([markdown(field) for field in fields] if fmt == "md" else fields)
        bits = claim.bits
    aligned = ["right" if header in _RIGHT else "left" for header in _HEADERS]
    style = "pipe" if fmt == "md" else "simple"
    table = tabulate(rows, _HEADERS, tablefmt=style, colalign=aligned, disable_numparse=True)
    return "\n".join(line.rstrip() for line in table.splitlines())


def _merged(claims: Sequence[Claim]) -> list[list[Claim]]:
    """Claims that say the same of the same cell, together."""
    groups: dict[tuple[object, ...], list[Claim]] = {}
    for claim in claims:
        key = (claim.bits, claim.method, claim.implemented, claim.fp_top1, claim.top1, claim.selection)
        groups.setdefault(key, []).append(claim)
    return list(groups.values())


def _short(claim: Claim) -> str:
    """The source without the place in brackets."""
    return _PLACE.sub("", claim.reported_in)


def _disagreements(found: Sequence[Disagreement], fmt: str) -> list[str]:
    if not found:
        return []
    lines = []
    for entry in found:
        first = entry.claims[0]
        values = "; ".join(f"{_number(claim.top1)} ({_short(claim)})" for claim in _distinct(entry.claims))
        line = f"{first.method}, {first.dataset} {first.model} {first.bits}: {entry.spread:.2f} points apart: {values}"
        filled = textwrap.fill(line, WIDTH, initial_indent="* ", subsequent_indent="  ")
        lines.append(f"* {markdown(line)}" if fmt == "md" else filled)
    return ["Sources disagree about the same cell:", "\n".join(lines)]


def _distinct(claims: Sequence[Claim]) -> list[Claim]:
    """One claim for each printed value."""
    return list({claim.top1: claim for claim in reversed(claims)}.values())[::-1]


def _summary(claims: Sequence[Claim]) -> str:
    methods = {claim.method for claim in claims}
    here = {claim.method for claim in claims if claim.implemented}
    sources = {claim.reported_in for claim in claims}
    return (
        f"{len(claims)} claims about {len(methods)} methods from {len(sources)} sources; "
        f"{len(here)} of these methods are implemented here"
    )


def _csv(claims: Sequence[Claim]) -> str:
    out = io.StringIO()
    rows = [_plain(claim) for claim in claims]
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


_COLUMNS = (
    *("method", "implemented", "dataset", "model", "w_bits", "a_bits", "protocol", "fp_top1", "top1", "drop"),
    *("selection", "paper", "reported_in", "place", "notes"),
)


def _plain(claim: Claim) -> dict[str, Any]:
    row = {column: getattr(claim, column) for column in _COLUMNS}
    return row | {"drop": None if claim.drop is None else round(claim.drop, 4)}


def _number(entry: float | None) -> str:
    return ABSENT if entry is None else f"{entry:.2f}"
