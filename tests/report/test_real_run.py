"""A real run, diagnosed, on the page: every number that it shows is computed again from the records alone."""

# ruff: noqa: F811 - pytest hands fixtures over by name

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.cli.calls import Call
from tests.cli.conftest import call  # noqa: F401 - a fixture
from tests.report.html_reader import HtmlReader

from dfqbench.report.formatting import duration

MARKS = {"noise": " (control)", "real": " (control)", "dffg": "‡"}

pytestmark = pytest.mark.slow

Key = tuple[str, str, str]


def by_place(records: Sequence[Mapping[str, Any]]) -> dict[Key, list[Mapping[str, Any]]]:
    """Finished records by method, network and scheme as they are shown; the newest attempt at each seed."""
    newest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for record in sorted(records, key=lambda entry: str(entry["finished_at"])):
        if record["status"] in {"ok", "collapsed"}:
            newest[record["label"], record["model"]["name"], record["scheme"]["label"], record["seed"]] = record
    found: dict[Key, list[Mapping[str, Any]]] = {}
    for (label, model, scheme, _), record in newest.items():
        key = (label + MARKS.get(record["method"], ""), model.partition(":")[2], scheme)
        found.setdefault(key, []).append(record)
    return found


def percent(values: Sequence[float], images: int = 540, *, spread: bool = True, count: bool = False) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    if not spread:
        return mean
    if len(values) == 1:
        share, z = values[0] / 100, 1 / images
        return f"{mean} ±{100 * math.sqrt(share * (1 - share) * z + z * z / 4) / (1 + z):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" + (f" ({len(values)})" if count else "")


def bare(text: str, places: Iterable[Key]) -> str:
    """Return the method at the start of a cell's text, without its recipe and images."""
    return max((place[0] for place in places if text.startswith(place[0])), key=len, default=text)


def check(text: str, records: Sequence[Mapping[str, Any]]) -> int:
    """Holds a page against records, and returns how many places it has compared."""
    page, places = HtmlReader(text), by_place(records)
    shown = {(bare(row[0], places), row[1], row[2]): row for row in page.summary if row[9] in {"ok", "collapsed"}}
    assert set(shown) == set(places)
    for key, group in places.items():
        row = shown[key]
        assert row[3] == percent([r["top1"] for r in group], count=True)
        assert row[4] == percent([r["fp_top1"] - r["top1"] for r in group], spread=False)
        assert row[5] == percent([r["agreement"] for r in group])
        synthesis, quantization = (
            statistics.fmean(r["seconds"][phase] for r in group) for phase in ("synthesis", "quantization")
        )
        assert row[6:9] == [duration(synthesis), duration(synthesis + quantization), str(len(group))]
    _check_tables(page, places)
    for record in records:
        _check_section(page, record)
    return len(places)


def _check_tables(page: HtmlReader, places: Mapping[Key, Sequence[Mapping[str, Any]]]) -> None:
    """Every place has its numbers in the tables of results and of diagnostics."""
    fields: dict[tuple[str, ...], str] = {}
    for _, (models, headers, *body) in (table for table in page.tables if table[0] == "results"):
        for scheme, method, *row in body:
            name = bare(method, places)
            fields |= {(name, models[-1], scheme, header): text for header, text in zip(headers, row, strict=True)}
    for place, group in places.items():
        assert fields[(*place, "top-1")].startswith(percent([r["top1"] for r in group], count=True))
        for header, key in {"BNS": "bns", "homogeneity": "homogeneity", "confidence": "confidence"}.items():
            number = fields[(*place, header)].partition(" ")[0]
            half = 0.5 * 10.0 ** -len(number.partition(".")[2]) + 1e-9
            assert float(number) == pytest.approx(statistics.fmean(r["diagnostics"][key] for r in group), abs=half)


def _check_section(page: HtmlReader, record: Mapping[str, Any]) -> None:
    """Facts, times and every parameter of a cell's own section."""
    shown = page.sections[f"cell-{record['run']}-{record['cell_id']}-{record['attempt']}"]
    facts = dict(reversed(shown))
    for key in ("fp_top1", "top1", "top5", "agreement", "seed"):
        if record.get(key) is not None:
            assert float(facts[key]) == pytest.approx(float(record[key]), rel=1e-5)
    for key in ("budget", "precision", "environment", "method", "status"):
        assert facts[key] == record[key]
    for phase, spent in (record.get("seconds") or {}).items():
        assert float(facts[f"seconds.{phase}"]) == pytest.approx(spent, rel=1e-5, abs=1e-9)
    for prefix, part in (("", "method"), ("quantizer.", "quantizer")):
        for key, value in record["params"][part].items():
            text = (
                f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
            )
            assert (prefix + key, text) in shown


@pytest.mark.timeout(400)
def test_page_of_a_real_run(call: Call, tmp_path: Path) -> None:
    grid = ("run", "--grid", "bits", "--on", "digits", "--budget", "smoke", "--seeds", "0,1", "--executor", "inline")
    out = ("--out", str(tmp_path))
    for arguments in (
        (*grid, "--methods", "dffg,noise,real", "--bits", "w4a4,w2a2"),
        ("diagnose", "bits", "--device", "cpu"),
        ("report", "bits"),
    ):
        output = call(*arguments, *out)
        assert output.status == 0, output
    records = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("bits/cells/*/attempt-*/record.json"))]
    text = (tmp_path / "bits" / "report.html").read_text(encoding="utf-8")
    assert check(text, records) == 6
    assert all(entry["diagnostics"]["version"] for entry in records)
    # The check sees a wrong number.
    wrong = [entry | {"top1": entry["top1"] + 0.02} for entry in records]
    with pytest.raises(AssertionError):
        check(text, wrong)
