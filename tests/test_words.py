"""No private language: words that a reader would have to translate stay out of code and documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FORBIDDEN = re.compile(
    r"\b(nobody|whoever|likewise|as ever|within it|(is|are) told|listens|woven|unheard|tally|ceiling|noise floor)\b",
    re.IGNORECASE,
)
FOLDERS = ("benchmark", "methods", "tests", "docs", "results/reference", "tools")
SUFFIXES = {".py", ".pyi", ".md", ".toml", ".jinja", ".html", ".css", ".js"}


def texts() -> Iterator[Path]:
    yield from (file for file in ROOT.iterdir() if file.suffix in SUFFIXES)
    for folder in FOLDERS:
        yield from (file for file in (ROOT / folder).rglob("*") if file.suffix in SUFFIXES)


def test_texts_use_no_forbidden_word() -> None:
    files = [file for file in texts() if file != Path(__file__)]
    assert len(files) > 300
    lines = ((file, *entry) for file in files for entry in enumerate(file.read_text("utf-8").splitlines(), 1))
    assert [f"{file}:{number}: {line.strip()}" for file, number, line in lines if FORBIDDEN.search(line)] == []


def test_the_expression_matches_words_across_case() -> None:
    assert FORBIDDEN.search("As ever, a hook is told of it")
    assert FORBIDDEN.search("noise (ceiling)")
    assert not FORBIDDEN.search("totally metallic")
