from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import dfqbench
from attempts import PLUGINS
from dfqbench.api import InputStats, Precision, UsageError
from dfqbench.cli.main import build_app
from dfqbench.grid import load_grid
from dfqbench.plugins import load_plugins
from dfqbench.run.plan.cell import QUANT_IN_SYNTH, Cell
from dfqbench.run.plan.identity import canonical, derived_seed, host_code, identity
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.environment import resolve_precision
from dfqbench.run.store.run_folder import RunFolder
from pretend import one_image_target, plan_of


def cells_of(methods: str = "zeroq", plugins: Any = None, **selection: Any) -> list[Cell]:
    return plan_of(methods, plugins=plugins, **{"grid": "w4a4", "on": "digits"} | selection).cells


def cell_of(methods: str = "zeroq", **selection: Any) -> Cell:
    (cell,) = cells_of(methods, **selection)
    return cell


def test_every_combination_once_and_cells_of_a_source_adjacent() -> None:
    cells = cells_of("zeroq,noise", bits="w4a4,w3a3", seeds="0-2")
    assert len(cells) == len({cell.cell_id for cell in cells}) == 2 * 2 * 3
    zeroq = [cell.source_id for cell in cells if cell.method.name == "zeroq"]
    assert len(set(zeroq)) == 3
    assert zeroq == [zeroq[0]] * 2 + [zeroq[2]] * 2 + [zeroq[4]] * 2


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seeds": "1"}, set()),
        ({"budget": "smoke"}, set()),
        ({"exact": True}, set()),
        ({"settings": ["zeroq.iterations=10"]}, set()),
        ({"settings": ["zeroq.init=intended"]}, set()),
        ({"bits": "w3a3"}, {"source_id"}),
        ({"bits": "w4a4@deploy"}, {"source_id"}),
        ({"settings": ["calibrate.images=32"]}, {"source_id"}),
        ({"limit": 100}, {"source_id", "student_id"}),
    ],
)
def test_identities_depend_on_what_decides_the_result(change: dict[str, Any], same: set[str]) -> None:
    cell, changed = cell_of(), cell_of(**change)
    assert {
        key for key in ("source_id", "student_id", "cell_id") if getattr(cell, key) == getattr(changed, key)
    } == same


def test_statistics_of_the_domain_are_part_of_the_sources_identity(tmp_path: Path) -> None:
    np.savez(tmp_path / "toy.npz", x=np.zeros((2, 8, 8), np.uint8), y=np.arange(2))
    cells = []
    for stats in ("", "stats = { mean = [0.5], std = [0.25] }", "stats = { mean = [0.5], std = [0.5] }"):
        (tmp_path / "targets.toml").write_text(f"""
            [datasets.toy]
            kind = "npz"
            evaluate = "toy.npz"
            classes = 10
            {stats}
            [[models]]
            target = "toy"
            name = "digits:resnet8"
            random_seed = 0
            input_size = [1, 8, 8]
            mean = [0.5]
            std = [0.5]
        """)
        cells.append(cell_of(on="toy", data=[tmp_path]))
    assert [cell.model.card.stats for cell in cells if cell.model is not None] == [
        None,
        InputStats((0.0,), (0.5,)),
        InputStats((0.0,), (1.0,)),
    ]
    assert len({cell.source_id for cell in cells}) == len({cell.cell_id for cell in cells}) == 3


@pytest.mark.parametrize(
    ("methods", "settings", "changed"),
    [
        ("zeroq", [], ((), ())),
        ("zeroq", ["zeroq.iterations=10"], (("iterations",), ())),
        # The default, written out.
        ("gdfq", ["distill.epochs=400"], ((), ())),
        ("gdfq", ["distill.alpha=3.5"], ((), ("alpha",))),
        ("gdfq+distill:gdfq", [], ((), ())),
        ("zeroq+distill", [], ((), ())),
        ("zeroq+distill:dffg", [], ((), ())),
        ("real", [], ((), ())),
        ("real", ["real.images=32"], (("images",), ())),
    ],
)
def test_changed_parameters(methods: str, settings: list[str], changed: tuple[tuple[str, ...], ...]) -> None:
    cell = cell_of(methods, settings=settings)
    assert (cell.method.changed, cell.quantizer.changed) == changed


