"""Fenced blocks of the documentation's pages, with the comment that stands before them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        page: the page's path below `docs`.
        section: heading that it stands under.
        language: as written.
        title: as written; the name of a file, or empty.
        mark: comment on the line before, or empty: `slow`, `not run: reason`.
        text: content.
    """

    page: str
    section: str
    language: str
    title: str
    mark: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Every block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        headings = re.findall(r"^## (.+)$", text[: match.start()], re.MULTILINE)
        found.append(
            Block(
                page.relative_to(DOCS).as_posix(),
                headings[-1] if headings else "",
                match["language"],
                match["title"] or "",
                (match["mark"] or "").strip(),
                match["text"],
            )
        )
    return found


def pages() -> list[Path]:
    """Every page."""
    return sorted(DOCS.rglob("*.md"))
