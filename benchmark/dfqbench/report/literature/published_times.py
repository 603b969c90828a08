"""Times printed in papers, each with where it was read. They live once, in `published_times.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources

from dfqbench.report.literature.names import dataset_key, method_key, model_key


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


@cache
def published_times() -> tuple[PublishedTime, ...]:
    """Return every printed time of the data file, in its order."""
    file = resources.files("dfqbench.report.literature").joinpath("published_times.csv")
    names = [field.name for field in fields(PublishedTime)]
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return tuple(PublishedTime(**{name: row[name] for name in names}) for row in rows)


def select_times(
    times: Iterable[PublishedTime],
    *,
    method: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    bits: str | None = None,
) -> list[PublishedTime]:
    """Return the times that match every argument; a source that does not name network, data set or bits matches any.

    Args:
        times: to choose from.
        method: as printed or as named here, in any case.
        model: as printed or as named here.
        dataset: as printed or as the target is named here.
        bits: for example `w4a4`; a source names one width for both operands.
    """
    return [
        time
        for time in times
        if (method is None or method.lower() in {time.method.lower(), method_key(time.method)[0]})
        and (model is None or time.model in {"", "any"} or model_key(model) == model_key(time.model))
        and (dataset is None or not time.dataset or dataset_key(dataset) == dataset_key(time.dataset))
        and (bits is None or not time.bits or bits.lower() == f"w{time.bits}a{time.bits}")
    ]
