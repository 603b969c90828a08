from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from tests.report.records import changed, failed, record, scheme

from dfqbench.api import UsageError
from dfqbench.report.plots.charts import pareto, tick_label
from dfqbench.report.plots.draw import draw_plots, save_plots
from dfqbench.report.plots.scales import accuracy_span, time_span, time_ticks
from dfqbench.report.plots.style import COLOURS, looks
from dfqbench.run.store.record import Record


def run() -> list[Record]:
    diagnostics = {
        "version": 1,
        "layers": [{"name": f"bn{at}", "mean_gap": 0.1 * at + 0.05} for at in range(3)],
        "over_training": [{"step": 1, "homogeneity": 0.5}, {"step": 9, "homogeneity": 0.75}],
    }
    return [
        record(
            f"{name}{bits}{seed}",
            method=name,
            seed=seed,
            scheme=scheme(bits),
            top1=top1 - 10 * (bits == 3) + seed,
            seconds={"setup": 1.0, "synthesis": synthesis, "quantization": 2.0, "evaluation": 1.0, "wall": 9.0},
            curve=[{"step": 5, "top1": 60.0}, {"step": 9, "top1": 85.0}, {"step": 12, "top1": top1}],
            oracle={"top1": 85.0, "step": 9},
            diagnostics=diagnostics,
        )
        for name, synthesis, top1 in (("a", 1.0, 80.0), ("b", 10.0, 90.0), ("noise", 0.5, 50.0))
        for bits in (4, 3)
        for seed in (0, 1)
    ]


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    handles, labels = axes.get_legend_handles_labels()
    found = {}
    for handle, label in zip(handles, labels, strict=True):
        line = handle[0] if hasattr(handle, "lines") else handle
        if hasattr(line, "get_xdata"):
            found[label] = ([float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()])
    return found


def axes_of(kind: str, records: list[Record] | None = None) -> Any:
    return draw_plots(run() if records is None else records, [kind])[0].figure.axes[0]


def test_accuracy_against_bits_has_a_panel_for_each_width() -> None:
    wide, narrow = draw_plots(run(), ["bits"])[0].figure.axes
    assert (wide.get_xlabel(), narrow.get_xlabel()) == ("w4a4", "w3a3")
    assert [lines(wide)["a"][1], lines(narrow)["a"][1]] == [[80.5], [70.5]]
    assert lines(wide)["noise (control)"][1] == [50.5]
    assert wide.get_ylim() != narrow.get_ylim()
    legend = narrow.get_legend()
    assert legend is not None
    assert {"a", "b", "noise (control)"} <= {text.get_text() for text in legend.get_texts()}


def test_axes_show_ten_points_or_more() -> None:
    low, high = accuracy_span([98.7, 99.1])
    assert high - low == 10
    assert high <= 101
    assert accuracy_span([1.0, 99.0])[0] < 1.0
    axes = axes_of("time", [record("1", seconds={"synthesis": 1.0, "quantization": 1.0})])
    assert axes.get_ylim()[1] - axes.get_ylim()[0] == 10


@pytest.mark.parametrize("times", [[3.0], [0.05, 0.5], [45.0, 700.0], [1.0, 5000.0], [0.0, 400_000.0]])
def test_times_have_a_few_round_ticks(times: list[float]) -> None:
    low, high = time_span(times)
    ticks = time_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert all(after / before >= 1.4 for before, after in itertools.pairwise(ticks))
    labels = [tick_label(tick) for tick in ticks]
    assert len(set(labels)) == len(labels)
    assert not {"1.7 min", "8.3 min", "60 s", "60 min"} & set(labels)
    # Letters of seven points in five inches.
    gaps = [5 * math.log(after / before) / math.log(high / low) for before, after in itertools.pairwise(ticks)]
    assert all(
        gap > 0.065 * (len(a) + len(b)) / 2 for gap, (a, b) in zip(gaps, itertools.pairwise(labels), strict=True)
    )


def test_accuracy_against_time_has_pareto_front() -> None:
    found = lines(axes_of("time"))
    assert found["a"] == ([3.0], [80.5])
    assert found["Pareto front"] == ([3.0, 12.0], [80.5, 90.5])
    points = [(2.0, 5.0), (1.0, 3.0), (3.0, 4.0), (1.0, 2.0), (4.0, 6.0)]
    assert pareto(points) == [(1.0, 3.0), (2.0, 5.0), (4.0, 6.0)]


def test_time_by_phase() -> None:
    axes = axes_of("phases")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["noise (control)", "b", "a"]
    assert [patch.get_width() for patch in axes.patches][:7] == [1.0, 0.5, 2.0, 1.0, 0.0, 1.0, 10.0]


def test_times_beside_other_jobs_are_cpu_seconds() -> None:
    shared = {"flags": ["cpu_shared"], "threads": 1, "cpu_seconds": {"synthesis": 0.5, "quantization": 1.5}}
    records = [changed(entry, **shared) if entry.method == "a" else entry for entry in run()]
    axes = axes_of("time", records)
    assert (lines(axes)["a"][0], lines(axes)["b"][0]) == ([2.0], [12.0])
    assert axes.get_xlabel() == "synthesis and quantization (cpu_shared: CPU seconds)"
    assert axes_of("time").get_xlabel() == "synthesis and quantization"
    bars = axes_of("phases", records)
    widths = [patch.get_width() for patch in bars.patches]
    assert widths[-5:] == [1.0, 0.5, 1.5, 1.0, 0.0]
    assert bars.get_xlabel() == "seconds (cpu_shared: CPU seconds)"


