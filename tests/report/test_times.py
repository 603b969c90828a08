"""The published times."""

from __future__ import annotations

import csv
import io
import json

import pytest

from dfqbench.api import UsageError
from dfqbench.report.literature.published_times import published_times
from dfqbench.report.literature.select import select
from dfqbench.report.renderers.literature import render_times


def test_every_time_says_what_and_where() -> None:
    times = published_times()
    assert len(times) == 29
    for time in times:
        assert time.method
        assert time.quantity
        assert time.value
        assert time.source


def test_choosing() -> None:
    times = published_times()
    own = select(times, method="dffg")
    assert [(t.value, t.unit, t.source) for t in own] == [("10", "x faster", "DFFG abstract (BMVC23/514)")]
    named = select(times, method="zeroq", model="torchvision:resnet50", dataset="imagenet", bits="W4A4")
    # The abstract's claim names no width: it is for any.
    assert [(t.value, t.unit, t.hardware) for t in named] == [("<30", "s", ""), ("92", "s", "A100")]
    assert not select(times, method="zeroq", bits="w8a8", model="resnet18")
    assert not select(times, method="zeroq", dataset="cifar10")


def test_forms_hold_the_same_numbers() -> None:
    times = select(published_times(), method="GDFQ")
    found = list(csv.DictReader(io.StringIO(render_times(times, "csv"))))
    assert found == json.loads(render_times(times, "json"))
    assert [row["value"] for row in found] == ["1.7", "3.1", "5.7", "4.8", "1.9"]
    text, page = render_times(times), render_times(times, "md")
    for time in times:
        assert f"{time.value} {time.unit}" in text
        assert f"{time.value} {time.unit}" in page
    assert max(map(len, text.splitlines())) <= 130
    assert render_times([]) == "no printed times\n"


def test_an_unknown_form() -> None:
    with pytest.raises(UsageError, match="format"):
        render_times(published_times(), "xml")  # type: ignore[arg-type]
