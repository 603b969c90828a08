from __future__ import annotations

import csv
import functools
import io
import time
import timeit

import pytest
from tests.report.html_reader import HtmlReader
from tests.report.records import answered, failed, record, right, rows, scheme

from dfqbench.report import Layout, parse_layout, render
from dfqbench.report.render import build_tables
from dfqbench.run.store.record import Record


def layout(rows: str, columns: str, value: str = "top1") -> Layout:
    return parse_layout(rows.split(","), columns.split(","), value.split(","))


def several() -> list[Record]:
    values = {"a": 450, "b": 470, "c": 430, "d": 400, "noise": 350, "real": 540}
    return [
        answered(f"{name}{bits}", right(count - bits), method=name, scheme=scheme(bits))
        for name, count in values.items()
        for bits in (4, 3)
    ]


def test_best_of_time_is_the_lowest() -> None:
    records = [record("1", seconds={"synthesis": 2.0}), record("2", method="x", seconds={"synthesis": 1.0})]
    assert {row[1]: row[4] for row in rows(render(records, "md"))} == {"zeroq": "<u>2.0 s</u>", "x": "**1.0 s**"}


def test_collapsed_student_is_never_the_best() -> None:
    records = [answered(method, right(count), method=method) for method, count in (("zeroq", 54), ("x", 20), ("y", 30))]
    records[0].status = "collapsed"
    found = {row[1]: row[2] for row in rows(render(records, "md"))}
    assert found == {"zeroq": "10.00 ±1.29 [1]", "x": "<u>3.70 ±0.82</u>", "y": "**5.56 ±0.99**"}
    assert "[1] collapsed: no better than guessing" in render(records, "text")


def test_status_words() -> None:
    words = {"oom": "out of memory", "timeout": "time limit", "preempted": "preempted", "new-status": "new-status"}
    for status, word in words.items():
        [row] = rows(render([failed("1", status, "boom")], "md"))
        assert row[2] == f"{word} [1]"


def test_methods_by_bits() -> None:
    page = render(several(), "md", layout=layout("method", "bits"))
    assert page.splitlines()[2].split("|")[2].strip() == "w4a4<br>top-1"
    assert {row[0]: row[1:] for row in rows(page)}["_real (control)_"] == ["99.26 ±0.38", "99.44 ±0.33"]
    assert "budget short, gdfq, digits:resnet8" in page.splitlines()[0].replace("\\", "")


def test_other_dimensions_split_tables() -> None:
    pages = build_tables(several(), {}, layout("method", "model"))
    assert [page.title.rpartition(", ")[2] for page in pages] == ["w4a4@gdfq", "w3a3@gdfq"]
    assert all(len(page.rows) == 6 for page in pages)


def test_seeds_or_targets_in_columns() -> None:
    records = [record(str(seed), seed=seed, top1=90.0 + seed) for seed in (0, 1, 10)]
    [row] = rows(render(records, "md", layout=layout("scheme,method", "model,seed")))
    assert row[2:] == ["90.00 ±1.29", "91.00 ±1.23", "100.00 ±0.09"]
    records = [record("1"), record("2", target="cifar10", dataset={"name": "cifar10", "n": 10000}, top1=50.0)]
    [page] = build_tables(records, {}, layout("method", "target"))
    assert page.columns == ("cifar10", "digits")
    assert [entry.text for entry in page.rows[0].entries] == ["50.00 ±0.50", "90.25 ±1.28"]


def test_every_metric_prints() -> None:
    full = record(
        "1",
        top5=99.0,
        agreement=91.2,
        oracle={"top1": 92.5, "step": 3},
        seconds={"setup": 1.0, "synthesis": 60.0, "quantization": 30.0, "evaluation": 2.0, "wall": 95.0},
        counts={"teacher_images": 12_800_000, "student_images": 950, "optimizer_steps": 40_000},
        peak_mib={"synthesis": 100.0, "quantization": 300.4, "evaluation": 900.0},
        source_images=120,
        diagnostics={"bns": 0.1234, "silhouette": -0.5, "label_accuracy": 87.5},
    )
    names = "top1,top5,oracle,agreement,fp_top1,coverage,total,setup,evaluation,wall,peak,teacher,student,steps"
    [row] = rows(render([full], "md", layout=layout("method", "model", names)))
    assert row[1:] == [
        *("90.25 ±1.28", "99.00 ±0.44", "92.50", "91.20 ±1.22", "98.50", "99.0"),
        *("90.0 s", "1.0 s", "2.0 s", "95.0 s", "300", "12.8 M", "950", "40.0 k"),
    ]
    more = "per_image,bns,silhouette,margin,label_accuracy"
    [row] = rows(render([full], "md", layout=layout("method", "model", more)))
    assert row[1:] == ["0.5 s", "0.123", "-0.500", "-", "87.5"]
    caption = render([full], "text", layout=layout("method", "model", "oracle"))
    assert "chosen on the evaluation set" in caption


