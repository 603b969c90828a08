"""Pages as LaTeX, for booktabs."""

from __future__ import annotations

from dfqbench.report.escape import latex
from dfqbench.report.forms.claims import CLAIM_HEADERS, claim_fields, unjudged
from dfqbench.report.page import BEST, SECOND, Entry, Page, Row

PREAMBLE = "% \\usepackage{booktabs}"


def latex_page(page: Page) -> str:
    """The page as a floating table: best in bold, second underlined, controls in italics after a gap."""
    width = sum(len(column.values) for column in page.columns)
    lines = [
        PREAMBLE,
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(page.title)}. {_caption(page)}}}",
        rf"\begin{{tabular}}{{{'l' * len(page.heads)}{'r' * width}}}",
        r"\toprule",
        *_header(page),
        r"\midrule",
        *_body(page),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if page.footnotes:
        notes = [rf"\textsuperscript{{{number}}}\,{latex(note)}" for number, note in enumerate(page.footnotes, start=1)]
        lines += ["", r"\par\smallskip\footnotesize\raggedright", " \\\\\n".join(notes)]
    return "\n".join([*lines, r"\end{table}", *_claims(page)])


def _caption(page: Page) -> str:
    statements = list(page.caption)
    if any(entry.rank for row in page.rows for entry in row.entries):
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


def _body(page: Page) -> list[str]:
    lines: list[str] = []
    before: Row | None = None
    for row in page.rows:
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
    shown = latex(entry.text)
    shown = {BEST: rf"\textbf{{{shown}}}", SECOND: rf"\underline{{{shown}}}"}.get(entry.rank, shown)
    marks = ",".join(map(str, entry.notes))
    return shown + (rf"\textsuperscript{{{marks}}}" if marks else "")


def _claims(page: Page) -> list[str]:
    if page.judged is None:
        return []
    if not page.judged:
        return ["", latex(unjudged(page))]
    rows = [" & ".join(map(latex, claim_fields(judged))) + r" \\" for judged in page.judged]
    return [
        "",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{Published numbers beside measurements: {latex(page.title)}.}}",
        rf"\begin{{tabular}}{{{'l' * len(page.heads)}lrrrll}}",
        r"\toprule",
        " & ".join(map(latex, (*page.heads, *CLAIM_HEADERS))) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
