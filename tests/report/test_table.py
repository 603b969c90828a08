from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from tests.report.records import changed, failed, record, rows, scheme

from dfqbench.api import UsageError
from dfqbench.report import describe_hardware, frame, parse_layout, render
from dfqbench.report.comparison.wilson import wilson_error
from dfqbench.report.formatting import duration
from dfqbench.run.store.record import Record

FORMATS: tuple[Any, ...] = ("text", "md", "latex", "html")


@pytest.mark.parametrize(
    "changes", [{}, {"model": "digits:resnet8", "scheme": "w4a4@gdfq"}], ids=["new", "plain names"]
)
def test_one_cell(changes: dict[str, Any]) -> None:
    [row] = rows(render([record("a", **changes)], "md"))
    assert row == ["w4a4@gdfq", "zeroq", "90.25 ±1.28", "8.25", "12.3 s"]


def test_scheme_with_a_budget_stands_beside_the_one_without() -> None:
    mixed = scheme(4) | {"label": "w4a4@gdfq:size=4bit", "mixed": {"budget": "size=4bit"}}
    schemes = {"a": scheme(3), "b": mixed, "c": scheme(4), "d": scheme(4, "deploy")}
    records = [record(cell, scheme=facts) for cell, facts in schemes.items()]
    labels = [row[0] for row in rows(render(records, "md"))]
    assert labels == ["w4a4@deploy", "w4a4@gdfq", "w4a4@gdfq:size=4bit", "w3a3@gdfq"]


def test_seeds_are_averaged() -> None:
    records = [record(str(seed), seed=seed, top1=value, drop=None) for seed, value in enumerate((90.0, 92.0, 94.0))]
    [row] = rows(render(records, "md"))
    assert row[2:4] == ["92.00 ± 2.00 (3)", "6.50"]
    assert "seeds 0, 1, 2; x ± s (n): mean and sample standard deviation over n seeds" in render(records, "text")


def test_only_the_latest_attempt_counts() -> None:
    records = [record("a", attempt=2, top1=80.0), record("a", attempt=10, top1=70.0), failed("a", "failed", "boom")]
    [row] = rows(render(records, "md"))
    assert row[2] == "70.00 ±1.97"
    assert [entry["top1"] for entry in json.loads(render(records, "json"))] == [70.0]


@pytest.mark.parametrize(("changes", "superseded"), [({"run": "two"}, 0), ({"cell_id": "b"}, 1)])
def test_older_cell_of_the_same_place_is_left_out(changes: dict[str, Any], superseded: int) -> None:
    old = record("a", run="one", attempt=5, top1=80.0)
    new = changed(old, attempt=1, top1=70.0, finished_at="2025-01-02T00:00:00Z", **changes)
    text = render([new, old], "md")
    assert [row[2] for row in rows(text)] == ["70.00 ±1.97"]
    assert ("1 older cells of the same places" in text) == bool(superseded)


def test_order_of_rows() -> None:
    records = [record(name, method=name, control=name != "zeroq") for name in ("real", "noise", "zeroq", "aaa")]
    records += [record(str(given), scheme=scheme(*given)) for given in ((8,), (3,), (8, "deploy"))]
    assert [row[:2] for row in rows(render(records, "md"))] == [
        ["w8a8@deploy", "zeroq"],
        ["w8a8@gdfq", "zeroq"],
        ["w4a4@gdfq", "zeroq"],
        ["w4a4@gdfq", "_aaa (control)_"],
        ["w4a4@gdfq", "_noise (control)_"],
        ["w4a4@gdfq", "_real (control)_"],
        ["w3a3@gdfq", "zeroq"],
    ]


def test_failures_are_rows_with_reasons() -> None:
    records = [
        failed("1", "failed", "lists index\nout of range", "IndexError", method="one"),
        failed("2", "unavailable", "weights missing", method="two"),
        failed("3", "skipped", "no BatchNorm", "Skip", method="three"),
        record("4", method="four", status="invalid", flags=["real_data_opened"]),
        record("5", method="five", top1=math.nan),
    ]
    text = render(records, "text")
    assert {row[1]: row[2].replace("\\", "") for row in rows(render(records, "md"))} == {
        "five": "no result [1]",
        "four": "invalid [2]",
        "one": "failed [3]",
        "three": "skipped [4]",
        "two": "unavailable [5]",
    }
    assert "[2] invalid: real_data_opened" in text
    assert "[3] failed: IndexError: lists index out of range (in synthesis)" in text
    assert "[4] skipped: no BatchNorm (in synthesis)" in text


def test_footnotes() -> None:
    text = render([record("1"), failed("2", "failed", "boom", seed=1)], "text")
    assert "90.25 ±1.28 [1]" in text
    assert "[1] seed 1: failed: boom (in synthesis)" in text
    text = render([failed(name, "failed", "boom", method=name) for name in ("a", "b")], "text")
    assert (text.count("[1]"), text.count("[2]")) == (3, 0)
    assert "[1] flagged: generator_alone" in render([record("1", flags=["generator_alone"])], "text")


