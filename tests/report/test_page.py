"""The report's page: its numbers are the records', it reads without a script, and no text of a record is markup."""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.report.browser import Browser, browsing, chromium
from tests.report.html_reader import HtmlReader
from tests.report.records import changed, failed
from tests.report.test_pictures import shown
from tests.report.test_plots import run

from dfqbench.report.html.page import report_page
from dfqbench.run.store.record import Record

pytestmark = pytest.mark.timeout(120)
HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>\"'`{{7*7}}&"


def attempts(tmp_path: Path) -> list[tuple[Record, Path]]:
    found: list[tuple[Record, Path]] = []
    extra = failed("f1", "failed", "the loss is not finite", "RuntimeError", method="broken")
    for record in [*run(), extra, failed("f2", "oom", "out of memory", method="hungry")]:
        folder = tmp_path / record.cell_id / "attempt-1"
        folder.mkdir(parents=True)
        (folder / "log.txt").write_text("first line\nlast line of " + record.cell_id + "\n")
        if record.status == "ok":
            record.preprocessing = shown().preprocessing
            images = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
            save_file({"images": images, "labels": np.arange(64) % 10}, folder / "images.safetensors")
        found.append((record, folder))
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    environments = {"e1": {"device": "cpu", "cpu": "Toy", "packages": {"torch": "2.9"}}}
    text = report_page(attempts(folder), {"e1": "cpu: Toy"}, environments, "dfqbench: test")
    file = folder / "report.html"
    file.write_text(text, encoding="utf-8")
    return file


def assert_shows_the_records_numbers(rows: list[list[str]]) -> None:
    """Top-1 and synthesis of the test's run, by method and scheme."""
    assert {(row[0], row[2]): (row[3], row[6]) for row in rows if row[9] == "ok"} == {
        (name, scheme): (f"{top1 - less:.2f} ± 0.71 (2)", seconds)
        for name, top1, seconds in (("a", 80.5, "1.0 s"), ("b", 90.5, "10.0 s"), ("noise (floor)", 50.5, "0.50 s"))
        for scheme, less in (("w4a4@gdfq", 0), ("w3a3@gdfq", 10))
    }


def test_summary_shows_the_records_numbers(page: Path) -> None:
    rows = HtmlReader(page.read_text(encoding="utf-8")).summary
    assert_shows_the_records_numbers(rows)
    assert {row[0]: (row[3], row[9]) for row in rows if row[9] != "ok"} == {
        "broken": ("failed", "failed"),
        "hungry": ("out of memory", "out of memory"),
    }


def test_page_is_complete_and_self_contained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    assert HtmlReader(text).active == ["script"]
    assert "script-src 'sha256-" in text
    headings = ("accuracy against bits", "accuracy against time", "Learning curves", "Environments", "Diagnostics")
    cells = ("last line of a40", "RuntimeError", "the loss is not finite", "iterations")
    machine = ("<dt>hardware</dt><dd>cpu: Toy</dd>", "packages.torch")
    for part in (*headings, *cells, *machine, "data:image/jpeg;base64,", "data:image/svg+xml;base64,"):
        assert part in text


def test_page_explains_flags_and_shows_both_times(tmp_path: Path) -> None:
    spent = {"threads": 1, "cpu_seconds": {"synthesis": 0.25, "quantization": 0.5}}
    record = changed(run()[0], **spent, flags=["cpu_shared"])
    text = report_page([(record, tmp_path)], {}, {}, "shared")
    assert [row[6:8] for row in HtmlReader(text).summary] == [["0.25 s", "0.75 s"]]
    for part in ("seconds.synthesis</dt><dd>1", "cpu_seconds.synthesis</dt><dd>0.25", "the CPU seconds of their one"):
        assert part in text
    assert "cpu_shared (other jobs computed on the same CPU)" in text


def hostile(data: Any) -> Any:
    """The data with every text replaced, but for what decides how it is read."""
    if isinstance(data, dict):
        kept = ("status", "cell_id", "schema", "control")
        return {key: entry if key in kept else hostile(entry) for key, entry in data.items()} | {HOSTILE: HOSTILE}
    if isinstance(data, list):
        return [hostile(entry) for entry in data]
    return HOSTILE if isinstance(data, str) else data


