"""Pages as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from dfqbench.report.forms.claims import RULE, claim_fields, claim_headers, unjudged
from dfqbench.report.page import Page
from dfqbench.report.templates import template


def html_pages(pages: Sequence[Page]) -> str:
    """A whole document with every page: best in bold, second underlined, controls set apart; no script."""
    return template("tables.html").render(pages=pages, **claims_in_html())


def claims_in_html() -> dict[str, object]:
    """What templates need for the claims beside measurements."""
    return {"claim_headers": claim_headers, "claim_fields": claim_fields, "unjudged": unjudged, "rule": RULE}
