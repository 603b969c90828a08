from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dfqbench.api import Precision
from dfqbench.cli.main import build_app
from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.plugins import load_plugins
from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.plan import build_plan
from dfqbench.run.store import environment
from dfqbench.run.store.environment import resolve_precision
from dfqbench.targets.catalogue import Catalogue


def cell(precision: str) -> Cell:
    plugins = load_plugins()
    grid = apply(load_grid("w4a4", plugins), parse_selection(on="digits", methods="gdfq"))
    (only,) = build_plan(grid.model_copy(update={"precision": precision}), Catalogue.discover([]), plugins).cells
    return only


@pytest.mark.parametrize(
    ("flags", "device", "expected"),
    [
        ({"avx2", "fma"}, "cpu", "float32-fast"),
        ({"avx512_bf16"}, "cpu", "mixed-bfloat16"),
        ({"amx_bf16"}, "cpu", "mixed-bfloat16"),
        (set(), "cuda:1", "mixed-bfloat16"),
    ],
)
def test_auto_precision_depends_on_the_instruction_set(
    flags: set[str], device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset(flags))
    assert resolve_precision("auto", device) == expected
    assert resolve_precision("float32", device) == Precision.FLOAT32


def test_precision_changes_identities_and_not_seeds() -> None:
    exact, mixed = cell("float32"), cell("mixed-bfloat16")
    assert exact.source_id != mixed.source_id
    assert exact.cell_id != mixed.cell_id
    assert exact.seed_key == mixed.seed_key


def test_exact_selects_float32() -> None:
    arguments = ["plan", "--grid", "w4a4", "--on", "digits", "--methods", "gdfq", "--json"]
    plain, exact = (
        json.loads(CliRunner().invoke(build_app(), [*arguments, *more]).stdout)["cells"][0]
        for more in ([], ["--exact"])
    )
    assert exact["precision"] == "float32"
    assert plain["precision"] == resolve_precision("auto", "cpu")