def test_markup_in_records_is_escaped(tmp_path: Path) -> None:
    bad = []
    for record, folder in attempts(tmp_path):
        (folder / "log.txt").write_text(HOSTILE)
        entry = hostile(record.as_dict())
        entry |= {"finished_at": "2025", "flags": [HOSTILE], "label": HOSTILE + record.method}
        entry["error"] = entry["error"] and entry["error"] | {"traceback": HOSTILE}
        bad.append((Record.from_data(entry), folder))
    with warnings.catch_warnings():
        # Fonts may lack characters; the page does not depend on them.
        warnings.simplefilter("ignore")
        text = report_page(bad, {HOSTILE: HOSTILE}, {HOSTILE: {HOSTILE: HOSTILE}}, HOSTILE)
    reader = HtmlReader(text)
    assert reader.active == ["script"]
    assert "onerror=alert(1)>" not in text
    assert html.escape("{{7*7}}&") in text
    assert any(HOSTILE in field for row in reader.summary for field in row)


def test_incomplete_records(tmp_path: Path) -> None:
    strange: list[dict[str, Any]] = [
        {},
        {"status": "ok", "top1": 50, "model": "resnet18", "scheme": "w4a4"},
        {"status": "never heard of", "error": "boom", "params": [], "diagnostics": 3, "curve": "x", "seconds": None},
        {"status": "ok", "top1": 10.0, "diagnostics": {"layers": [1, {"name": None}], "over_training": [None]}},
    ]
    text = report_page([(Record.from_data(record), tmp_path) for record in strange], {}, {}, "strange")
    assert len(HtmlReader(text).summary) >= 1
    assert "No records" in report_page([], {}, {}, "empty")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on the path; name one in DFQBENCH_CHROMIUM to check the page as rendered")
    with browsing(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


TABLE = """Array.from(document.querySelectorAll('#summary tbody tr')).filter(r => r.getBoundingClientRect().height > 0)
    .map(r => Array.from(r.cells).map(c => c.innerText.trim()))"""

BOXES_FIT = """Array.from(document.querySelectorAll('.scroll'))
    .every(box => box.getBoundingClientRect().right <= innerWidth + 1)"""
IMAGE_WIDTHS = """Promise.all(Array.from(document.images)
    .map(image => { image.loading = 'eager'; return image.decode().then(() => image.naturalWidth); }))"""
TYPE = """(() => { const box = document.querySelector('#filters input');
    box.value = WORDS; box.dispatchEvent(new Event('input')); })()"""


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_rendered_summary(browser: Browser, page: Path, width: int, height: int) -> None:
    browser.open(page, width, height)
    assert browser.run("document.documentElement.dataset.ready") == "yes"
    assert browser.run("innerWidth") == width
    assert_shows_the_records_numbers(browser.run(TABLE))
    # The page itself never scrolls sideways, and what is wider scrolls in its own box.
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(BOXES_FIT)
    assert all(natural > 0 for natural in browser.run(IMAGE_WIDTHS))


def test_sorting_and_filtering(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 900)
    column = "Array.from(document.querySelectorAll('#summary thead button')).find(b => b.textContent === 'top-1')"
    tops = f"{TABLE}.map(r => r[3])"
    for falling in (True, False):
        browser.run(f"{column}.click()")
        numbers = [float(top.split()[0]) for top in browser.run(tops) if top[0].isdigit()]
        assert len(numbers) == 6
        assert numbers == sorted(numbers, reverse=falling)
        assert browser.run(tops)[-1] in {"failed", "out of memory"}
    assert browser.run("document.querySelector('[aria-sort]').ariaSort") == "ascending"
    browser.run(TYPE.replace("WORDS", "'noise w4a4'"))
    assert [row[0] for row in browser.run(TABLE)] == ["noise (floor)"]
    assert browser.run("document.getElementById('shown').textContent") == "1 of 8 rows"
    browser.run(TYPE.replace("WORDS", "''"))
    assert len(browser.run(TABLE)) == 8


def test_page_without_javascript(browser: Browser, page: Path) -> None:
    browser.open(page, 390, 844, script=False)
    assert browser.run("document.documentElement.dataset.ready") is None
    assert_shows_the_records_numbers(browser.run(TABLE))
    assert browser.run("document.getElementById('filters').getBoundingClientRect().height") == 0


def test_link_opens_the_cell(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 900)
    browser.run("document.querySelector('#summary a').click()")
    browser.run("new Promise(done => setTimeout(done, 200))")
    opened = browser.run("Array.from(document.querySelectorAll('details[open]')).map(d => d.innerText)")
    assert len(opened) == 1
    assert "iterations" in opened[0]
