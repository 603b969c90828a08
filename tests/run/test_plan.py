"""Plans: cells, identities, and reasons."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dfqbench.api import UsageError
from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.plugins import load_plugins
from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.plan import Plan, build_plan
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.targets.catalogue import Catalogue

PLUGINS = Path(__file__).parent.parent / "plugins"


def plan(files: tuple[Path, ...] = (), data: tuple[Path, ...] = (), **selection: object) -> Plan:
    plugins = load_plugins(files)
    facts = {"on": "digits", "methods": "zeroq,noise"} | selection
    grid = apply(load_grid("w4a4", plugins), parse_selection(**facts))  # type: ignore[arg-type]
    return build_plan(grid, Catalogue.discover(data), plugins)


def one(**selection: object) -> Cell:
    cells = plan(**({"methods": "zeroq"} | selection)).cells  # type: ignore[arg-type]
    assert len(cells) == 1
    return cells[0]


def test_every_combination_once_and_sources_together() -> None:
    cells = plan(bits="w4a4,w3a3", seeds="0-2").cells
    assert len(cells) == 2 * 2 * 3
    assert len({cell.cell_id for cell in cells}) == 12
    zeroq = [cell.source_id for cell in cells if cell.method.name == "zeroq"]
    assert len(set(zeroq)) == 3
    assert zeroq == [zeroq[0]] * 2 + [zeroq[2]] * 2 + [zeroq[4]] * 2


def test_bits_share_the_source_and_not_the_student() -> None:
    four, three = one(bits="w4a4"), one(bits="w3a3")
    assert four.source_id == three.source_id
    assert four.student_id != three.student_id


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": "1"},
        {"budget": "smoke"},
        {"settings": ["zeroq.iterations=10"]},
        {"settings": ["zeroq.init=intended"]},
    ],
)
def test_what_decides_the_images_changes_the_source(change: dict[str, object]) -> None:
    assert one(**change).source_id != one().source_id


@pytest.mark.parametrize("change", [{"bits": "w4a4@deploy"}, {"settings": ["calibrate.images=32"]}])
def test_what_decides_the_student_leaves_the_source(change: dict[str, object]) -> None:
    changed = one(**change)
    assert changed.source_id == one().source_id
    assert changed.student_id != one().student_id


@pytest.mark.parametrize(
    ("methods", "settings", "changed"),
    [
        ("zeroq", [], ((), ())),
        ("zeroq", ["zeroq.iterations=10"], (("iterations",), ())),
        # A value that is written out, and the method's own all the same.
        ("gdfq", ["distill.epochs=400"], ((), ())),
        ("gdfq", ["distill.alpha=3.5"], ((), ("alpha",))),
        ("zeroq+distill", [], ((), ())),
        ("zeroq+distill:intraq", [], ((), ())),
        ("real", [], ((), ())),
        ("real", ["real.images=32"], (("images",), ())),
    ],
)
def test_what_is_not_the_method_s_own_is_told(
    methods: str, settings: list[str], changed: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    cell = one(methods=methods, settings=settings)
    assert (cell.method.changed, cell.quantizer.changed) == changed


def test_another_recipe_changes_parameters() -> None:
    assert one(methods="gdfq+distill:gdfq").quantizer.changed == ()
    other = one(methods="gdfq+distill:clusterq").quantizer
    assert set(other.changed) == {
        name for name, v in other.params.items() if one(methods="gdfq").quantizer.params[name] != v
    }
    assert other.changed
    # A cross has the quantizer's default recipe where none is written out.
    assert one(methods="zeroq+distill:gdfq").quantizer.changed


def test_the_record_lists_what_was_changed(tmp_path: Path) -> None:
    cell = one(methods="gdfq", settings=["gdfq.lr=0.1", "distill.alpha=3.5"])
    record = RunEnvironment(RunFolder(tmp_path), load_plugins(), "cpu").new_record(cell, 1)
    assert record.changed_params == ["method.lr", "quantizer.alpha"]


def test_the_evaluation_set_is_in_the_cell_only() -> None:
    part = one(limit=100)
    assert part.student_id == one().student_id
    assert part.cell_id != one().cell_id


def test_a_changed_text_changes_the_identity_and_not_the_seeds() -> None:
    cell = one()
    edited = dataclasses.replace(cell, method=dataclasses.replace(cell.method, code="edited"))
    assert edited.source_id != cell.source_id
    assert edited.seed_key == cell.seed_key
    quantizer = dataclasses.replace(cell, quantizer=dataclasses.replace(cell.quantizer, code="edited"))
    assert quantizer.source_id == cell.source_id
    assert quantizer.student_id != cell.student_id


def test_an_edited_plugin_file_is_another_cell(tmp_path: Path) -> None:
    mine = tmp_path / "flat.py"
    mine.write_text((PLUGINS / "flat.py").read_text())
    before = plan((mine,), methods="flat").cells[0]
    mine.write_text(mine.read_text().replace("self.params.spread * colours", "2 * self.params.spread * colours"))
    after = plan((mine,), methods="flat").cells[0]
    assert before.source_id != after.source_id
    assert before.seed_key == after.seed_key


def test_digits_uses_its_own_budget_unless_told() -> None:
    assert one().budget.name == "short"
    assert one(budget="paper").budget.name == "paper"


def test_a_grid_without_a_target_takes_the_first_complete_one() -> None:
    plugins = load_plugins()
    found = build_plan(load_grid("w4a4", plugins), Catalogue.discover([]), plugins)
    assert {cell.dataset.name for cell in found.cells} == {"digits"}
    assert found.notes[0] == "target digits"
    assert any("imagenet is not complete" in note for note in found.notes)


def test_a_missing_model_is_a_row_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    (tmp_path / "val" / "n01440764" / "a.JPEG").write_bytes(b"0")
    name = next(name for name in Catalogue.discover([tmp_path]).names() if name.startswith("imagenet-"))
    cells = plan(data=(tmp_path,), on=name, models="torchvision:resnet18").cells
    problems = [cell.problem for cell in cells]
    assert all(problem is not None and problem.status == "unavailable" for problem in problems)
    assert "dfqbench fetch torchvision:resnet18" in str(problems[0])


def test_real_without_a_training_split_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    (tmp_path / "val" / "n01440764" / "a.JPEG").write_bytes(b"0")
    name = next(name for name in Catalogue.discover([tmp_path]).names() if name.startswith("imagenet-"))
    model = "timm:resnet10t?weights=random"
    cell = plan(data=(tmp_path,), on=name, models=model, methods="real").cells[0]
    assert cell.problem is not None
    assert cell.problem.status == "skipped"
    assert "no training split" in cell.problem.message


def test_a_broken_plugin_is_a_failed_row() -> None:
    broken = PLUGINS / "broken" / "raises_on_import.py"
    cells = plan((broken,), methods="noise,raises_on_import").cells
    problem = cells[1].problem
    assert cells[0].problem is None
    assert problem is not None
    assert problem.status == "failed"
    assert "raises_on_import" in problem.message


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
        ({"budget": "tiny"}, "unknown budget 'tiny'"),
    ],
)
def test_bad_requests_say_what_to_do(selection: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(**selection)  # type: ignore[arg-type]
