"""Fenced blocks of the documentation's pages, with the comment that stands before them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    page: str  # path below `docs`
    section: str  # heading above it
    language: str
    title: str  # the name of a file, or empty
    mark: str  # comment on the line before, or empty: `slow`, `not run: reason`
    text: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """Return every block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(DOCS).as_posix()
    result = []
    for match in _BLOCK.finditer(text):
        headings = re.findall(r"^## (.+)$", text[: match.start()], re.MULTILINE) or [""]
        title, mark = match["title"] or "", (match["mark"] or "").strip()
        result.append(Block(name, headings[-1], match["language"], title, mark, match["text"]))
    return result


def write_files(page: Iterable[Block], folder: Path) -> None:
    """Write the blocks that have a file name as title, and an evaluation set beside each `targets.toml`."""
    for block in page:
        if "." in block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            if path.name == "targets.toml":
                np.savez(path.with_name("test.npz"), x=np.zeros((4, 32, 32, 3), np.uint8), y=np.array([0, 1, 0, 1]))
