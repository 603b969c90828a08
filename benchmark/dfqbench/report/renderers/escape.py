"""Text that no format takes for markup."""

from __future__ import annotations

import re
import unicodedata

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
    "|": r"\textbar{}",
    # Two would become a dash, and an option another word.
    "--": "-{}-",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "√": r"$\surd$",
    "²": r"$^2$",
    "°": r"$^\circ$",
    "→": r"$\rightarrow$",
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "\xa0": "~",
    **dict(zip("ßæøœÆØŒ", (r"\ss{}", r"\ae{}", r"\o{}", r"\oe{}", r"\AE{}", r"\O{}", r"\OE{}"), strict=True)),
    **{
        unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}"): rf"$\{name}$"
        for name in ("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "mu", "rho", "sigma", "tau")
    },
    "λ": r"$\lambda$",
    "µ": r"$\mu$",
    "Δ": r"$\Delta$",
    "Σ": r"$\Sigma$",
}
_LATEX_PATTERN = re.compile("|".join([*map(re.escape, sorted(_LATEX, key=len, reverse=True)), r"[^\x00-\x7f]"]))
_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0308": '"', "\u030c": "v"}
_ACCENTS |= {"\u030a": "r", "\u0327": "c", "\u0306": "u", "\u030b": "H", "\u0307": "."}
"""Combining marks that every font encoding of LaTeX has, and its commands for them."""
_MINUS = re.compile(r"(?<![^\s(])-(?=\d)")
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def markdown(field: str) -> str:
    """Text in which Markdown sees no markup, no column and no line's end."""
    field = " ".join(_INVISIBLE.sub("", field).split())
    for character in "\\`*_|<>[]":
        field = field.replace(character, f"\\{character}")
    return field


def latex(field: str) -> str:
    """Text in which LaTeX sees no command, with lines' ends as spaces; in ASCII, so that any engine compiles it.

    A character that plain LaTeX has no command for is named by its number, as `[U+4F60]`.
    """
    plain = unicodedata.normalize("NFC", _INVISIBLE.sub("", field))
    escaped = _LATEX_PATTERN.sub(lambda found: _in_latex(found[0]), " ".join(plain.split()))
    return _MINUS.sub("$-$", escaped)


def _in_latex(character: str) -> str:
    known = _LATEX.get(character)
    if known is not None:
        return known
    letter, *marks = list(unicodedata.normalize("NFD", character))
    accent = _ACCENTS.get(marks[0]) if len(marks) == 1 and letter.isascii() and letter.isalpha() else None
    if accent is None:
        return f"[U+{ord(character):04X}]"
    # The dot of an i would stand beside its accent.
    return rf"\{accent}{{{letter.replace('i', chr(92) + 'i')}}}"