def test_cell_without_evaluation_set_stays_in_its_table() -> None:
    model = {"name": "digits:resnet8", "ref": None}
    records = [record("1"), failed("2", "failed", "boom", method="other", dataset={"n": None}, model=model)]
    assert render(records, "text").count("images), budget short") == 1
    assert [row[1] for row in rows(render(records, "md"))] == ["other", "zeroq"]


def test_crosses_name_their_quantizer() -> None:
    records = [record("1"), record("2", quantizer="distill:intraq")]
    assert [row[1:3] for row in rows(render(records, "md"))] == [["zeroq", "calibrate"], ["zeroq", "distill:intraq"]]
    labelled = [changed(records[1], label="zeroq+distill:intraq"), record("3", method="x")]
    assert [row[1:3] for row in rows(render(labelled, "md"))] == [["x", "calibrate"], ["zeroq", "distill:intraq"]]


def test_parameters_that_vary_are_rows() -> None:
    records = [record("1"), record("2", params={"method": {"iterations": 100}, "quantizer": {"images": 64}}, top1=50.0)]
    found = {row[1]: row[2] for row in rows(render(records, "md"))}
    assert found == {"zeroq \\[iterations=500\\]": "90.25 ±1.28", "zeroq \\[iterations=100\\]": "50.00 ±2.15"}


def test_targets_sizes_and_budgets_have_separate_tables() -> None:
    records = [record("1"), record("2", budget="paper"), record("3", dataset={"name": "digits", "n": 64})]
    records += [record("4", target="cifar10", dataset={"name": "cifar10", "n": 10000})]
    text = render(records, "text")
    assert text.splitlines()[0] == "cifar10 (10,000 images), budget short"
    for title in ("digits (64 images), budget short", "digits (540 images), budget paper"):
        assert title in text
    assert text.count("coverage") == 4


def test_caption() -> None:
    dataset = {"name": "imagenet-val1300", "n": 64, "subset_of": "imagenet", "subset": "first 64"}
    one = record("1", target="imagenet-val1300", dataset=dataset)
    records = [one, changed(one, cell_id="2", model={"name": "timm:x", "ref": "timm:x"}, fp_top1=70.0, seed=3)]
    text = " ".join(render(records, "text", {"e1": "cpu: Toy, 2 cores"}).split())
    title = "imagenet-val1300 (64 images, a subset of imagenet, first 64), budget short"
    accuracy = (
        "full precision, re-measured in this run: resnet8 98.50, x 70.00",
        "one seed: x ±e with the binomial error e (half the Wilson interval for z = 1); of a top-1: 3.73",
    )
    how = (
        "last state",
        "budget short is short: 800 generator and student steps for 80,000 published ones",
        "protocol gdfq; precision float32",
        "resnet8 99.0 % (in float: fc)",
        "hardware: cpu: Toy, 2 cores",
    )
    for part in (title, *accuracy, *how, "2 cells, 40.0 s in all", "models: digits:resnet8, timm:x"):
        assert part in text
    assert "hardware: environment e1" in render(records, "text")


def test_binomial_error_in_caption_and_cells() -> None:
    invalid = record("2", method="x", status="invalid", top1=50.0)
    assert "for z = 1); of a top-1: 1.28\n" in render([record("1"), invalid], "text")
    half = record("1", top1=50.0, dataset={"name": "digits", "n": 100})
    assert "of a top-1: 4.98" in render([half], "text")
    seeds = [record(str(seed), seed=seed, top5=99.0) for seed in (0, 1)]
    layout = parse_layout(["method"], ["model"], ["top1", "top5"])
    assert rows(render(seeds, "md", layout=layout))[0][1:] == ["90.25 ± 0.00 (2)", "99.00 ± 0.00"]
    text = render(seeds, "text")
    assert ("one seed: x ±e" in text, "binomial error of one seed (half" in text) == (False, True)
    [row] = rows(render(seeds[:1], "md", layout=layout))
    assert row[1:] == ["90.25 ±1.28", "99.00 ±0.44"]


def test_error_of_a_perfect_top1_is_not_zero() -> None:
    for top1, shown in ((100.0, "100.00 ±0.09"), (0.0, "0.00 ±0.09"), (99.63, "99.63 ±0.28")):
        assert rows(render([record("1", top1=top1)], "md"))[0][2] == shown
    for share in (0.0, 0.004, 0.5, 0.98, 1.0):
        # The interval's ends are the true shares p from which `share` is one standard error sqrt(p (1 - p) / n) away.
        low, high = sorted(np.roots([1 + 1 / 500, -2 * share - 1 / 500, share**2]).real)
        assert wilson_error(100 * share, 500) == pytest.approx(50 * (high - low))


