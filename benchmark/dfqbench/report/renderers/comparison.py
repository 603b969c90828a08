"""Comparisons of two methods as text, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal, get_args

from dfqbench.api.errors import unknown_name
from dfqbench.report.comparison.compare import ALL_SEEDS, Comparison
from dfqbench.report.comparison.paired import CONFIDENCE, LEVEL, RESAMPLES
from dfqbench.report.renderers.escape import markdown
from dfqbench.report.renderers.plain_text import bullet, grid

ComparisonFormat = Literal["text", "md", "json"]
COMPARISON_FORMATS: tuple[str, ...] = get_args(ComparisonFormat)
_PLACE = ("target", "model", "scheme", "budget")
_HEADERS = (*_PLACE, "seed", "A", "B", "A - B", "95 % interval", "only A", "only B", "p", "q", "verdict")


def render_comparison(rows: Sequence[Comparison], first: str, second: str, fmt: ComparisonFormat = "text") -> str:
    """Render comparisons of two methods or cells as `text`, `md` or `json`.

    Raises:
        UsageError: the format is unknown.
    """
    if fmt not in COMPARISON_FORMATS:
        raise unknown_name("format", fmt, COMPARISON_FORMATS)
    if fmt == "json":
        data = [
            {"A": first, "B": second, **dict(zip(_PLACE, row.place, strict=True)), "seed": row.seed}
            | asdict(row.paired)
            | {"difference": row.paired.difference, "q": row.q, "differs": row.differs}
            for row in rows
        ]
        return json.dumps(data, indent=2) + "\n"
    body = [[*row.place, row.seed, *_numbers(row)] for row in rows]
    # A column that says the same in every row goes into the title.
    constant = [at for at in range(len(_PLACE)) if len(rows) > 1 and len({fields[at] for fields in body}) == 1]
    kept = [at for at in range(len(_HEADERS)) if at not in constant and (_HEADERS[at] != "q" or len(rows) > 1)]
    title = ", ".join([f"A: {first}", f"B: {second}", *(body[0][at] for at in constant)])
    if fmt == "md":
        title, body = markdown(title), [list(map(markdown, fields)) for fields in body]
    alignment = ["left" if at < len(_PLACE) or at == len(_HEADERS) - 1 else "right" for at in kept]
    table = grid([[fields[at] for at in kept] for fields in body], [_HEADERS[at] for at in kept], alignment, fmt)
    return "\n".join([title, "", table, "", *map(bullet, _caption(rows))]) + "\n"


def _numbers(row: Comparison) -> list[str]:
    paired = row.paired
    chances = ["< 0.0001" if chance < 1e-4 else f"{chance:.4f}" for chance in (paired.p, row.q)]
    word = ("A is better" if paired.difference > 0 else "B is better") if row.differs else "not significant"
    counts = [f"{count:.{0 if count == round(count) else 1}f}" for count in (paired.only_first, paired.only_second)]
    interval = f"{paired.low:+.2f} to {paired.high:+.2f}"
    numbers = [f"{paired.first:.2f}", f"{paired.second:.2f}", f"{paired.difference:+.2f}"]
    return [*numbers, interval, *counts, *chances, word]


def _caption(rows: Sequence[Comparison]) -> list[str]:
    images = sorted({row.paired.n for row in rows})
    exact = [row.paired.exact for row in rows]
    test = "exact" if all(exact) else "exact where few differ, else chi-squared" if any(exact) else "chi-squared"
    lines = [
        f"top-1 in percent, paired over {', '.join(f'{n:,}' for n in images)} images",
        f"verdict: {'q' if len(rows) > 1 else 'p'} < {LEVEL}, and nothing else",
        f"p: McNemar's test (over seeds, with an image's answers swapped together), two-sided, {test}",
        f"{100 * CONFIDENCE:.0f} % interval of A - B: an estimate, percentile bootstrap over images, "
        f"{RESAMPLES:,} resamples",
    ]
    if any(row.seed == ALL_SEEDS for row in rows):
        lines.append("all: answers averaged over seeds, images swapped or resampled: of these seeds, not of others")
    if len(rows) > 1:
        lines.append(
            "q: p corrected for the number of tests (Benjamini-Hochberg): of each place's last row over the places, "
            "of the other rows among themselves"
        )
    return lines
