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
from tests.report.records import changed, failed, scheme
from tests.report.records import record as cell
from tests.report.test_pictures import shown
from tests.report.test_plots import run

from dfqbench.report.formatting import decimals
from dfqbench.report.html.head import read_command
from dfqbench.report.html.page import report_page
from dfqbench.run.store.record import Record

pytestmark = pytest.mark.timeout(120)
PUBLISHED = cell(
    "p",
    target="imagenet",
    budget="paper",
    model={"name": "torchvision:resnet18", "ref": "torchvision:resnet18"},
    dataset={"name": "imagenet", "n": 50_000},
    fp_top1=71.47,
    top1=26.0,
    drop=45.47,
    seconds={"synthesis": 12.0, "quantization": 1.0},
)
"""A cell about which papers print numbers."""
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


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are made without matplotlib's plots, which take most of the time."""
    monkeypatch.setattr("dfqbench.report.html.page.PLOTS", ())


def assert_shows_the_records_numbers(rows: list[list[str]]) -> None:
    """Top-1 and synthesis of the test's run, by method and scheme."""
    assert {(row[0], row[2]): (row[3], row[6]) for row in rows if row[9] == "ok"} == {
        (name, scheme): (f"{top1 - less:.2f} ± 0.71 (2)", seconds)
        for name, top1, seconds in (("a", 80.5, "1.0 s"), ("b", 90.5, "10.0 s"), ("noise (control)", 50.5, "0.50 s"))
        for scheme, less in (("w4a4@gdfq", 0), ("w3a3@gdfq", 10))
    }


def test_summary_shows_the_records_numbers(page: Path) -> None:
    rows = HtmlReader(page.read_text(encoding="utf-8")).summary
    assert_shows_the_records_numbers(rows)
    assert {row[0]: (row[3], row[9]) for row in rows if row[9] != "ok"} == {
        "broken": ("failed", "failed"),
        "hungry": ("out of memory", "out of memory"),
    }


def test_page_marks_fidelity_and_says_what_the_mark_means() -> None:
    made = [changed(entry, fidelity="reconstruction" if entry.method == "a" else "") for entry in run()]
    text = report_page([(entry, Path("none")) for entry in made], {}, {}, "x")
    assert {row[0] for row in HtmlReader(text).summary} == {"a†", "b", "noise (control)"}
    assert text.count("† reconstruction by this project") == 2  # under the results and under the table
    assert "†" not in report_page([(entry, Path("none")) for entry in run()], {}, {}, "x")


@pytest.mark.usefixtures("no_plots")
def test_head_says_when_where_and_how(tmp_path: Path) -> None:
    environments = {"e1": {"packages": {"dfqbench": "0.1.0"}}}
    records = [changed(entry, revision="0123456789abcdef") for entry in run()]
    pairs = [(entry, tmp_path) for entry in [*records, failed("f", "oom", "out of memory", method="x")]]
    text = report_page(pairs, {"e1": "cpu: Toy"}, environments, "t", commands={"w4a4": "dfqbench run --grid w4a4"})
    assert HtmlReader(text).sections["head"] == [
        ("date", "2025-01-01"),
        ("machine", "cpu: Toy"),
        ("command", "dfqbench run --grid w4a4"),
        ("version", "dfqbench 0.1.0, revision 0123456789ab; dfqbench 0.1.0"),
        ("cells", "12 finished, 1 oom"),
        ("seeds", "0, 1"),
        ("networks", "resnet8"),
        ("on", "digits (540 images)"),
        ("budget", "short"),
    ]


