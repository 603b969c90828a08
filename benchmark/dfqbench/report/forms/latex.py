"""Pages as LaTeX, for booktabs and graphicx."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dfqbench.report.escape import latex
from dfqbench.report.forms.claims import RULE, claim_alignment, claim_fields, claim_headers, unjudged
from dfqbench.report.page import BEST, SECOND, Entry, Page, Row
from dfqbench.report.values import ABSENT

PREAMBLE = "% \\usepackage{booktabs,graphicx}"
MOST_ROWS, MOST_CLAIMS = 30, 30
"""Rows of a float: more do not fit on a page beneath a caption; sources of claims may take two lines."""
SOURCE_WIDTH = r"p{16em}"
"""Of the column of sources, whose lines break."""
_NOT_WIDER = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def latex_page(page: Page) -> str:
    """The page as floating tables: best in bold, second underlined, controls in italics after a gap.

    What is wider than the line is made smaller; what is longer than a page goes on in another float.
    """
    width = sum(len(column.values) for column in page.columns)
    columns = "l" * len(page.heads) + "r" * width
    title = f"{latex(page.title)}."
    parts = list(_parts(page.rows))
    lines = [PREAMBLE]
    for at, rows in enumerate(parts):
        said = f"{title} {_caption(page)}" if at == 0 else f"{title} Continued."
        notes = _footnotes(page) if at == len(parts) - 1 else []
        lines += _float(said, columns, _header(page), _body(rows), notes)
    return "\n".join([*lines, *_claims(page)])


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Rows of each float; whole blocks stay together where one fits."""
    begin = 0
    while begin < len(rows):
        end = min(begin + MOST_ROWS, len(rows))
        if end < len(rows):
            edges = (at for at in range(end, begin, -1) if rows[at].block != rows[at - 1].block)
            end = next(edges, end)
        yield rows[begin:end]
        begin = end


def _float(caption: str, columns: str, header: Sequence[str], body: Sequence[str], notes: Sequence[str]) -> list[str]:
    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        # Classes that have captions beneath tables leave no room under them.
        r"\par\addvspace{\smallskipamount}",
        r"\small",
        _NOT_WIDER,
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *header,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        *notes,
        r"\end{table}",
    ]


def _footnotes(page: Page) -> list[str]:
    notes = [rf"\textsuperscript{{{number}}}\,{latex(note)}" for number, note in enumerate(page.footnotes, start=1)]
    return ["", r"\par\smallskip\footnotesize\raggedright", " \\\\\n".join(notes), r"\par"] if notes else []


def _caption(page: Page) -> str:
    statements = list(page.caption)
    if page.ranked:
        statements.append("bold: best, underlined: second; controls in italics are left out of that")
    return " ".join(f"{latex(line[:1].upper() + line[1:])}." for line in statements)


def _header(page: Page) -> list[str]:
    at = len(page.heads) + 1
    groups, rules, names = [], [], list(map(latex, page.heads))
    for column in page.columns:
        span = len(column.values)
        groups.append(rf"\multicolumn{{{span}}}{{c}}{{{latex(column.name)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
        names += [latex(value.header) for value in column.values]
        at += span
    return [" & ".join([""] * len(page.heads) + groups).strip() + r" \\", " ".join(rules), " & ".join(names) + r" \\"]


def _body(rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    before: Row | None = None
    for row in rows:
        if before is not None and row.block != before.block:
            lines.append(r"\midrule")
        elif before is not None and row.control and not before.control:
            lines.append(r"\addlinespace")
        head = [latex(name) for name in row.head]
        if before is not None and len(head) > 1 and row.head[0] == before.head[0]:
            head[0] = ""
        if row.control:
            head[-1] = rf"\textit{{{head[-1]}}}"
        lines.append(" & ".join([*head, *map(_field, row.entries)]) + r" \\")
        before = row
    return lines


def _field(entry: Entry) -> str:
    shown = _shown(entry.text)
    shown = {BEST: rf"\textbf{{{shown}}}", SECOND: rf"\underline{{{shown}}}"}.get(entry.rank, shown)
    marks = ",".join(map(str, entry.notes))
    return shown + (rf"\textsuperscript{{{marks}}}" if marks else "")


def _shown(field: str) -> str:
    return "--" if field == ABSENT else latex(field)


def _claims(page: Page) -> list[str]:
    if page.judged is None:
        return []
    if not page.judged:
        return ["", latex(unjudged(page))]
    fields = [list(map(_shown, claim_fields(judged))) for judged in page.judged]
    # Lines of a narrow column are left ragged, after which only the long command ends a row.
    rows = [" & ".join([*known, rf"\raggedright {source}"]) + r" \tabularnewline" for *known, source in fields]
    columns = "".join(side[0] for side in claim_alignment(page)[:-1]) + SOURCE_WIDTH
    header = [" & ".join(map(latex, claim_headers(page))) + r" \\"]
    lines = [""]
    for begin in range(0, len(rows), MOST_CLAIMS):
        more = f"{latex(RULE[:1].upper() + RULE[1:])}." if begin == 0 else "Continued."
        said = f"Published numbers beside measurements: {latex(page.title)}. {more}"
        lines += _float(said, columns, header, rows[begin : begin + MOST_CLAIMS], [])
    return lines
