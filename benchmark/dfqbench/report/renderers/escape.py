"""Escaping: text that Markdown and LaTeX do not read as markup."""

from __future__ import annotations

import re
import unicodedata

_MATH = {"−": "-", "²": "^2", "°": r"^\circ", "λ": r"\lambda", "µ": r"\mu", "Δ": r"\Delta", "Σ": r"\Sigma"}
_MATH |= dict(zip("±×·≤≥√→", (r"\pm", r"\times", r"\cdot", r"\leq", r"\geq", r"\surd", r"\rightarrow"), strict=True))
_MATH |= {
    unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}"): rf"\{name}"
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "mu", "rho", "sigma", "tau")
}
_LATEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # Two would become a dash, and an option another word.
    "--": "-{}-",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "…": r"\ldots{}",
    "\xa0": "~",
    **dict(zip("–—“”‘’", ("--", "---", "``", "''", "`", "'"), strict=True)),
    **dict(zip("ßæøœÆØŒ", (r"\ss{}", r"\ae{}", r"\o{}", r"\oe{}", r"\AE{}", r"\O{}", r"\OE{}"), strict=True)),
    **{character: f"${command}$" for character, command in _MATH.items()},
}
_LATEX_PATTERN = re.compile("|".join([*map(re.escape, sorted(_LATEX, key=len, reverse=True)), r"[^\x00-\x7f]"]))
_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0308": '"', "\u030c": "v"}
_ACCENTS |= {"\u030a": "r", "\u0327": "c", "\u0306": "u", "\u030b": "H", "\u0307": "."}
"""Combining marks that every font encoding of LaTeX has, and its commands for them."""
_MINUS = re.compile(r"(?<![^\s(])-(?=\d)")
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def markdown(text: str) -> str:
    """Return text without markup, columns or line ends of Markdown."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(_INVISIBLE.sub("", text).split()))


def latex(text: str) -> str:
    """Return text without LaTeX commands, line ends as spaces; in ASCII, so that any engine compiles it.

    A character that plain LaTeX has no command for is named by its number, as `[U+4F60]`.
    """
    plain = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    escaped = _LATEX_PATTERN.sub(lambda match: _in_latex(match[0]), " ".join(plain.split()))
    return _MINUS.sub("$-$", escaped)


def _in_latex(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    letter, *marks = list(unicodedata.normalize("NFD", character))
    accent = _ACCENTS.get(marks[0]) if len(marks) == 1 and letter.isascii() and letter.isalpha() else None
    if accent is None:
        return f"[U+{ord(character):04X}]"
    # The dot of an i would stand beside its accent.
    return rf"\{accent}{{{letter.replace('i', chr(92) + 'i')}}}"