@pytest.mark.parametrize("models", [1, 2, 3, 7])
def test_text_fits_the_terminal(models: int) -> None:
    records = []
    for at in range(models):
        model = {"name": f"torchvision:network_{at}"}
        records.append(failed(f"a{at}", "unavailable", "weights missing " * 20, model=model))
        records.append(record(f"b{at}", method="b", model=model))
    text = render(records, "text")
    assert all(len(line) <= 100 and line == line.rstrip() for line in text.splitlines())
    assert all(f"network_{at}" in text for at in range(models))


def test_durations() -> None:
    shown = list(map(duration, [0.0, 0.516, 12.34, 99.96, 250, 5996, 5999, 360000]))
    assert shown == ["0.00 s", "0.52 s", "12.3 s", "1.7 min", "4.2 min", "99.9 min", "1.7 h", "100.0 h"]
    for missing in (None, math.nan, "long"):
        assert rows(render([record("1", seconds={"synthesis": missing})], "md"))[0][4] == "-"


@pytest.mark.parametrize("fmt", ["text", "md", "csv", "json"])
@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"method": "zeroq"},
        {"schema": 0, "model": "resnet18", "scheme": "w4a4", "status": "ok", "top1": 50},
        {"seconds": None, "coverage": 3, "dataset": [], "params": [], "flags": "x", "error": "boom"},
        record("1", top1=math.nan, fp_top1=None, seconds={"synthesis": math.inf}, attempt="two", seed=None).as_dict(),
    ],
)
def test_incomplete_records(strange: dict[str, Any], fmt: Any) -> None:
    found = Record.from_data(strange)
    assert render([found, record("2")], fmt)
    assert render([found], fmt)


def test_markup_in_names_is_escaped() -> None:
    text = render([failed("1", "failed", "a | b <i>", method="a|b")], "md")
    assert "a\\|b" in text
    assert "a \\| b \\<i\\>" in text


def test_csv() -> None:
    records = [record("1", flags=["x", "y"]), failed("2", "failed", "boom", method="other", seed=1)]
    first, second = csv.DictReader(io.StringIO(render(records, "csv")))
    expected = {"cell_id": "1", "top1": "90.25", "synthesis_s": "12.34", "model": "digits:resnet8"}
    assert first.items() >= (expected | {"flags": "x;y", "reason": ""}).items()
    assert json.loads(first["params"])["method"] == {"iterations": 500}
    expected = {"status": "failed", "top1": "", "seed": "1", "reason": "boom (in synthesis)"}
    assert second.items() >= expected.items()


def test_json_replaces_nan() -> None:
    [found] = json.loads(render([record("1", top1=math.nan, unknown_key=[1])], "json"))
    assert found == record("1", unknown_key=[1]).as_dict() | {"top1": None, "mark": ""}


SECONDS = {
    "seconds": {"synthesis": 10.0, "quantization": 4.0},
    "cpu_seconds": {"synthesis": 5.0, "quantization": 2.0},
    "source_images": 10,
}


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"flags": ["cpu_shared"], "threads": 1}, ["5.0 s", "2.0 s", "7.0 s", "0.5 s"]),
        ({"threads": 1}, ["10.0 s", "4.0 s", "14.0 s", "1 s"]),
        ({"flags": ["cpu_shared"], "threads": 2}, ["10.0 s", "4.0 s", "14.0 s", "1 s"]),
        ({"flags": ["gpu_shared"], "threads": 1}, ["10.0 s", "4.0 s", "14.0 s", "1 s"]),
        ({"flags": ["cpu_shared"], "threads": 1, "cpu_seconds": {"quantization": 2.0}}, ["10.0 s", "4.0 s"]),
        ({"flags": ["cpu_shared"], "threads": 1, "cpu_seconds": {}}, ["10.0 s", "4.0 s"]),
    ],
)
def test_cells_of_one_thread_beside_others_show_cpu_seconds(changes: dict[str, Any], times: list[str]) -> None:
    layout = parse_layout(("method",), ("model",), ("synthesis", "quantization", "total", "per_image"))
    records = [record("1", **SECONDS | changes)]
    assert rows(render(records, "md", layout=layout))[0][1 : 1 + len(times)] == times
    in_cpu = times[1] == "2.0 s"
    for fmt in FORMATS:
        text = " ".join(render(records, fmt, layout=layout).replace("\\", "").split())
        assert ("of all cells are the CPU seconds of their one thread" in text) == in_cpu
        assert ("of all cells are wall time, longer than alone" in text) == ("flags" in changes and not in_cpu)
    [exported] = csv.DictReader(io.StringIO(render(records, "csv")))
    assert [exported[f"{name}_s"] for name in ("synthesis", "quantization", "total")] == ["10.0", "4.0", "14.0"]
    expected = changes.get("cpu_seconds", SECONDS["cpu_seconds"])
    assert [exported[f"cpu_{name}_s"] for name in ("synthesis", "quantization")] == [
        str(expected.get(name, "")) for name in ("synthesis", "quantization")
    ]


