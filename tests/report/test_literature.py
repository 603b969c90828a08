from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from dfqbench.api import InputError, UsageError
from dfqbench.report.literature.published import (
    QUOTED_NOTE,
    published_numbers,
    published_times,
    read_numbers,
    reference,
    reference_lines,
    select,
)
from dfqbench.report.renderers.literature import render_times


def test_published_numbers_have_sources_and_possible_values() -> None:
    numbers = published_numbers()
    assert len(numbers) == 1193
    for number in numbers:
        assert all((number.reported_in, number.place, number.reference))
        assert 0 < number.top1 < 100
        assert 1 <= number.w_bits <= 32
        assert number.drop is None or -1.5 < number.drop < 100
    columns = ("reported_in", "place", "method", "dataset", "model", "bits", "top1")
    assert len({tuple(getattr(number, column) for column in columns) for number in numbers}) == len(numbers)
    assert {number.selection for number in numbers} == {"best", "unknown"}


def test_sources_can_be_looked_up() -> None:
    numbers, times = published_numbers(), published_times()
    assert all(map(reference, {*(number.source for number in numbers), *(time.source for time in times)}))
    printed = " ".join(f"{entry}" for entry in (*numbers, *times))
    assert re.search(r"\bids? \d{6}|seed file|not named", printed) is None
    quoted = [number for number in numbers if "(second-hand)" in number.reported_in]
    assert len(quoted) == 82
    assert {(number.source_rank, "quoted" in number.place, QUOTED_NOTE in number.reference) for number in quoted} == {
        (2, True, True)
    }
    assert not any(QUOTED_NOTE in number.reference for number in numbers if number not in quoted)
    readme = "Cai et al., ZeroQ: A Novel Zero Shot Quantization Framework, CVPR 2020 (README of its repository; "
    assert reference("ZeroQ repo README").startswith(readme)
    assert (reference("my paper"), reference_lines(["my paper"])) == ("", [])


def test_number_of_zeroq_itself() -> None:
    numbers = select(published_numbers(), method="ZeroQ", model="ResNet-18", bits="w8a8")
    [number] = [number for number in numbers if number.reported_in == "ZeroQ repo README"]
    assert (number.top1, number.fp_top1) == (71.43, 71.47)
    assert number.drop == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "lacks the column 'source_paper'; take the first line"),
        ("{header}\nX,T,P,m,d,n,four,4,70,60,\n", "does not hold claims: line 2: invalid literal"),
        ("{header}\nX,T,P,m\n", "does not hold claims: line 2: fields are missing"),
    ],
)
def test_damaged_plugin_file_is_an_input_error(tmp_path: Path, text: str, message: str) -> None:
    header = "source_paper,table_or_where,reported_in,method,dataset,model,w_bits,a_bits,fp_top1,top1,notes"
    file = tmp_path / "claims.csv"
    file.write_text(text.format(header=header))
    with pytest.raises(InputError, match=f"{re.escape(str(file))}.*{message}"):
        read_numbers(file)


def test_plugin_file() -> None:
    example = Path(__file__).parent.parent / "plugins/example/src/dfqbench_example/claims.csv"
    [number] = read_numbers(example)
    assert (number.method, number.top1, number.selection) == ("stripes", 90.0, "unknown")


def test_times_have_sources_and_are_selected() -> None:
    times = published_times()
    assert len(times) == 29
    assert all(time.method and time.quantity and time.value and time.source for time in times)
    chosen = select(times, method="dffg")
    assert [(t.value, t.unit, t.source) for t in chosen] == [("10", "x faster", "DFFG BMVC23, abstract")]
    chosen = select(times, method="zeroq", model="torchvision:resnet50", dataset="imagenet", bits="W4A4")
    # The abstract names no width: its number is for any.
    assert [(t.value, t.unit, t.hardware) for t in chosen] == [("<30", "s", ""), ("92", "s", "A100")]
    assert not select(times, method="zeroq", bits="w8a8", model="resnet18")
    assert not select(times, method="zeroq", dataset="cifar10")


def test_times_are_the_same_in_every_format() -> None:
    times = select(published_times(), method="GDFQ")
    rows = list(csv.DictReader(io.StringIO(render_times(times, "csv"))))
    assert rows == json.loads(render_times(times, "json"))
    assert [row["value"] for row in rows] == ["1.7", "3.1", "5.7", "4.8", "1.9"]
    for fmt in ("text", "md"):
        assert all(f"{time.value} {time.unit}" in render_times(times, fmt) for time in times)
    assert max(map(len, render_times(times).splitlines())) <= 130
    assert render_times([]) == "no printed times\n"


def test_unknown_format_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown format 'xml'"):
        render_times(published_times(), "xml")  # type: ignore[arg-type]
