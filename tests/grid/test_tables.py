"""Presets of published tables, and rows of methods that no plugin offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfqbench.api import UsageError
from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.grid.choice import MethodChoice, is_offered, parse_method, resolve_methods
from dfqbench.grid.schema import Grid
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.run.plan.plan import build_plan
from dfqbench.targets.catalogue import Catalogue

TABLES = ("acq", "adadfq", "clusterq", "dffg", "gdfq", "intraq", "synq")
QIMERA = """
from dfqbench.api import Fidelity, Method, Offer, hookimpl

class Qimera(Method):
    name, title, paper, fidelity, quantizer = "qimera", "Qimera", "test", Fidelity.RELEASED, "calibrate"

    def synthesize(self, teacher, ctx): ...

@hookimpl
def dfqbench_methods():
    return [Offer("qimera", ":Qimera")]
"""


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def table(name: str, plugins: Plugins) -> Grid:
    return load_grid(f"table-{name}", plugins)


@pytest.mark.parametrize("name", TABLES)
def test_every_method_of_a_table_is_offered_or_has_a_reason(name: str, plugins: Plugins) -> None:
    grid = table(name, plugins)
    methods = {parse_method(text).method for text in grid.methods}
    assert methods == {method for method in methods if is_offered(method, plugins)} | set(grid.absent)
    assert not {method for method in grid.absent if is_offered(method, plugins)}
    choices = resolve_methods(grid.methods, plugins, grid.controls, absent=grid.absent)
    assert len(choices) == len(grid.methods)
    assert name in methods


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_the_papers_weights_protocol_and_schedule(name: str, plugins: Plugins) -> None:
    grid = table(name, plugins)
    assert {scheme.protocol.name for scheme in grid.parsed_schemes} == {"gdfq"}
    assert (grid.budget, grid.seeds) == ("paper", (0,))
    assert set(grid.models) == set(grid.on)
    assert all(model.startswith("pytorchcv:") for models in grid.models.values() for model in models)


@pytest.mark.slow
def test_networks_of_tables_exist(plugins: Plugins) -> None:
    provider = pytest.importorskip("pytorchcv.model_provider")
    names = {model for name in TABLES for models in table(name, plugins).models.values() for model in models}
    assert {model.partition(":")[2] for model in names} <= set(provider._models)


def test_rows_of_fine_tuned_images_name_the_cross(plugins: Plugins) -> None:
    for name in ("intraq", "dffg"):
        grid = table(name, plugins)
        choices = resolve_methods(grid.methods, plugins, grid.controls, absent=grid.absent)
        assert MethodChoice("zeroq", "distill", "intraq") in choices
        assert MethodChoice("dsg", "distill", "intraq") in choices


def plan_lines(plugins: Plugins, **selection: Any) -> list[tuple[str, str, str]]:
    grid = apply(table("clusterq", plugins), parse_selection(on="digits", models="digits:resnet8", **selection))
    cells = build_plan(grid, Catalogue.discover([]), plugins).cells
    problems = [cell.problem for cell in cells]
    return [
        (cell.choice.label, cell.scheme.label, "" if problem is None else f"{problem.status}: {problem.message}")
        for cell, problem in zip(cells, problems, strict=True)
    ]


def test_absent_method_is_an_unavailable_row_for_each_model_and_scheme(plugins: Plugins) -> None:
    rows = plan_lines(plugins, methods="zeroq,qimera,qimera+distill:gdfq", bits="w4a4,w8a8")
    reason = "unavailable: Choi et al., NeurIPS 2021: no plugin offers it"
    assert rows == [
        *(("zeroq", scheme, "") for scheme in ("w4a4@gdfq", "w8a8@gdfq")),
        *(("qimera", scheme, reason) for scheme in ("w4a4@gdfq", "w8a8@gdfq")),
        *(("qimera+distill:gdfq", scheme, reason) for scheme in ("w4a4@gdfq", "w8a8@gdfq")),
    ]


def test_method_of_a_plugin_replaces_the_absent_one(tmp_path: Path) -> None:
    (tmp_path / "qimera.py").write_text(QIMERA)
    rows = plan_lines(load_plugins([tmp_path / "qimera.py"]), methods="qimera,arc", bits="w4a4")
    assert [(label, problem.partition(":")[0]) for label, _, problem in rows] == [
        ("qimera", ""),
        ("arc", "unavailable"),
    ]


def test_broken_plugin_replaces_the_absent_method(tmp_path: Path) -> None:
    (tmp_path / "qimera.py").write_text("1 / 0")
    ((_, _, problem),) = plan_lines(load_plugins([tmp_path / "qimera.py"]), methods="qimera", bits="w4a4")
    assert problem.startswith("failed: plugin 'qimera'")


def test_absent_methods_stay_with_controls_and_are_unknown_elsewhere(plugins: Plugins) -> None:
    labels = [row[0] for row in plan_lines(plugins, methods="qimera,zeroq", controls="all", bits="w4a4")]
    assert labels == ["qimera", "zeroq", "noise", "real"]
    labels = [row[0] for row in plan_lines(plugins, methods="qimera,noise", controls="none", bits="w4a4")]
    assert labels == ["qimera"]
    with pytest.raises(UsageError, match="unknown method 'qimera'"):
        resolve_methods(["qimera"], plugins)
