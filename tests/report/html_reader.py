"""A reader of HTML documents: tables, sections, and everything that would run or reach outside."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "img", "input", "link", "hr"}
ACTIVE = {"script", "iframe", "object", "embed", "link", "base"}


class HtmlReader(HTMLParser):
    """What a document holds; its tags must close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []  # id or class, and rows
        self.sections: dict[str, list[tuple[str, str]]] = {}  # names and values of `details`, or a `dl`, by id
        self.active: list[str] = []
        self._open: list[str] = []
        self._section = ""
        self._text = ""
        self.feed(text)
        assert self._open == []

    @property
    def summary(self) -> list[list[str]]:
        """Rows of the summary, without its headers."""
        [rows] = [rows for name, rows in self.tables if name == "summary"]
        return rows[1:]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag in ACTIVE or any(key.startswith("on") for key in given):
            self.active.append(tag)
        for key in ("src", "href"):
            # A link that a person may follow loads nothing.
            harmless = ("#", "data:image/", *(["https://"] if tag == "a" else []))
            if not (given.get(key) or "#").startswith(harmless):
                self.active.append(f"{tag} {given[key]}")
        if tag == "table":
            self.tables.append((given.get("id") or given.get("class") or "", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag == "details" or (tag == "dl" and given.get("id")):
            self._section = given.get("id") or ""
            self.sections[self._section] = []
        elif tag in {"td", "th", "dt", "dd"}:
            self._text = ""

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in {"td", "th"}:
            self.tables[-1][1][-1].append(self._text.strip())
        elif tag == "dt":
            self.sections[self._section].append((self._text.strip(), ""))
        elif tag == "dd":
            self.sections[self._section][-1] = (self.sections[self._section][-1][0], self._text.strip())

    def handle_data(self, data: str) -> None:
        self._text += data
