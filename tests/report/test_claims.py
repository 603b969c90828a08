"""The published numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dfqbench.api import InputError
from dfqbench.report.literature.published_numbers import published_numbers, read_numbers


def test_every_claim_has_a_source_and_a_possible_value() -> None:
    claims = published_numbers()
    assert len(claims) == 691
    for claim in claims:
        assert claim.reported_in
        assert claim.place
        assert 0 < claim.top1 < 100
        assert 1 <= claim.w_bits <= 32
        assert claim.drop is None or -1.5 < claim.drop < 100


def test_papers_disagree_about_zeroq_at_four_bits() -> None:
    cell = ("ZeroQ", "ResNet-18", 4, 4)
    values = {c.top1 for c in published_numbers() if (c.method, c.model, c.w_bits, c.a_bits) == cell}
    assert min(values) < 20
    assert max(values) > 60


def test_zeroqs_own_table() -> None:
    (claim,) = [
        c
        for c in published_numbers()
        if c.reported_in == "ZeroQ repo README" and c.model == "ResNet-18" and (c.w_bits, c.a_bits) == (8, 8)
    ]
    assert (claim.top1, claim.fp_top1) == (71.43, 71.47)
    assert claim.drop == pytest.approx(0.04)


def test_selection_is_told_where_the_source_tells_it() -> None:
    kinds = {claim.selection for claim in published_numbers()}
    assert kinds == {"best", "unknown"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "lacks the column 'source_paper'; take the first line"),
        ("{header}\nX,T,P,m,d,n,four,4,70,60,\n", "does not hold claims: invalid literal"),
        ("{header}\nX,T,P,m\n", "does not hold claims"),
    ],
)
def test_a_damaged_file_of_a_plugin_is_an_input_error(tmp_path: Path, text: str, message: str) -> None:
    header = "source_paper,table_or_where,reported_in,method,dataset,model,w_bits,a_bits,fp_top1,top1,notes"
    file = tmp_path / "claims.csv"
    file.write_text(text.format(header=header))
    with pytest.raises(InputError, match=re.escape(str(file))) as caught:
        read_numbers(file)
    assert message in str(caught.value)


def test_the_file_of_a_plugin() -> None:
    example = Path(__file__).parent.parent / "plugins/example/src/dfqbench_example/claims.csv"
    [claim] = read_numbers(example)
    assert (claim.method, claim.top1, claim.selection) == ("stripes", 90.0, "unknown")