def test_bit_operations_and_sums_of_terms_are_shown() -> None:
    share = {"macs_quantized": 99, "macs_total": 100}
    rex = {"method": "none", "quantizer": "rex", "label": "none+rex"}
    measured = [{"weight_terms": terms, "bit_operations": int(terms * 10**9)} for terms in (1.5, 2.0)]
    records = [
        record("1", coverage=share | {"weight_terms": 1.0, "bit_operations": 2_500_000_000}),
        *(record(f"r{n}", coverage=share | measured[n], seed=n, **rex) for n in (0, 1)),
        record("4", method="gdfq"),
    ]
    table = rows(render(records, "md", layout=layout("method", "model", "terms,bops")))
    assert {row[0]: row[2:] for row in table if row[0] != "none"} == {"gdfq": ["-", "-"], "zeroq": ["1.00", "2.5 G"]}
    line = "weights as sums of several terms, compare at equal bit operations (bops): none+rex 1.50 to 2.00"
    assert line in " ".join(render(records, "text").split())
    assert "several terms" not in render([records[0], records[-1]], "text")
    columns = csv.DictReader(io.StringIO(render(records, "csv")))
    assert [row["bit_operations"] for row in columns] == ["2500000000", "1500000000", "2000000000", ""]


def test_caption_of_diagnostics() -> None:
    measured = {"bns": 0.1, "images": 64}
    records = [
        record("1", diagnostics=measured | {"classes_of": "labels"}, method="gdfq"),
        record("2", diagnostics=measured | {"classes_of": "teacher"}),
    ]
    text = " ".join(render(records, "text", layout=layout("method", "model", "bns")).split())
    assert "diagnosed: 64 images of each cell; classes: the source's labels, the teacher's answers where" in text
    assert "a source gives none (zeroq)" in text
    assert "binomial" not in text
    assert "diagnosed" not in render(records, "text")
    assert "binomial error" in render(records, "text", layout=layout("method", "model", "bns,top1"))


def test_first_metric_shows_deviation() -> None:
    records = [record(str(s), seed=s, seconds={"synthesis": 1.0 + s}, top5=99.0 + s) for s in (0, 1)]
    [row] = rows(render(records, "md", layout=layout("method", "model", "synthesis,top5,drop")))
    assert row[1:] == ["1.5 s ± 0.71 s (2)", "99.50 ± 0.71", "8.25"]


def test_html() -> None:
    hostile = "<script>alert(1)</script>\"'&"
    text = render([*several(), failed("x", "failed", hostile, method=hostile)], "html")
    reader = HtmlReader(text)
    assert reader.active == []
    assert "&lt;script&gt;" in text
    body = {row[1]: row[2] for _, table in reader.tables for row in table if row[0] == "w4a4@gdfq"}
    assert body["b"] == "86.30 ±1.48"
    assert body[hostile] == "failed 1"
    assert '<td class="number best"><b>86.30 ±1.48</b></td>' in text
    assert "no records" in render([], "html")


@pytest.mark.slow
def test_rendering_time_is_linear() -> None:
    seconds = []
    for models in (5, 50):
        made = [
            record(f"{model}-{method}-{seed}", method=f"m{method}", seed=seed, model={"name": f"net{model}"})
            for model in range(models)
            for method in range(20)
            for seed in range(5)
        ]
        call = functools.partial(render, made, "text")
        seconds.append(min(timeit.repeat(call, timer=time.process_time, repeat=3, number=1)))
    assert seconds[1] < 20 * seconds[0]