def test_time_is_not_averaged_over_schemes() -> None:
    made = [
        record(str(bits), scheme=scheme(bits), seconds={"synthesis": seconds})
        for bits, seconds in ((4, 0.5), (3, 100.0))
    ]
    plots = draw_plots(made, ["phases"])
    assert [plot.title.rpartition(", ")[2] for plot in plots] == ["w4a4@gdfq", "w3a3@gdfq"]
    bars: list[Any] = [plot.figure.axes[0].patches[1] for plot in plots]
    assert [bar.get_width() for bar in bars] == [0.5, 100.0]


def legend_of(kind: str, records: list[Record]) -> tuple[list[str], Any]:
    *_, axes = draw_plots(records, [kind])[0].figure.axes
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text().replace("\n", " ") for text in legend.get_texts()], axes


def test_legend_marks_reconstructions_and_says_so() -> None:
    made = [changed(entry, fidelity="reconstruction" if entry.method == "a" else "released code") for entry in run()]
    for kind in ("bits", "phases"):
        names, axes = legend_of(kind, made)
        assert names[-1].startswith("† reconstruction by this project")
        assert "a†" in [*names, *(label.get_text() for label in axes.get_yticklabels())]
        assert not any(name.startswith("†") for name in legend_of(kind, run())[0])


def bar_of(records: list[Record]) -> float:
    axes: Any = draw_plots(records, ["bits"])[0].figure.axes[0]
    [bars] = [bar for bar in axes.containers if bar.has_yerr]
    low, high = (float(end[1]) for end in bars[2][0].get_segments()[0])
    return (high - low) / 2


def test_error_bars_are_the_deviation_or_the_binomial_error_of_one_seed() -> None:
    one = [record("4"), record("3", scheme=scheme(3))]
    assert bar_of(one) == pytest.approx(1.28)
    assert bar_of([changed(entry, top1_se=None) for entry in one]) == pytest.approx(1.2765, abs=1e-3)
    assert bar_of([entry for entry in run() if entry.method == "a"]) == pytest.approx(0.5**0.5)
    axes = draw_plots(one, ["bits"])[0].figure.axes[-1]
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "bars: binomial error (one seed)"


def test_legend_names_method_whose_first_seed_has_no_curve() -> None:
    made = [changed(entry, curve=None) if entry.seed == 0 else entry for entry in run()]
    assert {"a", "b", "noise (control)"} <= set(lines(axes_of("curves", made)))


def test_titles_name_images_and_precision_where_they_differ() -> None:
    exact = [changed(entry, cell_id=f"x{entry.cell_id}", precision="mixed-bfloat16") for entry in run()]
    titles = [plot.title for plot in draw_plots([*run(), *exact], ["bits"])]
    assert [title.rpartition(", ")[2] for title in titles] == ["float32", "mixed-bfloat16"]
    assert all("540 images" in title for title in titles)


def test_learning_curves_mark_the_last_state_and_the_oracle() -> None:
    axes = axes_of("curves")
    assert lines(axes)["a"] == ([5.0, 9.0, 12.0], [60.0, 85.0, 80.0])
    assert {(12.0, 80.0), (9.0, 85.0)} <= {
        tuple(map(float, *line.get_xydata())) for line in axes.lines if len(line.get_xydata()) == 1
    }


def test_curves_of_diagnostics() -> None:
    assert lines(axes_of("homogeneity"))["b"] == ([1.0, 9.0], [0.5, 0.75])
    xs, ys = lines(axes_of("layers"))["a"]
    assert xs == [1.0, 2.0, 3.0]
    assert ys == pytest.approx([0.05, 0.15, 0.25])


def test_plots_without_data_are_omitted() -> None:
    plain = [record("1"), failed("2", "failed", "boom", method="x")]
    assert {plot.kind for plot in draw_plots(plain)} == {"phases"}
    assert draw_plots([failed("2", "failed", "boom")]) == []
    with pytest.raises(UsageError, match="unknown plot 'bit'; did you mean bits"):
        draw_plots(plain, ["bit"])


def test_looks_differ_without_colour() -> None:
    found = looks([(f"m{at}", False) for at in range(8)] + [("noise", True), ("real", True)])
    assert len({(look.marker, str(look.line)) for look in found.values() if not look.hollow}) == 8
    assert len({look.colour for look in found.values()}) == 10
    assert set(COLOURS) >= {look.colour for look in found.values() if not look.hollow}


def test_saved_files_are_reproducible(tmp_path: Path) -> None:
    hostile = '$\\frac{1$ <script>&"_x_'
    plots = draw_plots([record(str(bits), method=hostile, scheme=scheme(bits)) for bits in (4, 3)], ["bits"])
    files = save_plots(plots, tmp_path / "plots")
    assert [file.suffix for file in files] == [".png", ".svg"]
    assert Image.open(io.BytesIO(files[0].read_bytes())).width > 600
    vector = files[1].read_text()
    ElementTree.fromstring(vector)  # noqa: S314 - our own file
    assert ("<script>" in vector, "&lt;script&gt;" in vector) == (False, True)
    again = save_plots(plots, tmp_path / "again")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