@pytest.mark.parametrize("content", ["", "[]", '{"command": 3}', "{" * 9])
def test_unreadable_command_is_left_out(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    assert read_command(tmp_path) == ""
    assert read_command(tmp_path / "missing") == ""


@pytest.mark.usefixtures("no_plots")
def test_methods_have_year_link_and_fidelity(tmp_path: Path) -> None:
    paper = "Cai et al., ZeroQ, CVPR 2020"
    about: dict[str, Any] = {"title": "ZeroQ", "paper": paper, "fidelity": "released code"}
    linked = cell("1", **about, link="https://arxiv.org/abs/2001.00281", versions={"method": "zeroq 1"})
    script = cell("2", **about | {"title": "Bad"}, method="bad", link="javascript:alert(1)")
    text = report_page([(linked, tmp_path), (script, tmp_path)], {}, {}, "t")
    reader = HtmlReader(text)
    [rows] = [rows for name, rows in reader.tables if name == "methods"]
    assert rows[1:] == [
        ["bad", "Bad", "2020", paper, "released code", "-"],
        ["zeroq", "ZeroQ", "2020", paper, "released code", "zeroq 1"],
    ]
    assert '<a href="https://arxiv.org/abs/2001.00281" rel="noreferrer">' in text
    assert "javascript:" not in text


def test_no_drop_is_zero_without_a_sign() -> None:
    assert [decimals(2)(number) for number in (-0.001, -0.01, 0.0)] == ["0.00", "-0.01", "0.00"]


def test_order_is_by_accuracy_within_a_scheme(page: Path) -> None:
    rows = HtmlReader(page.read_text(encoding="utf-8")).summary
    assert [(row[2], row[0]) for row in rows] == [
        ("w4a4@gdfq", "b"),
        ("w4a4@gdfq", "a"),
        ("w4a4@gdfq", "noise (control)"),
        ("w4a4@gdfq", "broken"),
        ("w4a4@gdfq", "hungry"),
        ("w3a3@gdfq", "b"),
        ("w3a3@gdfq", "a"),
        ("w3a3@gdfq", "noise (control)"),
    ]


@pytest.mark.usefixtures("no_plots")
def test_columns_without_words_are_left_out(page: Path, tmp_path: Path) -> None:
    def headers(text: str) -> list[str]:
        return next(rows[0] for name, rows in HtmlReader(text).tables if name == "summary")

    assert headers(page.read_text(encoding="utf-8"))[9:] == ["state"]
    both = [(PUBLISHED, tmp_path), (cell("2"), tmp_path)]
    assert headers(report_page(both, {}, {}, "t"))[9:] == ["state", "verdict", "claimed", "target", "budget"]


@pytest.mark.usefixtures("no_plots")
def test_thousands_of_cells_stay_small(tmp_path: Path) -> None:
    many = [cell(f"{m}-{w}", method=f"m{m}", scheme=scheme(w)) for m in range(100) for w in (8, 6, 5, 4, 3, 2)]
    sizes = [len(report_page([(entry, tmp_path) for entry in part], {}, {}, "t")) for part in (many[:450], many)]
    # Beyond the sections' limit a cell costs a row, an entry of a table, and its points in three charts.
    assert (sizes[1] - sizes[0]) / 150 < 3_000
    assert "content-visibility: auto" in report_page([], {}, {}, "t")


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


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)], ids=["desktop", "phone"])
def test_results_fit_or_scroll_with_the_first_column_fixed(
    browser: Browser, tmp_path: Path, width: int, height: int
) -> None:
    small = [changed(entry, label=f"{entry.method}+distill:clusterq") for entry in run()]
    file = tmp_path / "report.html"
    file.write_text(report_page([(entry, tmp_path) for entry in [PUBLISHED, *small]], {}, {}, "t"), encoding="utf-8")
    browser.open(file, width, height)
    assert browser.run("document.documentElement.scrollWidth") <= width
    box = "document.querySelector('#results .scroll')"
    hidden = browser.run(f"{box}.scrollWidth - {box}.clientWidth")
    assert (hidden > 0) == (width == 390)
    browser.run(f"{box}.scrollLeft = 200")
    assert browser.run(f"{box}.scrollLeft") == min(200, hidden)
    corner = "document.querySelector('#summary tbody td').getBoundingClientRect().left"
    assert browser.run(corner) == browser.run(f"{box}.getBoundingClientRect().left")


def test_points_answer_the_pointer_and_methods_can_be_hidden(browser: Browser, page: Path) -> None:
    browser.open(page, 1400, 900)
    browser.run("document.getElementById('views').scrollIntoView()")
    point = "document.querySelector('.chart a.point')"
    browser.run(f"{point}.dispatchEvent(new PointerEvent('pointerover', {{bubbles: true}}))")
    words = browser.run("document.getElementById('tip').textContent")
    assert words.startswith("a\ntop-1 80.50 ± 0.71, drop 8.25\nseeds 0, 1\n")
    assert browser.run("document.getElementById('tip').hidden") is False
    assert browser.run(f"{point}.querySelector('title')") is None
    shown = "Array.from(document.querySelectorAll('.chart a')).filter(a => a.getBoundingClientRect().width).length"
    before = browser.run(shown)
    browser.run("document.querySelector('.legend button').click()")
    assert browser.run(shown) == before * 2 / 3


def test_first_paint_does_not_wait_for_what_is_out_of_sight(browser: Browser, page: Path) -> None:
    browser.open(page, 390, 844)
    style = "getComputedStyle(document.querySelector('{}')).contentVisibility"
    for part in (".chart", ".figures figure", "#cells details"):
        assert browser.run(style.format(part)) == "auto"


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
    assert [row[0] for row in browser.run(TABLE)] == ["noise (control)"]
    assert browser.run("document.getElementById('shown').textContent") == "1 of 8 rows"
    browser.run(TYPE.replace("WORDS", "''"))
    assert len(browser.run(TABLE)) == 8


def test_page_without_javascript(browser: Browser, page: Path) -> None:
    browser.open(page, 390, 844, script=False)
    assert browser.run("document.documentElement.dataset.ready") is None
    assert_shows_the_records_numbers(browser.run(TABLE))
    assert browser.run("document.getElementById('filters').getBoundingClientRect().height") == 0
    browser.run("document.getElementById('views').scrollIntoView()")
    drawn = browser.run(
        "Array.from(document.querySelectorAll('.chart a use')).filter(u => u.getBoundingClientRect().width)"
    )
    assert len(drawn) == 18


def test_link_opens_the_cell(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 900)
    browser.run("document.querySelector('#summary a').click()")
    browser.run("new Promise(done => setTimeout(done, 200))")
    opened = browser.run("Array.from(document.querySelectorAll('details[open]')).map(d => d.innerText)")
    assert len(opened) == 1
    assert "iterations" in opened[0]
