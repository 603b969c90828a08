"""Selection of published numbers and times by method, network, data set and bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from dfqbench.report.literature.names import dataset_key, model_key
from dfqbench.report.literature.published_numbers import PublishedNumber
from dfqbench.report.literature.published_times import PublishedTime

Published = TypeVar("Published", PublishedNumber, PublishedTime)


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
        method: as printed or as named here, in any case.
        model: as printed or as named here, for example `resnet18` or `torchvision:resnet18`.
        dataset: as printed or as the target is named here.
        bits: for example `w4a4`; the source of a time names one width for both operands.
    """
    return [
        entry
        for entry in entries
        if (method is None or method.lower() in {entry.method.lower(), entry.implemented.partition("+")[0]})
        and (model is None or entry.model in {"", "any"} or model_key(model) == model_key(entry.model))
        and (dataset is None or not entry.dataset or dataset_key(dataset) == dataset_key(entry.dataset))
        and (bits is None or not entry.bits or bits.lower() in {entry.bits, f"w{entry.bits}a{entry.bits}"})
    ]
