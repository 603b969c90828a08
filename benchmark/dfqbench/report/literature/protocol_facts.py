"""What a source states about the protocol of a table (`protocols.csv`), in words."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

BEST = "best test epoch"
AS_OTHERS = "k"
FAMILY = ("after activations", AS_OTHERS)
"""Operands, first and last layer of the ZeroQ/GDFQ family: `@gdfq`."""
KINDS = {
    "calibrate": ("calibrated", "calibrate"),
    "fine-tune": ("fine-tuned", "distill"),
    "reconstruct": ("reconstructed", "reconstruct"),
    "squant": ("weights rounded by SQuant", "squant"),
    "dfq": ("weights equalized by DFQ", "dfq"),
    "rex": ("weights expanded by REx", "rex"),
    "correct": ("weights corrected", ""),
}
"""Kind of a recipe: in words, and the quantizer's name here (empty: none)."""
_ALLOWED = {"selection": ("", BEST, "last"), "how": ("", "released code", "paper", "inferred", "second-hand")}


@dataclass(frozen=True, slots=True)
class ProtocolFacts:
    """How a number came about: a printed one, or a run's. Empty fields are not stated."""

    weights: str = ""  # whose: a library, or a paper
    operands: str = ""  # activations that are quantized: `after activations`, `layer inputs` or other words
    first_last: str = ""  # bits of the first and last layer: a number, `k` as the other layers, or words
    ranges: str = ""  # range rule of activations
    recipe: str = ""  # a kind of `KINDS`, and optionally whose: `fine-tune as IntraQ`
    images: str = ""  # number that the quantizer saw
    selection: str = ""  # which state of a training: `best test epoch` or `last`
    other: str = ""  # what else was done otherwise
    how: str = ""  # what was read: `released code`, `paper`, `inferred` or `second-hand`

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} '{getattr(self, name)}' is none of {', '.join(filter(None, allowed))}")
        if self.recipe and self.recipe.partition(" as ")[0] not in KINDS:
            raise ValueError(f"recipe '{self.recipe}' is none of {', '.join(KINDS)}, each with or without ' as NAME'")
        if self.images and not (self.images.isascii() and self.images.isdecimal()):
            raise ValueError(f"images '{self.images}' is no number")

    @classmethod
    def from_row(cls, row: Mapping[str, str | None]) -> ProtocolFacts:
        """Read the fields that a row of a CSV file has.

        Raises:
            ValueError: a field holds a word that is not known.
        """
        return cls(**{name: (row.get(name) or "").strip() for name in FACTS})

    @property
    def of_family(self) -> bool:
        """Whether nothing is stated that the family's quantizer does otherwise."""
        first = self.operands in ("", FAMILY[0])
        return first and self.first_last in ("", AS_OTHERS) and not self.other

    @property
    def words(self) -> str:
        """Everything that is stated, for example `@gdfq, fine-tuned as IntraQ`; empty: nothing is."""
        phrases = {name: phrase(name, getattr(self, name)) for name in _ORDER}
        if (self.operands, self.first_last) == FAMILY:
            phrases |= {"operands": "@gdfq", "first_last": ""}
        return self.marked(phrases.values())

    def marked(self, phrases: Iterable[str]) -> str:
        """Return phrases in one line, with a mark where what they say was inferred; empty: there is none."""
        line = ", ".join(filter(None, phrases))
        return f"{line} (inferred)" if line and self.how == "inferred" else line

    @property
    def not_stated(self) -> list[str]:
        """Names of the facts that are not stated."""
        return [_TITLES[name] for name in _TITLES if not getattr(self, name)]


FACTS = tuple(field.name for field in fields(ProtocolFacts))
_TITLES = {
    "operands": "operands",
    "first_last": "first and last layer",
    "ranges": "range rule",
    "recipe": "recipe",
    "images": "number of images",
    "selection": "epoch",
    "weights": "weights",
}
_ORDER = ("operands", "first_last", "other", *(name for name in _TITLES if name not in ("operands", "first_last")))
_ENDS = {AS_OTHERS: "first and last layer as the others"}
_PHRASES: Mapping[str, Callable[[str], str]] = {
    "weights": "{} weights".format,
    "ranges": "{} ranges".format,
    "images": lambda value: f"{int(value):,} images",
    "first_last": lambda value: (
        _ENDS.get(value) or (f"{value}-bit first and last layer" if value.isdecimal() else value)
    ),
    "recipe": lambda value: value.replace(kind := value.partition(" as ")[0], KINDS[kind][0], 1),
}


def phrase(name: str, value: str) -> str:
    """Return a fact in words, for example `5,120 images`; empty where it is not stated."""
    return _PHRASES.get(name, str)(value) if value else ""


def parse_protocols(text: str) -> Callable[[str, str, str], ProtocolFacts]:
    """Read a file of protocols; return the look-up of what is stated by source, place and printed method.

    A row holds for the tables of its source: for one place where it names one, and for the methods that match one of
    its shell-style patterns, separated by `;`, where it has any. The last row that holds counts, as a whole.

    Raises:
        ValueError: a column is missing, or a row has too few or too many fields, no source, or an unknown word.
    """
    rows: dict[str, list[tuple[str, str, ProtocolFacts]]] = defaultdict(list)
    reader = csv.DictReader(text.splitlines())
    for name in ("source", "place", "method", *FACTS):
        if name not in (reader.fieldnames or ()):
            raise ValueError(f"protocols lack the column '{name}'")
    for row in reader:
        if None in row or None in row.values() or not row["source"]:
            raise ValueError(f"line {reader.line_num} of the protocols has missing or superfluous fields")
        try:
            facts = ProtocolFacts.from_row(row)
        except ValueError as error:
            raise ValueError(f"line {reader.line_num} of the protocols: {error}") from error
        rows[row["source"]].append((row["place"], row["method"], facts))

    def stated(source: str, place: str, method: str) -> ProtocolFacts:
        for at, patterns, facts in reversed(rows.get(source, ())):
            if at in ("", place) and (not patterns or _matches(method, patterns.split(";"))):
                return facts
        return ProtocolFacts()

    return stated


def _matches(method: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(method, pattern) for pattern in patterns)