def test_crosses_make_equally_many_images() -> None:
    def images(methods: str, *settings: str) -> object:
        return cell_of(methods, settings=list(settings)).method.params["images"]

    assert [images(name) for name in ("zeroq", "noise", "zeroq+calibrate")] == [64] * 3
    assert [images(f"{name}+distill") for name in ("zeroq", "noise", "real")] == [1024] * 3
    assert images("zeroq+distill:gdfq") == 1024
    assert images("zeroq+distill", "zeroq.images=128") == 128


def test_another_recipe_changes_parameters(tmp_path: Path) -> None:
    params = cell_of("gdfq").quantizer.params
    other = cell_of("gdfq+distill:clusterq").quantizer
    assert other.changed == tuple(name for name, value in other.params.items() if params[name] != value) != ()
    # A cross has the quantizer's default recipe where none is written out.
    assert cell_of("zeroq+distill:gdfq").quantizer.changed
    cell = cell_of("gdfq", settings=["gdfq.lr=0.1", "distill.alpha=3.5"])
    record = RunEnvironment(RunFolder(tmp_path), load_plugins(), "cpu").new_record(cell, 1)
    assert record.changed_params == ["method.lr", "quantizer.alpha"]
    assert (record.recipe, record.recipe_changes, record.own_quantize) == ("gdfq", ["alpha"], False)


def test_record_names_the_recipe_of_a_method_of_its_own_and_of_a_cross(tmp_path: Path) -> None:
    env = RunEnvironment(RunFolder(tmp_path), load_plugins(), "cpu")
    made = [env.new_record(cell_of(name), 1) for name in ("gdfq", "zeroq+distill:clusterq", "zeroq", "real")]
    assert [(record.quantizer, record.recipe, record.recipe_changes) for record in made] == [
        ("distill", "gdfq", []),
        ("distill", "clusterq", []),
        ("calibrate", None, []),
        ("calibrate", None, []),
    ]


def test_precision_and_changed_code_change_the_identity_and_not_the_seeds() -> None:
    cell = cell_of()
    assert cell_of(exact=True).seed_key == cell.seed_key
    edited = dataclasses.replace(cell, method=dataclasses.replace(cell.method, code="edited"))
    assert edited.source_id != cell.source_id
    assert edited.seed_key == cell.seed_key
    quantizer = dataclasses.replace(cell, quantizer=dataclasses.replace(cell.quantizer, code="edited"))
    assert quantizer.source_id == cell.source_id
    assert quantizer.student_id != cell.student_id


@pytest.mark.parametrize(
    ("more", "precision"), [([], resolve_precision("auto", "cpu")), (["--exact"], Precision.FLOAT32)]
)
def test_exact_selects_float32(more: list[str], precision: str) -> None:
    arguments = ["plan", "--grid", "w4a4", "--on", "digits", "--methods", "gdfq", "--json", *more]
    (cell,) = json.loads(CliRunner().invoke(build_app(), arguments).stdout)["cells"]
    assert cell["precision"] == precision


