"""Accuracies and times printed in papers (`published.csv`, `published_times.csv`), with sources and protocols."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, TypeVar

from dfqbench.api.errors import InputError
from dfqbench.grid.choice import NO_IMAGES
from dfqbench.report.literature.names import dataset_key, method_key, model_key
from dfqbench.report.literature.protocol_facts import BEST, KINDS, ProtocolFacts, parse_protocols

Selection = Literal["best", "last", "unknown"]
"""`best`: the best epoch on the test set is printed; `unknown`: the source does not say."""
FAMILY_PROTOCOL = "gdfq"  # protocol of a number whose source names no other operands: that of the ZeroQ/GDFQ family
_SECOND_HAND = re.compile("second-hand|secondary|note|issue|third party|fork")  # of one that quotes or re-runs others


QUOTED = " (second-hand)"
QUOTED_NOTE = "quoted from a reading note, not checked against the paper"


@dataclass(frozen=True, slots=True)
class PublishedNumber:
    """One printed accuracy."""

    paper: str  # whose method it is
    reported_in: str  # where the number was printed; not always the method's own paper
    place: str  # table or figure
    method: str  # as printed, like dataset and model
    dataset: str
    model: str
    w_bits: int  # of the weights
    a_bits: int | None  # of the activations; None: the source does not say
    fp_top1: float | None  # full-precision top-1 of the same table in percent
    top1: float  # in percent
    notes: str  # about this number
    stated: ProtocolFacts = field(default_factory=ProtocolFacts)  # what its source states about the protocol
    plugin_method: str = ""  # name of the plugin's method that it is about; empty: none, or one of the host's

    @property
    def drop(self) -> float | None:
        """Full precision minus top-1 in percentage points, or None where full precision is not printed."""
        return None if self.fp_top1 is None else round(self.fp_top1 - self.top1, 4)

    @property
    def implemented(self) -> str:
        """The method's name here with its quantizer's, for example `zeroq+distill`; empty: not implemented here.

        A plugin's method has its name alone: its own quantizer is meant.
        """
        method = method_key(self.method)[0]
        return f"{method}+{self.quantizer}" if method else self.plugin_method

    @property
    def recipe(self) -> str:
        """The recipe that the source states, else the kind that the method's authors use; empty: neither is known."""
        return self.stated.recipe or method_key(self.method)[1]

    @property
    def quantizer(self) -> str:
        """Name of that recipe's quantizer here; empty: none, or a plugin's method, whose own is meant."""
        return KINDS[self.kind][1] if self.kind else ""

    @property
    def kind(self) -> str:
        """Kind of that recipe, for example `fine-tune`; empty: not known."""
        return self.recipe.partition(" as ")[0]

    @property
    def selection(self) -> Selection:
        """Which state of a training is printed."""
        return "best" if self.stated.selection == BEST else "last" if self.stated.selection else "unknown"

    @property
    def protocol(self) -> str:
        """`gdfq` unless the source states something that the family's quantizer does otherwise: `other`."""
        return FAMILY_PROTOCOL if self.stated.of_family else "other"

    @property
    def bits(self) -> str:
        """For example `w4a4`; `w3a?` where the source does not give the activations' width."""
        return f"w{self.w_bits}a{'?' if self.a_bits is None else self.a_bits}"

    @property
    def source(self) -> str:
        """Where the number was read, in one line."""
        return f"{self.reported_in}, {self.place}" if self.place else self.reported_in

    @property
    def reference(self) -> str:
        """Authors, title and venue of the source; empty: a plugin's."""
        return reference(self.reported_in)

    @property
    def source_rank(self) -> int:
        """0: printed by its authors; 1: printed by others; 2: quoted from notes, issues or re-runs."""
        source = self.reported_in.lower()
        if _SECOND_HAND.search(source):
            return 2
        return 0 if source.startswith(f"{self.method.lower()} ") else 1


@cache
def _references() -> dict[str, str]:
    """Return authors, title, venue and address of each work, by the name under which it is cited."""
    references = {}
    for row in csv.DictReader(_data_file("sources.csv").splitlines()):
        details = "; ".join(filter(None, (row["how"], row["address"])))
        work = f"{row['authors']}, {row['title']}, {row['venue']}"
        references[row["source"]] = f"{work} ({details})" if details else work
    return references


def reference(source: str) -> str:
    """Return the full reference of a source as it is cited; empty: a plugin's."""
    name = source.partition(", ")[0]
    work = _references().get(name.removesuffix(QUOTED), "")
    return f"{work}: {QUOTED_NOTE}" if work and name.endswith(QUOTED) else work


def reference_lines(sources: Iterable[str]) -> list[str]:
    """Return a line for each source whose reference is known, without duplicates."""
    names = dict.fromkeys(source.partition(", ")[0] for source in sources)
    return [f"{name}: {work}" for name in sorted(names, key=str.lower) if (work := reference(name))]


def _data_file(name: str) -> str:
    return resources.files("dfqbench.report.literature").joinpath(name).read_text(encoding="utf-8")


