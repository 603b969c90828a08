"""Estimates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.plugins import load_plugins
from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.estimate import History, cost_key, format_seconds
from dfqbench.run.plan.plan import build_plan
from dfqbench.run.store.record import Record
from dfqbench.targets.catalogue import Catalogue


def cells(bits: str = "w4a4,w3a3,w2a2") -> list[Cell]:
    plugins = load_plugins()
    grid = apply(load_grid("w4a4", plugins), parse_selection(on="digits", methods="zeroq", bits=bits))
    return build_plan(grid, Catalogue.discover([]), plugins).cells


def record(cell: Cell, changes: Mapping[str, Any] | None = None, **seconds: float) -> Record:
    made: dict[str, Any] = {
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
        "seconds": {"wall": 0.0} | seconds,
    }
    return Record.from_data(made | dict(changes or {}))


def test_a_shared_source_is_counted_once() -> None:
    found = cells()
    history = History([record(found[0], wall=110.0, synthesis=100.0, paid_synthesis=100.0)])
    estimate = history.estimate(found, "cpu", {})
    assert (estimate.seconds, estimate.known, estimate.unknown) == (130.0, 3, 0)
    again = History([record(found[0], wall=10.0, synthesis=100.0, paid_synthesis=0.0)])
    assert again.estimate(found, "cpu", {}).seconds == 130.0


def test_a_saved_source_costs_nothing_more() -> None:
    found = cells()
    history = History([record(found[0], wall=110.0, synthesis=100.0, paid_synthesis=100.0)])
    assert history.estimate(found, "cpu", {}, saved={found[0].source_id}).seconds == 30.0


def test_a_live_source_is_paid_by_every_cell() -> None:
    found = cells()
    live = record(found[0], {"source_kind": "live"}, wall=200.0, synthesis=100.0, paid_synthesis=100.0)
    assert History([live]).estimate(found, "cpu", {}).seconds == 600.0


def test_other_parameters_are_no_basis() -> None:
    found = cells("w4a4")
    other = record(found[0], {"params": {"method": {"iterations": 1}, "quantizer": {}}}, wall=110.0)
    assert History([other]).estimate(found, "cpu", {}).unknown == 1


def test_another_device_is_no_basis() -> None:
    found = cells("w4a4")
    history = History([record(found[0], wall=110.0)])
    assert history.estimate(found, "cuda", {}).unknown == 1
    assert str(history.estimate(found, "cuda", {})) == "time not known for any of the 1 cells"


def test_timed_steps_fill_the_gap() -> None:
    found = cells("w4a4")
    probed = {cost_key(found[0], "cpu"): {"wall": 7200.0, "synthesis": 7000.0, "paid_synthesis": 7000.0}}
    estimate = History([]).estimate(found, "cpu", probed)
    assert str(estimate) == "about 2.0 h for 1 cells"


def test_failed_records_are_no_basis() -> None:
    found = cells("w4a4")
    assert History([record(found[0], {"status": "failed"}, wall=1.0)]).seconds(found[0], "cpu") is None


def test_spoken() -> None:
    assert [format_seconds(s) for s in (3, 89, 90, 5399, 7200, 180_000)] == [
        "3 s",
        "89 s",
        "2 min",
        "90 min",
        "2.0 h",
        "50.0 h",
    ]
