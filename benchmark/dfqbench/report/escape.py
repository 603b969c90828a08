"""Text that no format takes for markup."""

from __future__ import annotations

import re

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "…": r"\ldots{}",
}
_LATEX_PATTERN = re.compile("|".join(map(re.escape, _LATEX)))
_MINUS = re.compile(r"(?<![^\s(])-(?=\d)")
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def markdown(field: str) -> str:
    """Text in which Markdown sees no markup, no column and no line's end."""
    field = " ".join(_INVISIBLE.sub("", field).split())
    for character in "\\`*_|<>[]":
        field = field.replace(character, f"\\{character}")
    return field


def latex(field: str) -> str:
    """Text in which LaTeX sees no command, with lines' ends as spaces."""
    escaped = _LATEX_PATTERN.sub(lambda found: _LATEX[found[0]], " ".join(_INVISIBLE.sub("", field).split()))
    return _MINUS.sub("$-$", escaped)
