"""Times printed in papers, each with where it was read. They live once, in `published_times.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources

from dfqbench.report.literature.names import method_key


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
        """The method's name here; empty: not implemented here."""
        return method_key(self.method)[0]


@cache
def published_times() -> tuple[PublishedTime, ...]:
    """Return every printed time of the data file, in its order."""
    file = resources.files("dfqbench.report.literature").joinpath("published_times.csv")
    names = [field.name for field in fields(PublishedTime)]
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return tuple(PublishedTime(**{name: row[name] for name in names}) for row in rows)
