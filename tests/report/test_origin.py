from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from tests.report.html_reader import HtmlReader
from tests.report.records import failed, record, rows

from dfqbench.report import parse_layout, render
from dfqbench.report.html.views import page_views
from dfqbench.report.literature.publication_index import PublicationIndex
from dfqbench.report.tables.origin import origin, recipe_name
from dfqbench.run.store.record import Record

FIXED: dict[str, Any] = {"source_kind": "fixed", "used_images": 64}
LIVE: dict[str, Any] = {"source_kind": "live", "used_images": 6000}


def distilled(cell: str, recipe: str = "gdfq", **changes: Any) -> Record:
    return record(cell, **{"quantizer": "distill", "recipe": recipe, **changes})


def several() -> list[Record]:
    return [
        record("1", label="zeroq", **FIXED),
        distilled("2", label="zeroq+distill:gdfq", **FIXED | {"used_images": 1024}),
        distilled("3", method="gdfq", label="gdfq", **LIVE),
        record("4", method="gdfq", label="gdfq+calibrate", **LIVE | {"used_images": 64, "flags": ["generator_alone"]}),
        record("5", method="mine", label="mine", own_quantize=True, **FIXED),
    ]


EXPECTED = [
    ["gdfq", "distill:gdfq", "live"],
    ["gdfq", "calibrate", "64"],
    ["mine", "own", "64"],
    ["zeroq", "calibrate", "64"],
    ["zeroq", "distill:gdfq", "1,024"],
]


def test_markdown_has_recipe_and_images_of_each_row() -> None:
    text = render(several(), "md")
    assert [row[1:4] for row in rows(text)] == EXPECTED
    assert text.splitlines()[2].replace(" ", "").startswith("|scheme|method|recipe|images|")
    assert "* recipe: quantizer and recipe that made the student (own: a procedure of the method's own)" in text
    assert "* images: different ones that the student was made from, at most (live: a generator" in text


def test_text_and_latex_have_recipe_and_images_of_each_row() -> None:
    lines = [line.removeprefix("w4a4@gdfq").split() for line in render(several(), "text").splitlines() if " ±" in line]
    assert [fields[:3] for fields in lines[: len(EXPECTED)]] == EXPECTED
    latex = render(several(), "latex")
    assert r"\begin{tabular}{lllrrrr}" in latex
    assert all(" & ".join(fields) in latex for fields in EXPECTED)


def test_page_has_recipe_and_images_beneath_the_method() -> None:
    [(_, body)] = HtmlReader(render(several(), "html")).tables
    names = ["gdfq distill:gdfq, live images", "gdfq calibrate, 64 images", "mine own, 64 images"]
    assert [row[1] for row in body[2:5]] == names


def test_csv_and_json_have_recipe_and_images() -> None:
    table = list(csv.DictReader(io.StringIO(render(several(), "csv"))))
    assert [(row["quantizer"], row["recipe"], row["used_images"], row["source_kind"]) for row in table[:3]] == [
        ("calibrate", "", "64", "fixed"),
        ("distill", "gdfq", "1024", "fixed"),
        ("distill", "gdfq", "6000", "live"),
    ]
    assert table[4]["own_quantize"] == "True"
    entry = json.loads(render(several(), "json"))[1]
    assert (entry["quantizer"], entry["recipe"], entry["used_images"]) == ("distill", "gdfq", 1024)


def test_what_all_rows_share_is_in_the_caption() -> None:
    records = [record("1", **FIXED), record("2", method="noise", control=True, **FIXED)]
    text = render(records, "md")
    assert [row[1] for row in rows(text)] == ["zeroq", "_noise (control)_"]
    assert "| images" not in text
    assert "* students of all rows: calibrate, 64 images" in text
    one = [distilled("1", label="zeroq+distill:gdfq", **FIXED), distilled("2", method="gdfq", label="gdfq", **LIVE)]
    text = render(one, "md")
    assert [row[1:3] for row in rows(text)] == [["gdfq", "live"], ["zeroq", "64"]]
    assert "* students of all rows: distill:gdfq" in text


def test_failed_rows_and_old_records_hide_nothing_that_is_known() -> None:
    records = [record("1", **FIXED), failed("2", "failed", "boom", method="other")]
    assert "students of all rows: calibrate, 64 images" in render(records, "text")
    records.append(record("3", method="third", **FIXED | {"used_images": 7}))
    assert [row[2] for row in rows(render(records, "md"))] == ["-", "7", "64"]
    assert "images" not in render([record("1")], "text").splitlines()[2]


