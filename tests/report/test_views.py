"""Charts inside the page: where points lie, what they say, and published numbers beside the measured ones."""

from __future__ import annotations

import pytest
from tests.report.records import changed, record, scheme
from tests.report.test_page import PUBLISHED
from tests.report.test_plots import run

from dfqbench.report.html import views
from dfqbench.report.html.views import SHAPES, Chart, Mark, page_views
from dfqbench.report.literature.publication_index import published_index
from dfqbench.report.plots.style import MARKERS
from dfqbench.run.store.record import Record


def of(records: list[Record]) -> views.Views:
    return page_views(records, lambda record: f"cell-{record.cell_id}", published_index())


def by_label(drawn: views.Views, chart: Chart) -> dict[str, Mark]:
    return {drawn.legend[mark.method].label: mark for mark in chart.marks if not mark.published}


def test_one_chart_of_time_for_each_scheme() -> None:
    drawn = of(run())
    [view] = drawn.time
    assert view.title == "digits, resnet8, budget short: accuracy against time"
    assert view.note == "bars: deviation over seeds"
    assert [chart.title for chart in view.charts] == ["w4a4@gdfq", "w3a3@gdfq"]
    marks = by_label(drawn, view.charts[0])
    assert set(marks) == {"a", "b", "noise (control)"}
    # Longer lies to the right, better lies higher.
    assert marks["noise (control)"].x < marks["a"].x < marks["b"].x
    assert marks["noise (control)"].y > marks["a"].y > marks["b"].y
    assert marks["a"].anchor == "cell-a40"
    assert marks["a"].about.splitlines() == [
        "a",
        "top-1 80.50 ± 0.71, drop 8.25",
        "seeds 0, 1",
        "synthesis and quantization 3.0 s",
        "recipe calibrate",
        "budget short",
    ]


def test_pareto_front_goes_through_the_best_competitors() -> None:
    drawn = of(run())
    [front] = [curve for curve in drawn.time[0].charts[0].curves if curve.method < 0]
    marks = by_label(drawn, drawn.time[0].charts[0])
    a, b = marks["a"], marks["b"]
    assert front.points == f"{a.x:g},{a.y:g} {b.x:g},{a.y:g} {b.x:g},{b.y:g}"


def test_recipe_and_fidelity_are_told() -> None:
    [mark] = (
        of([record("1", quantizer="distill:gdfq", recipe="gdfq", fidelity="reconstruction", seconds=SECONDS)])
        .time[0]
        .charts[0]
        .marks
    )
    assert "recipe distill:gdfq\nbudget short; reconstruction" in mark.about


SECONDS = {"synthesis": 1.0, "quantization": 1.0}


def test_published_numbers_are_beside_the_measured_one() -> None:
    [measured, *published] = of([PUBLISHED]).time[0].charts[0].marks
    assert len(published) > 5
    assert {mark.x for mark in published} == {measured.x + views.BESIDE}
    assert all(mark.published and "published: " in mark.about and "verdict: " in mark.about for mark in published)
    assert all(views.TOP <= mark.y <= views.HEIGHT - views.BOTTOM for mark in published)


def test_bits_have_a_linear_and_a_logarithmic_axis() -> None:
    tops = {"a": (99.4, 94.0, 40.0), "b": (98.4, 93.0, 45.0)}
    records = [
        record(f"{name}{bits}", method=name, scheme=scheme(bits), top1=top1)
        for name, numbers in tops.items()
        for bits, top1 in zip((4, 3, 2), numbers, strict=True)
    ]
    drawn = of(records)
    linear, log = drawn.bits[0].charts
    assert [label for _, label in linear.x_ticks] == ["w4a4", "w3a3", "w2a2"]
    gaps = []
    for chart in (linear, log):
        a, b = ([mark.y for mark in chart.marks if drawn.legend[mark.method].label == name] for name in tops)
        assert a[0] < b[0]
        assert a[2] > b[2]
        gaps.append(abs(a[0] - b[0]))
    # A point at 99 % is not one blob on the second axis.
    assert gaps[1] > 8 * gaps[0]
    assert {"99", "95"} <= {label for _, label in log.y_ticks}


@pytest.mark.parametrize("top1", [0.0, 100.0])
def test_points_at_the_ends_lie_on_the_chart(top1: float) -> None:
    records = [changed(record(str(b), scheme=scheme(b), seconds=SECONDS), top1=top1, top1_se=0.0) for b in (4, 3)]
    drawn = of(records)
    for chart in (*drawn.time[0].charts, *drawn.bits[0].charts):
        assert all(views.TOP <= mark.y <= views.HEIGHT - views.BOTTOM and not mark.bar for mark in chart.marks)


def test_one_width_has_no_curve_and_failed_cells_no_point() -> None:
    assert of([record("1")]).bits == []
    assert of([changed(record("1"), status="failed", top1=None)]).time == []


def test_every_marker_has_a_shape() -> None:
    assert tuple(SHAPES) == MARKERS
