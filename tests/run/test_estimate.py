from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.estimate import History, cost_key, format_seconds
from dfqbench.run.store.record import Record
from pretend import plan_of

PAID = {"wall": 110.0, "synthesis": 100.0, "paid_synthesis": 100.0}


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return plan_of("zeroq", "w4a4,w3a3,w2a2", grid="w4a4", on="digits").cells


def history(cell: Cell, changes: Mapping[str, Any] | None = None, **seconds: float) -> History:
    """History of one record of a cell."""
    data: dict[str, Any] = {
        "status": "ok",
        "source_kind": "fixed",
        "params": {"method": cell.method.params, "quantizer": cell.quantizer.params},
        "finished_at": "2026-01-01",
        "label": cell.choice.label,
        "target": cell.dataset.name,
        "model": {"name": cell.model_name},
        "budget": cell.budget.name,
        "precision": cell.precision,
        "device": "cpu",
        "threads": cell.threads,
        "seconds": PAID | seconds,
    }
    return History([Record.from_data(data | dict(changes or {}))])


@pytest.mark.parametrize(
    ("kind", "seconds", "saved", "expected"),
    [
        ("fixed", PAID, False, 130.0),
        ("fixed", {"wall": 10.0, "paid_synthesis": 0.0}, False, 130.0),
        ("fixed", PAID, True, 30.0),
        ("live", {"wall": 200.0}, False, 600.0),
    ],
)
def test_fixed_source_is_counted_once_unless_saved_and_a_live_one_in_every_cell(
    kind: str, seconds: dict[str, float], saved: bool, expected: float, cells: list[Cell]
) -> None:
    past = history(cells[0], {"source_kind": kind}, **seconds)
    estimate = past.estimate(cells, "cpu", {}, saved={cells[0].source_id} if saved else set())
    assert (estimate.seconds, estimate.known, estimate.unknown) == (expected, 3, 0)


@pytest.mark.parametrize(
    "changes",
    [{"params": {"method": {"iterations": 1}, "quantizer": {}}}, {"device": "cuda"}, {"status": "failed"}],
)
def test_records_of_another_cost_are_no_basis(changes: dict[str, Any], cells: list[Cell]) -> None:
    estimate = history(cells[0], changes).estimate(cells[:1], "cpu", {})
    assert str(estimate) == "time not known yet"


def test_timed_steps_are_a_basis(cells: list[Cell]) -> None:
    probed = {cost_key(cells[0], "cpu"): {"wall": 7200.0, "synthesis": 7000.0, "paid_synthesis": 7000.0}}
    assert str(History([]).estimate(cells[:1], "cpu", probed)) == "about 2.0 h for 1 cells"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "3 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (7200, "2.0 h"), (180_000, "50.0 h")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