def test_layouts_without_method_rows_tell_it_in_the_caption() -> None:
    text = " ".join(render(several(), "text", layout=parse_layout(("scheme",), ("method",))).split())
    assert "students: gdfq: distill:gdfq, live images; gdfq+calibrate: calibrate, 64 images" in text
    assert "zeroq+distill:gdfq: distill:gdfq, 1,024 images" in text


def test_models_that_differ_in_images_give_a_range() -> None:
    other = {"model": {"name": "digits:mobilenet9", "ref": "digits:mobilenet9"}}
    found = origin([record("1", **FIXED), record("2", **other, **FIXED | {"used_images": 1024})])
    assert (found.images, found.words) == ("64 to 1,024", "calibrate, 64 to 1,024 images")


def test_changed_recipe_is_marked_and_explained() -> None:
    params = {"method": {}, "quantizer": {"alpha": 5.0}}
    changed = distilled("1", label="zeroq+distill:gdfq", params=params, recipe_changes=["alpha"], **FIXED)
    text = render([changed, record("2", label="zeroq", **FIXED)], "text")
    assert "distill:gdfq (changed)" in text
    assert "* (changed): other values than the recipe's, distill.alpha=5.0" in text


def test_points_of_plots_tell_recipe_and_images() -> None:
    seconds = {"synthesis": 1.0, "quantization": 1.0}
    drawn = page_views([distilled("1", seconds=seconds, **FIXED)], lambda _: "", PublicationIndex([]))
    assert "recipe distill:gdfq, 64 images" in drawn.time[0].charts[0].marks[0].about


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"quantizer": "distill", "recipe": "gdfq"}, "distill:gdfq"),
        ({"quantizer": "distill:gdfq", "recipe": "gdfq"}, "distill:gdfq"),
        ({"quantizer": "distill", "recipe": None}, "distill"),
        ({"quantizer": ""}, ""),
    ],
)
def test_recipe_names(changes: dict[str, Any], name: str) -> None:
    assert recipe_name(record("1", **changes)) == name


def ranged(cell: str, rule: str, **changes: Any) -> Record:
    params = {"method": {}, "quantizer": {"images": 64, "range": rule}}
    return record(cell, label="zeroq+calibrate", range=rule, params=params, **FIXED | changes)


def test_range_rules_are_a_column_where_they_differ_and_in_the_caption_where_not() -> None:
    records = [ranged("1", "minmax"), ranged("2", "percentile:99.9", recipe_changes=["range"])]
    text = render(records, "md")
    assert [row[1:3] for row in rows(text)] == [["zeroq", "minmax"], ["zeroq", "percentile:99.9"]]
    assert "* range: rule of the activation ranges" in text
    assert "* students of all rows: calibrate, 64 images" in text
    assert "(changed)" not in text
    assert "students of all rows: calibrate, minmax ranges, 64 images" in render(records[:1], "md")


def test_other_parameters_stay_beside_the_method() -> None:
    changed = ranged("2", "mse").as_dict()
    changed["params"]["quantizer"]["images"] = 32
    text = render([ranged("1", "minmax"), Record.from_data(changed)], "md")
    names = [row[1].replace("\\", "") for row in rows(text)]
    assert names == ["zeroq [quantizer.images=32]", "zeroq [quantizer.images=64]"]


def test_rule_of_records_without_the_key_and_of_students_without_images() -> None:
    older = record("1", params={"quantizer": {"range_rule": "ema"}}, **FIXED)
    assert origin([older]).words == "calibrate, ema ranges, 64 images"
    without_images = ranged("2", "bn", used_images=0, source_kind="live")
    assert origin([without_images]).words == "calibrate, bn ranges, 0 images"
    own = record("3", own_quantize=True, params={"quantizer": {"range_rule": "ema"}}, **FIXED)
    assert origin([own]).words == "own, 64 images"


def test_csv_and_json_have_the_range_rule() -> None:
    [line] = csv.DictReader(io.StringIO(render([ranged("1", "sigma:10")], "csv")))
    [entry] = json.loads(render([ranged("1", "sigma:10")], "json"))
    assert line["range"] == entry["range"] == "sigma:10"
