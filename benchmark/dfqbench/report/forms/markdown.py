"""Pages as Markdown."""

from __future__ import annotations

from dfqbench.report.escape import markdown
from dfqbench.report.forms.claims import RULE, claim_alignment, claim_fields, claim_headers, unjudged
from dfqbench.report.page import BEST, SECOND, Entry, Page, Row


def markdown_page(page: Page) -> str:
    """The page as Markdown: best in bold, second underlined, controls in italics."""
    from tabulate import tabulate

    headers = list(page.heads)
    for column in page.columns:
        first, *rest = column.values
        headers += [f"{markdown(column.name)}<br>{first.header}", *(value.header for value in rest)]
    body = [[*_head(row), *map(_field, row.entries)] for row in page.rows]
    aligned = ("left",) * len(page.heads) + ("right",) * (len(headers) - len(page.heads))
    table = tabulate(body, headers, tablefmt="pipe", colalign=aligned, disable_numparse=True)
    notes = [f"{number}. {markdown(note)}" for number, note in enumerate(page.footnotes, start=1)]
    lines = [f"### {markdown(page.title)}", "", table, ""]
    if notes:
        lines += ["Notes, by the number in brackets:", "", *notes, ""]
    statements = list(page.caption)
    if page.ranked:
        statements.append("bold: best of its column and scheme; underlined: second; controls in italics are left out")
    return "\n".join([*lines, *(f"* {markdown(line)}" for line in statements), *_claims(page)])


def _head(row: Row) -> list[str]:
    names = [markdown(name) for name in row.head]
    return [*names[:-1], f"_{names[-1]}_"] if row.control else names


def _field(entry: Entry) -> str:
    shown = markdown(entry.text)
    shown = {BEST: f"**{shown}**", SECOND: f"<u>{shown}</u>"}.get(entry.rank, shown)
    return shown + "".join(f" [{number}]" for number in entry.notes)


def _claims(page: Page) -> list[str]:
    if page.judged is None:
        return []
    from tabulate import tabulate

    if not page.judged:
        return ["", markdown(unjudged(page))]
    rows = [[markdown(field) for field in claim_fields(judged)] for judged in page.judged]
    headers, aligned = claim_headers(page), claim_alignment(page)
    table = tabulate(rows, headers, tablefmt="pipe", colalign=aligned, disable_numparse=True)
    return ["", "Published numbers for these cells:", "", table, "", f"* {markdown(RULE)}"]