def test_caption_says_where_flagged_cells_differ_in_their_times() -> None:
    records = [
        record(str(threads), seed=threads, threads=threads, **SECONDS, flags=["cpu_shared"]) for threads in (1, 2)
    ]
    alone = record("4", seed=4, **SECONDS)
    text = " ".join(render([*records, failed("3", "failed", "boom", flags=["gpu_shared"]), alone], "text").split())
    assert "[2] flagged: cpu_shared" in text
    assert "cpu_shared: other jobs computed on the same CPU; synthesis and quantization of these cells are" in text
    assert "are the CPU seconds of their one thread, or wall time, longer than alone" in text
    assert "gpu_shared:" not in text


@pytest.mark.parametrize("fmt", FORMATS)
def test_fidelity_is_marked_and_explained(fmt: Any) -> None:
    given = {"zeroq": "released code", "acq": "reconstruction", "mine": "paper", "noise": "control"}
    records = [record(name, method=name, fidelity=fidelity) for name, fidelity in given.items()]
    text = " ".join(render(records, fmt).replace(r"$^\dagger$", "†").replace(r"$^\ddagger$", "‡").split())
    assert {name: text.count(f"{name}{mark}") for name, mark in zip(given, " †‡ ", strict=True)}["acq"] == 1
    assert all(f"{name}†" not in text and f"{name}‡" not in text for name in ("zeroq", "noise"))
    assert "mine‡" in text
    assert "† reconstruction by this project" in text
    assert "‡ written from the paper" in text
    assert "†" not in render([records[0]], fmt) + render([records[0]], "text")


def test_seeds_share_the_weakest_fidelity() -> None:
    seeds = [record(str(s), seed=s, fidelity=given) for s, given in enumerate(("paper", "reconstruction", ""))]
    assert [row[1] for row in rows(render(seeds, "md"))] == ["zeroq†"]
    assert [row["fidelity"] for row in csv.DictReader(io.StringIO(render(seeds, "csv")))][:1] == ["paper"]


def test_no_records_and_unknown_format() -> None:
    assert render([], "text") == "no records\n"
    assert json.loads(render([], "json")) == []
    assert render([], "csv").count("\n") == 1
    with pytest.raises(UsageError, match=r"unknown format 'pdf'; .*valid: csv, html, json, latex, md, text"):
        render([], "pdf")  # type: ignore[arg-type]


def test_frame() -> None:
    table = frame([record("1"), record("2", extra={"a": {"b": 1}})])
    assert list(table["cell_id"]) == ["1", "2"]
    assert table["seconds.synthesis"].sum() == pytest.approx(24.68)
    assert table["extra.a.b"].isna().tolist() == [True, False]
    assert frame([]).empty


def test_describe_hardware(tmp_path: Any) -> None:
    cpu: dict[str, Any] = {"device": "cpu", "device_name": "Toy", "cores": 2}
    gpu: dict[str, Any] = {"device": "cuda", "device_name": "Fast", "cores": 2}
    described = {
        "cpu: Toy, 2 cores, torch 2.9": cpu | {"packages": {"torch": "2.9"}},
        "cpu: Toy, 2 cores, compiled passes": cpu | {"passes": "compiled by g++ 12"},
        "cpu: Toy, 2 cores": cpu | {"passes": "torch"},
        "cuda: Fast": gpu,
        "cuda: Fast, triton 3.6": gpu | {"kernels": "triton 3.6"},
    }
    (tmp_path / "environments").mkdir()
    for at, environment in enumerate(described.values()):
        (tmp_path / "environments" / f"e{at}.json").write_text(json.dumps(environment))
    (tmp_path / "environments" / "broken.json").write_text("{")
    assert describe_hardware(tmp_path) == {f"e{at}": words for at, words in enumerate(described)}
    assert describe_hardware(tmp_path / "absent") == {}


def test_an_earlier_meaning_of_a_protocol_has_rows_of_its_own() -> None:
    now, earlier = scheme(8, "deploy"), scheme(8, "deploy") | {"details": {}}
    records = [record("a", scheme=earlier, top1=80.0), record("b", scheme=now, top1=90.0)]
    labels = ["w8a8@deploy", "w8a8@deploy (version 1)"]
    assert [row[0] for row in rows(render(records, "md"))] == labels
    assert "protocol deploy, deploy (version 1);" in render(records, "text")
    assert sorted(row["scheme"] for row in csv.DictReader(io.StringIO(render(records, "csv")))) == labels
    assert "(version" not in render([record("a"), record("b", scheme=now)], "text")
