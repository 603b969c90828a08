"""Index of published numbers, the host's own and those of plugins, by the cell that they are about."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from dfqbench.api.errors import DfqError
from dfqbench.grid.choice import NO_IMAGES
from dfqbench.report.literature.names import dataset_key, model_key
from dfqbench.report.literature.published import PublishedNumber, published_numbers, read_numbers
from dfqbench.run.store.record import Record

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins


class PublicationIndex:
    """Published numbers by cell."""

    def __init__(self, numbers: Iterable[PublishedNumber]) -> None:
        self.numbers = tuple(numbers)
        self._cells: dict[tuple[str, ...], list[PublishedNumber]] = defaultdict(list)
        self._full_precision: dict[tuple[str, str], list[float]] = defaultdict(list)
        for number in self.numbers:
            dataset, model = dataset_key(number.dataset), model_key(number.model)
            method, _, quantizer = number.implemented.partition("+")
            if method:
                self._cells[_method(method, quantizer), dataset, model, number.bits].append(number)
            if number.fp_top1 is not None:
                self._full_precision[dataset, model].append(number.fp_top1)

    def about(self, record: Record) -> list[PublishedNumber]:
        """Return numbers about the record's method, data set, network and bits."""
        model = model_key(record.model.name or record.model.ref or "")
        bits = f"w{record.scheme.w_bits or 0}a{record.scheme.a_bits or 0}"
        method = _method(record.method, record.quantizer)
        return self._cells.get((method, dataset_key(record.dataset.name), model, bits), [])

    def full_precisions(self, number: PublishedNumber) -> list[float]:
        """Return the full precision in percent that the source prints; if it prints none, that of all sources."""
        if number.fp_top1 is not None:
            return [number.fp_top1]
        return self._full_precision.get((dataset_key(number.dataset), model_key(number.model)), [])


def _method(method: str, quantizer: str) -> str:
    """Return what papers take for the method: without images the quantizer is all of it."""
    return f"{method}+{quantizer}" if method == NO_IMAGES else method


@cache
def published_index() -> PublicationIndex:
    """Return the index of the host's own numbers."""
    return PublicationIndex(published_numbers())


def index_with_plugins(plugins: Plugins) -> tuple[PublicationIndex, list[str]]:
    """Return an index of the host's numbers and those of plugins, and a line for each file that cannot be read."""
    numbers, problems = list(published_numbers()), []
    for offer in plugins.claims.values():
        try:
            numbers += read_numbers(offer.path)
        except DfqError as error:
            problems.append(f"claims '{offer.name}' of {offer.origin} are left out: {error}")
    # Numbers about a plugin's method may come from the host's file too: papers print methods that are added later.
    for at, number in enumerate(numbers):
        name = number.method.strip().lower()
        if name in plugins.methods:
            numbers[at] = dataclasses.replace(number, plugin_method=name)
    return PublicationIndex(numbers), problems
