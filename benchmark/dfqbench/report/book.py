"""The book of claims: the host's own and those that plugins bring along, found by the cell that they are about."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from dfqbench.api.errors import DfqError
from dfqbench.report.claims import Claim, claims_in, published_claims
from dfqbench.report.published import dataset_key, model_key
from dfqbench.run.store.record import Record

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins

Cell = tuple[str, str, str, str]


class ClaimBook:
    """Claims by cell.

    Args:
        claims: all of them.

    Attributes:
        claims: all of them.
    """

    def __init__(self, claims: Iterable[Claim]) -> None:
        self.claims = tuple(claims)
        self._cells: dict[Cell, list[Claim]] = {}
        self._precisions: dict[tuple[str, str], list[float]] = {}
        for claim in self.claims:
            dataset, model = dataset_key(claim.dataset), model_key(claim.model)
            method = claim.implemented.partition("+")[0]
            if method:
                self._cells.setdefault((method, dataset, model, claim.bits), []).append(claim)
            if claim.fp_top1 is not None:
                self._precisions.setdefault((dataset, model), []).append(claim.fp_top1)

    def about(self, record: Record) -> list[Claim]:
        """Claims about the record's method, data set, network and bits."""
        name = record.model.name or record.model.ref or ""
        bits = f"w{record.scheme.w_bits or 0}a{record.scheme.a_bits or 0}"
        key = (record.method, dataset_key(record.dataset.name), model_key(name), bits)
        return self._cells.get(key, [])

    def full_precisions(self, claim: Claim) -> list[float]:
        """Full precision in percent that the claim prints; what any source prints for its network if it prints none."""
        if claim.fp_top1 is not None:
            return [claim.fp_top1]
        return self._precisions.get((dataset_key(claim.dataset), model_key(claim.model)), [])


@cache
def published_book() -> ClaimBook:
    """The host's own claims."""
    return ClaimBook(published_claims())


def book_with(plugins: Plugins) -> tuple[ClaimBook, list[str]]:
    """The host's claims and those of plugins; claims about methods that plugins offer are theirs too.

    Args:
        plugins: the loaded ones.

    Returns:
        The book, and a line for each plugin's file that cannot be read.
    """
    claims, problems = list(published_claims()), []
    for offer in plugins.claims.values():
        try:
            claims += claims_in(offer.path)
        except DfqError as error:
            problems.append(f"claims '{offer.name}' of {offer.origin} are left out: {error}")
    # A method that a plugin offers is known by its own name: one that papers print may be offered one day.
    return ClaimBook(_offered(claim, set(plugins.methods)) for claim in claims), problems


def _offered(claim: Claim, methods: set[str]) -> Claim:
    name = claim.method.strip().lower()
    return dataclasses.replace(claim, offered=name) if name in methods else claim
