"""Claims: numbers printed in papers, each with where it was read. They live once, in `published.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from dfqbench.api.errors import InputError
from dfqbench.report.published import FAMILY_PROTOCOL, OTHER_PROTOCOL_WORDS, dataset_key, method_key, model_key

Selection = Literal["best", "unknown"]
"""`best`: the source says that the best epoch on the test set is printed; `unknown`: it does not say."""

_BEST = "best test epoch"
OWN_SOURCE_WORDS = ("readme", "abstract")
"""Words in `reported_in` of a source that is the authors' own."""
SECOND_HAND_WORDS = ("secondary", "note", "issue", "third party", "fork")
"""Words in `reported_in` of a source that quotes or re-runs others."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One printed accuracy.

    Attributes:
        paper: whose method it is.
        reported_in: where the number was printed; not always the method's own paper.
        place: table or figure.
        method: method as printed.
        dataset: data set as printed.
        model: network as printed.
        w_bits: bits of the weights.
        a_bits: bits of the activations, or None where the source does not say.
        fp_top1: full-precision top-1 of the same table in percent, or None.
        top1: top-1 in percent.
        selection: which epoch is printed.
        notes: protocol notes of the source, or empty.
        offered: name of the plugin's method that it is about; empty: none, or one of the host's.
    """

    paper: str
    reported_in: str
    place: str
    method: str
    dataset: str
    model: str
    w_bits: int
    a_bits: int | None
    fp_top1: float | None
    top1: float
    selection: Selection
    notes: str
    offered: str = ""

    @property
    def drop(self) -> float | None:
        """Full precision minus top-1 in percentage points, or None where full precision is not printed."""
        return None if self.fp_top1 is None else self.fp_top1 - self.top1

    @property
    def implemented(self) -> str:
        """The method's name here with its quantizer's, for example `zeroq+distill`; empty: not implemented here.

        A plugin's method has its name alone: its own quantizer is meant.
        """
        method, quantizer = method_key(self.method, self.notes)
        return f"{method}+{quantizer}" if method else self.offered

    @property
    def protocol(self) -> str:
        """`gdfq` for the family's quantizer, else `other`: the source names other operands or other widths."""
        notes = self.notes.lower()
        return "other" if any(word in notes for word in OTHER_PROTOCOL_WORDS) else FAMILY_PROTOCOL

    @property
    def bits(self) -> str:
        """For example `w4a4`; `w3a?` where the source does not tell the activations' width."""
        return f"w{self.w_bits}a{'?' if self.a_bits is None else self.a_bits}"

    @property
    def source(self) -> str:
        """Where the number was read, in one line."""
        return f"{self.reported_in}, {self.place}" if self.place else self.reported_in

    @property
    def distance(self) -> int:
        """0: printed by its authors; 1: printed by others; 2: quoted from notes, issues or re-runs."""
        where = self.reported_in.lower()
        if any(word in where for word in SECOND_HAND_WORDS):
            return 2
        return 0 if any(word in where for word in OWN_SOURCE_WORDS) and self.method.lower() in where else 1


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One cell for which sources print different numbers.

    Attributes:
        claims: all of them, lowest first.
    """

    claims: tuple[Claim, ...]

    @property
    def spread(self) -> float:
        """Highest minus lowest, in percentage points."""
        return self.claims[-1].top1 - self.claims[0].top1


@cache
def published_claims() -> tuple[Claim, ...]:
    """Every claim of the data file, in its order.

    Raises:
        ValueError: the file is damaged.
    """
    text = resources.files("dfqbench.report").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(_claim(row) for row in csv.DictReader(text.splitlines()))


def disagreements(claims: Iterable[Claim], least: float = 0.1) -> list[Disagreement]:
    """Cells (method, data set, network, bits, as printed) with different numbers, largest spread first.

    Args:
        claims: to look through.
        least: smallest spread in percentage points that is told; what rounding may do is left out.
    """
    cells: dict[tuple[str, str, str, str], list[Claim]] = {}
    for claim in claims:
        cells.setdefault((claim.method, claim.dataset, claim.model, claim.bits), []).append(claim)
    found = [Disagreement(tuple(sorted(cell, key=lambda claim: claim.top1))) for cell in cells.values()]
    return sorted((entry for entry in found if entry.spread >= least), key=lambda entry: -entry.spread)


def select_claims(
    claims: Iterable[Claim],
    *,
    method: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    bits: str | None = None,
) -> list[Claim]:
    """Claims that match everything that is given.

    Args:
        claims: to choose from.
        method: as printed or as named here, in any case.
        model: as printed or as named here, for example `resnet18` or `torchvision:resnet18`.
        dataset: as printed or as the target is named here.
        bits: for example `w4a4`.
    """
    return [
        claim
        for claim in claims
        if (method is None or method.lower() in {claim.method.lower(), claim.implemented.partition("+")[0]})
        and (model is None or model_key(model) == model_key(claim.model))
        and (dataset is None or dataset_key(dataset) == dataset_key(claim.dataset))
        and (bits is None or bits.lower() == claim.bits)
    ]


def _claim(row: dict[str, str]) -> Claim:
    return Claim(
        paper=row["source_paper"],
        reported_in=row["reported_in"],
        place=row["table_or_where"],
        method=row["method"],
        dataset=row["dataset"],
        model=row["model"],
        w_bits=int(row["w_bits"]),
        a_bits=int(row["a_bits"]) if row["a_bits"] else None,
        fp_top1=float(row["fp_top1"]) if row["fp_top1"] else None,
        top1=float(row["top1"]),
        selection="best" if _BEST in row["notes"] else "unknown",
        notes=row["notes"],
    )


def claims_in(path: Path) -> list[Claim]:
    """The claims of a file that a plugin brings along; columns as in the host's own.

    Args:
        path: a CSV file.

    Raises:
        InputError: it cannot be read, lacks a column, or a number in it is none.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return [_claim(row) for row in rows]
    except KeyError as error:
        raise InputError(f"{path} lacks the column {error}", "take the first line of report/published.csv") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not hold claims: {error}", "correct that row") from error