def test_edited_plugin_file_changes_the_source(tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text((PLUGINS / "flat.py").read_text())
    before = cell_of("flat", plugins=load_plugins([file]))
    file.write_text(file.read_text().replace("self.params.spread * colours", "2 * self.params.spread * colours"))
    after = cell_of("flat", plugins=load_plugins([file]))
    assert before.source_id != after.source_id
    assert before.seed_key == after.seed_key


def test_digits_has_its_own_default_budget() -> None:
    assert cell_of().budget.name == "tiny"
    assert cell_of(budget="paper").budget.name == "paper"


def test_plan_notes_the_steps_of_a_shortened_budget() -> None:
    (note,) = plan_of("noise", "w4a4").shortened
    assert note.startswith("budget smoke is short: 20 generator and student steps for 80,000 published ones")
    assert plan_of("noise", "w4a4", budget="paper").shortened == []


def test_preset_first_has_two_networks_every_method_and_controls_under_both_quantizers() -> None:
    grid = load_grid("first", load_plugins())
    assert grid.methods == ("*", "real", "noise+distill:gdfq", "real+distill:gdfq")
    cells = plan_of("*,real,noise+distill:gdfq,real+distill:gdfq", grid="first").cells
    labels = {cell.choice.label for cell in cells}
    assert labels >= {"zeroq", "gdfq", "noise", "real", "noise+distill:gdfq", "real+distill:gdfq"}
    assert len(cells) == 2 * 2 * len(labels)
    assert {cell.model_name for cell in plan_of("*", grid="w4a4", on="digits").cells} == {"digits:resnet8"}


def test_grid_without_target_uses_the_first_complete_one() -> None:
    plan = plan_of("*", grid="w4a4")
    assert {cell.dataset.name for cell in plan.cells} == {"digits"}
    assert plan.contents.endswith(" on digits (resnet8), w4a4@gdfq, seed 0")
    assert [note.partition(" ")[0] for note in plan.notes] == ["imagenet", "cifar10"]
    assert plan.others == ()


@pytest.mark.parametrize(
    ("methods", "model", "status", "message"),
    [
        ("zeroq", "torchvision:resnet18", "unavailable", "dfqbench fetch torchvision:resnet18"),
        ("real", "timm:resnet10t?weights=random", "skipped", "no training split"),
    ],
)
def test_cells_without_weights_or_training_split_have_a_reason(
    methods: str, model: str, status: str, message: str, tmp_path: Path
) -> None:
    name = one_image_target(tmp_path)
    problem = cell_of(methods, data=[tmp_path], on=name, models=model).problem
    assert problem is not None
    assert problem.status == status
    assert message in problem.message


def test_broken_plugin_is_a_failed_cell() -> None:
    plugins = load_plugins([PLUGINS / "broken" / "raises_on_import.py"])
    noise, broken = cells_of("noise,raises_on_import", plugins)
    assert noise.problem is None
    assert broken.problem is not None
    assert broken.problem.status == "failed"
    assert "raises_on_import" in broken.problem.message


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"methods": "zeroQQ"}, "unknown method 'zeroqq'"),
        ({"methods": "zeroq+destill"}, "unknown quantizer 'destill'"),
        ({"on": "digit"}, "unknown target 'digit'"),
        ({"models": "resnet9999"}, "resnet9999"),
        ({"settings": ["zeroq.iteration=3"]}, "unknown parameter of zeroq 'iteration'.*did you mean iterations"),
        ({"settings": ["zerq.iterations=3"]}, "unknown method or quantizer 'zerq'.*did you mean zeroq"),
        ({"settings": ["zeroq.iterations=many"]}, "zeroq.iterations"),
        ({"bits": "w1a1"}, "1 bits"),
        ({"budget": "little"}, "unknown budget 'little'"),
    ],
)
def test_wrong_requests_are_explained(selection: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cells_of(**selection)


def test_identity_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert identity({"a": 1, "b": [1, 2]}) == identity({"b": [1, 2], "a": 1})
    assert identity({"a": 1}) != identity({"a": 1.5})
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"lr": float("nan")})


def test_seeds_differ_by_scope_and_fit_torch() -> None:
    seeds = {derived_seed("key", *scope) for scope in [(), ("a",), ("b",), ("a", 1), ("a", 2)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("key", "a") == derived_seed("key", "a")


def test_source_identity_covers_every_file_of_quant_that_synth_imports() -> None:
    root = Path(dfqbench.__file__).parent
    assert host_code("quant") != host_code("quant", "quantizers") != host_code("quantizers")
    waiting = sorted((root / "synth").rglob("*.py"))
    imported: set[str] = set()
    while waiting:
        text = waiting.pop().read_text()
        assert set(re.findall(r"^from dfqbench\.(\w+)", text, re.MULTILINE)) <= {"api", "quant", "synth"}
        new = set(re.findall(r"^from dfqbench\.quant\.(\w+) import", text, re.MULTILINE)) - imported
        imported |= new
        waiting += [root / "quant" / f"{name}.py" for name in new]
    assert {f"quant/{name}.py" for name in imported} == set(QUANT_IN_SYNTH)
