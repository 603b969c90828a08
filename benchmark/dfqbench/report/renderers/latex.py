"""Tables as LaTeX, for booktabs and graphicx."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dfqbench.report.comparison.ranks import BEST, SECOND
from dfqbench.report.formatting import ABSENT
from dfqbench.report.renderers.escape import latex
from dfqbench.report.tables.table import RANK_RULE, Entry, Row, Table, with_gaps

PREAMBLE = "% \\usepackage{booktabs,graphicx}"
MOST_ROWS = 30
"""Rows of a float: more do not fit on a page beneath a caption; sources of published numbers may take two lines."""
SOURCE_WIDTH = r"p{16em}"  # of the columns of sources and differences, whose lines break
_NOT_WIDER = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
_GAPS = {"block": [r"\midrule"], "controls": [r"\addlinespace"], "": []}


def to_latex(table: Table) -> str:
    """Return the table as floats: best in bold, second underlined, controls in italics after a gap.

    What is wider than the line is made smaller; what is longer than a page goes on in another float.
    """
    alignment = "".join(side[0] for side in table.row_alignment) + "r" * len(table.columns) * len(table.metrics)
    title = f"{latex(table.title)}."
    parts = list(_parts(table.rows))
    lines = [PREAMBLE]
    for at, rows in enumerate(parts):
        caption = f"{title} {_caption(table)}" if at == 0 else f"{title} Continued."
        notes = _footnotes(table) if at == len(parts) - 1 else []
        lines += _float(caption, alignment, _header(table), _body(rows), notes)
    return "\n".join([*lines, *_published(table)])


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield the rows of each float; whole blocks stay together where one fits."""
    begin = 0
    while begin < len(rows):
        end = min(begin + MOST_ROWS, len(rows))
        if end < len(rows):
            edges = (at for at in range(end, begin, -1) if rows[at].block != rows[at - 1].block)
            end = next(edges, end)
        yield rows[begin:end]
        begin = end


def _float(caption: str, alignment: str, header: Sequence[str], body: Sequence[str], notes: Sequence[str]) -> list[str]:
    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        # Classes that have captions beneath tables leave no room under them.
        r"\par\addvspace{\smallskipamount}",
        r"\small",
        _NOT_WIDER,
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        *header,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        *notes,
        r"\end{table}",
    ]


def _footnotes(table: Table) -> list[str]:
    notes = [rf"\textsuperscript{{{number}}}\,{latex(note)}" for number, note in enumerate(table.footnotes, start=1)]
    return ["", r"\par\smallskip\footnotesize\raggedright", " \\\\\n".join(notes), r"\par"] if notes else []


def _sentence(text: str) -> str:
    return f"{latex(text[:1].upper() + text[1:])}."


def _caption(table: Table) -> str:
    ranks = [f"bold: best, underlined: second {RANK_RULE}"] if table.ranked else []
    return " ".join(map(_sentence, [*table.caption, *ranks]))


def _header(table: Table) -> list[str]:
    groups, rules, names = [""] * (len(table.heads) + len(table.made)), [], [*table.heads, *table.made]
    span = len(table.metrics)
    for name in table.columns:
        groups.append(rf"\multicolumn{{{span}}}{{c}}{{{latex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{len(names) + 1}-{len(names) + span}}}")
        names += [metric.header for metric in table.metrics]
    return [" & ".join(groups).strip() + r" \\", " ".join(rules), " & ".join(map(latex, names)) + r" \\"]


def _body(rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for gap, names, row in with_gaps(rows):
        *head, last = map(latex, names)
        head.append(rf"\textit{{{last}}}" if row.control else last)
        lines += [*_GAPS[gap], " & ".join([*head, *map(_text, row.made), *map(_field, row.entries)]) + r" \\"]
    return lines


def _field(entry: Entry) -> str:
    shown = _text(entry.text)
    shown = {BEST: rf"\textbf{{{shown}}}", SECOND: rf"\underline{{{shown}}}"}.get(entry.rank, shown)
    marks = ",".join(map(str, entry.notes))
    return shown + (rf"\textsuperscript{{{marks}}}" if marks else "")


def _text(text: str) -> str:
    return "--" if text == ABSENT else latex(text)


def _published(table: Table) -> list[str]:
    if not table.published:
        return [] if table.published is None else ["", latex(table.nothing_published)]
    # Lines of a narrow column are left ragged, after which only the long command ends a row.
    rows = [
        " & ".join([*map(_text, fields), *(rf"\raggedright {_text(field)}" for field in broken)]) + r" \tabularnewline"
        for *fields, differs, source in table.published
        for broken in [(differs, source)]
    ]
    alignment = "".join(side[0] for side in table.published_alignment[:-2]) + 2 * SOURCE_WIDTH
    header = [" & ".join(map(latex, table.published_headers)) + r" \\"]
    lines = [""]
    for begin in range(0, len(rows), MOST_ROWS):
        more = " ".join(map(_sentence, table.published_notes)) if begin == 0 else "Continued."
        caption = f"Published numbers beside measurements: {latex(table.title)}. {more}"
        lines += _float(caption, alignment, header, rows[begin : begin + MOST_ROWS], [])
    sources = ". ".join(map(latex, table.references))
    return [*lines, "", rf"{{\footnotesize\raggedright Sources: {sources}.\par}}"] if sources else lines