@cache
def published_numbers() -> tuple[PublishedNumber, ...]:
    """Return every number of the data file with what `protocols.csv` says about it, in its order.

    Raises:
        ValueError: a file is damaged.
    """
    stated = parse_protocols(_data_file("protocols.csv"))
    return _parsed(
        _data_file("published.csv"), lambda row: stated(row["reported_in"], row["table_or_where"], row["method"])
    )


def read_numbers(path: Path) -> tuple[PublishedNumber, ...]:
    """Read the numbers of a plugin's CSV file.

    Columns are those of the host's `published.csv`; those of `protocols.csv` from `weights` on may follow.

    Raises:
        InputError: it cannot be read, lacks a column, or a field holds no number or an unknown word.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"), _stated_in_row)
    except KeyError as error:
        hint = "take the first line of report/literature/published.csv"
        raise InputError(f"{path} lacks the column {error}", hint) from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} does not hold claims: {error}", "correct that row") from error


def _stated_in_row(row: dict[str, str]) -> ProtocolFacts:
    facts = ProtocolFacts.from_row(row)
    best = not facts.selection and BEST in row["notes"]
    return dataclasses.replace(facts, selection=BEST) if best else facts


def _parsed(text: str, stated: Callable[[dict[str, str]], ProtocolFacts]) -> tuple[PublishedNumber, ...]:
    numbers, reader = [], csv.DictReader(text.splitlines())
    for row in reader:
        if None in row.values():
            raise ValueError(f"line {reader.line_num}: fields are missing")
        try:
            numbers.append(dataclasses.replace(_number(row), stated=stated(row)))
        except ValueError as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    return tuple(numbers)


def _number(row: dict[str, str]) -> PublishedNumber:
    return PublishedNumber(
        paper=row["source_paper"],
        place=row["table_or_where"],
        reported_in=row["reported_in"],
        method=row["method"],
        dataset=row["dataset"],
        model=row["model"],
        notes=row["notes"],
        w_bits=int(row["w_bits"]),
        a_bits=int(row["a_bits"]) if row["a_bits"] else None,
        fp_top1=float(row["fp_top1"]) if row["fp_top1"] else None,
        top1=float(row["top1"]),
    )


def disagreements(numbers: Iterable[PublishedNumber], least: float = 0.1) -> list[list[PublishedNumber]]:
    """Return cells (method, data set, network, bits, as printed, kind of recipe) with different numbers.

    Args:
        numbers: to search.
        least: smallest spread in percentage points; what rounding may do is left out.

    Returns:
        All numbers about each of these cells, lowest first; cells with the largest spread first.
    """
    cells: dict[tuple[str, ...], list[PublishedNumber]] = defaultdict(list)
    for number in numbers:
        cells[number.method, number.dataset, number.model, number.bits, number.kind].append(number)
    rising = [sorted(cell, key=lambda number: number.top1) for cell in cells.values()]
    return sorted((cell for cell in rising if spread(cell) >= least), key=spread, reverse=True)


def spread(cell: list[PublishedNumber]) -> float:
    """Return the highest minus the lowest of numbers in rising order, in percentage points."""
    return cell[-1].top1 - cell[0].top1


@dataclass(frozen=True, slots=True)
class PublishedTime:
    """One printed time or ratio. Every field is as printed; empty where the source does not say."""

    method: str
    model: str
    dataset: str
    bits: str  # width of weights and activations
    quantity: str  # what was timed
    value: str  # number, range or bound
    unit: str
    hardware: str
    source: str  # where it was read
    notes: str

    @property
    def implemented(self) -> str:
        """The method's name here, with the quantizer's where there are no images; empty: not implemented here."""
        method, kind = method_key(self.method)
        return f"{method}+{KINDS[kind][1]}" if method == NO_IMAGES else method


@cache
def published_times() -> tuple[PublishedTime, ...]:
    """Return every printed time of the data file, in its order."""
    names = [field.name for field in fields(PublishedTime)]
    rows = csv.DictReader(_data_file("published_times.csv").splitlines())
    return tuple(PublishedTime(**{name: row[name] for name in names}) for row in rows)


Published = TypeVar("Published", PublishedNumber, PublishedTime)


def names(entry: PublishedNumber | PublishedTime) -> set[str]:
    """Return the names by which `select` knows a method: as printed, in lower case, and as named here."""
    return {entry.method.lower(), entry.implemented, entry.implemented.partition("+")[0]} - {""}


def select(
    entries: Iterable[Published],
    *,
    method: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    bits: str | None = None,
) -> list[Published]:
    """Return the entries that match every argument; a time without network, data set or bits matches any.

    Args:
        entries: to choose from.
        method: as printed or as named here, with or without the quantizer, in any case.
        model: as printed or as named here, for example `resnet18` or `torchvision:resnet18`.
        dataset: as printed or as the target is named here.
        bits: for example `w4a4`; the source of a time names one width for both operands.
    """
    return [
        entry
        for entry in entries
        if (method is None or method.lower() in names(entry))
        and (model is None or entry.model in {"", "any"} or model_key(model) == model_key(entry.model))
        and (dataset is None or not entry.dataset or dataset_key(dataset) == dataset_key(entry.dataset))
        and (bits is None or not entry.bits or bits.lower() in {entry.bits, f"w{entry.bits}a{entry.bits}"})
    ]
