"""Claims: numbers printed in papers, each with where it was read. They live once, in `published.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from dfqbench.api.errors import InputError

Selection = Literal["best", "unknown"]
"""`best`: the source says that the best epoch on the test set is printed; `unknown`: it does not say."""

_BEST = "best test epoch"


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

    @property
    def drop(self) -> float | None:
        """Full precision minus top-1 in percentage points, or None where full precision is not printed."""
        return None if self.fp_top1 is None else self.fp_top1 - self.top1


def published_claims() -> list[Claim]:
    """Every claim of the data file, in its order.

    Raises:
        ValueError: the file is damaged.
    """
    text = resources.files("dfqbench.report").joinpath("published.csv").read_text(encoding="utf-8")
    return [_claim(row) for row in csv.DictReader(text.splitlines())]


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
