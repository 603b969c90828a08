"""Protocols of published numbers as data, and their distance to a run's in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.report.records import scheme
from tests.report.test_verdict import cell, claim

from dfqbench.api import InputError
from dfqbench.report import render
from dfqbench.report.literature import published
from dfqbench.report.literature.distance import SAME, differences, not_stated
from dfqbench.report.literature.protocol_facts import ProtocolFacts, parse_protocols
from dfqbench.report.literature.publication_index import PublicationIndex, published_index
from dfqbench.report.literature.published import published_numbers, read_numbers, select
from dfqbench.report.literature.verdict import judge
from dfqbench.report.renderers.literature import render_numbers

HEADER = "source,place,method,weights,operands,first_last,ranges,recipe,images,selection,other,how"
GENIE = {"operands": "layer inputs", "first_last": "8", "ranges": "learned", "recipe": "reconstruct as Genie"}


def test_every_protocol_is_that_of_a_number() -> None:
    rows = published._data_file("protocols.csv").splitlines()[1:]
    stated = [number.stated for number in published_numbers() if number.stated.how]
    assert len({id(facts) for facts in stated}) == len(rows)
    assert all(any(getattr(facts, name) for name in ("recipe", "operands", "other")) for facts in stated)


def test_every_number_about_a_method_of_the_host_has_a_protocol() -> None:
    here = [number for number in published_numbers() if number.implemented]
    assert {number.implemented.partition("+")[0] for number in here} >= {"zeroq", "gdfq", "clusterq", "acq", "dffg"}
    assert all(number.stated.how and number.kind for number in here)


def test_protocols_tell_numbers_of_one_cell_apart() -> None:
    numbers = {
        number.top1: number.stated.words
        for number in select(published_numbers(), model="resnet18", bits="w3a3")
        if number.method in {"SynQ", "Genie+SynQ"}
    }
    assert numbers == {
        52.02: "@gdfq, ema ranges, fine-tuned as SynQ, 5,120 images, best test epoch, pytorchcv weights",
        67.42: "layer inputs, 8-bit first and last layer, learned ranges, reconstructed as Genie, 1,024 images, "
        "BRECQ weights",
    }


@pytest.mark.parametrize(
    ("stated", "ran", "words"),
    [
        ({}, {}, []),
        ({"recipe": "fine-tune as IntraQ"}, {}, ["fine-tuned as IntraQ (here calibrate)"]),
        (
            {"recipe": "fine-tune as IntraQ", "selection": "best test epoch"},
            {"quantizer": "distill", "cross": True, "recipe": "dffg"},
            ["fine-tuned as IntraQ (here distill:dffg)", "best test epoch (here the last)"],
        ),
        ({"recipe": "fine-tune as IntraQ"}, {"quantizer": "distill", "cross": True, "recipe": "intraq"}, []),
        ({"recipe": "fine-tune"}, {"quantizer": "distill", "cross": True, "recipe": "intraq"}, []),
        ({}, {"quantizer": "distill", "cross": True}, ["calibrated (here distill)"]),
        (
            GENIE,
            {"range": "minmax", "params": {"quantizer": {"images": 64}}},
            [
                "layer inputs (here after activations)",
                "8-bit first and last layer (here as the others)",
                "learned ranges (here minmax)",
                "reconstructed as Genie (here calibrate)",
            ],
        ),
        (
            {"operands": "after activations", "first_last": "k"},
            {"scheme": scheme(4, "deploy")},
            ["after activations (here layer inputs)", "first and last layer as the others (here 8-bit)"],
        ),
        ({"operands": "layer inputs", "first_last": "8"}, {"scheme": scheme(4, "deploy")}, []),
        ({"first_last": "8"}, {"scheme": scheme(8)}, []),
        ({"images": "5120"}, {}, ["5,120 images (here 64)"]),
        ({"images": "5120"}, {"params": {}, "source_kind": "live"}, []),
        ({"weights": "pytorchcv"}, {}, ["pytorchcv weights (here cifar)"]),
        ({"other": "symmetric weights"}, {}, ["symmetric weights"]),
        ({}, {"dataset": {"name": "cifar10", "subset": "9 of 10"}}, ["all evaluation images (here 9 of 10)"]),
        ({"operands": "layer inputs"}, {"scheme": scheme(4, "somebody")}, []),
    ],
)
def test_differences_are_those_that_the_source_states(
    stated: dict[str, str], ran: dict[str, Any], words: list[str]
) -> None:
    assert differences([cell(**ran)], claim(stated=stated)) == words


def test_scheme_in_a_record_counts_rather_than_its_name() -> None:
    details = {"placement": "layer_input", "first_bits": 8, "last_bits": None}
    ran = cell(scheme=scheme(4) | {"details": details})
    found = differences([ran], claim(stated={"operands": "after activations", "first_last": "k"}))
    assert found == [
        "after activations (here layer inputs)",
        "first and last layer as the others (here 8 and k)",
    ]


def test_oracle_of_every_seed_is_the_best_epoch() -> None:
    tuned = {"quantizer": "distill", "cross": True}
    best = claim(stated={"recipe": "fine-tune", "selection": "best test epoch"})
    oracle = cell(**tuned, oracle={"top1": 80.0, "step": 7})
    assert differences([oracle], best) == []
    assert differences([oracle, cell(**tuned, seed=1)], best) == ["best test epoch (here the last)"]


def test_own_recipe_of_a_method_has_its_name() -> None:
    printed = claim(method="GDFQ", stated={"recipe": "fine-tune as GDFQ"})
    own, other = cell(method="gdfq", quantizer="distill"), cell(method="gdfq", quantizer="distill", recipe="kmdfq")
    assert differences([own], printed) == []
    assert differences([other], printed) == ["fine-tuned as GDFQ (here distill:kmdfq)"]


def test_what_is_inferred_is_marked() -> None:
    facts = {"recipe": "fine-tune as IntraQ", "how": "inferred"}
    assert ProtocolFacts(**facts).words == "fine-tuned as IntraQ (inferred)"
    assert judge([cell()], claim(stated=facts)).distance == "fine-tuned as IntraQ (here calibrate) (inferred)"
    assert judge([cell()], claim(stated={"how": "inferred"})).distance == SAME


def test_last_row_that_holds_counts() -> None:
    rows = ["A,,,,,,,fine-tune,,,,", "A,T,Z*;real,,,,,calibrate,,,,paper", "A,T,ZAQ,,,,,,,,symmetric,"]
    stated = parse_protocols("\n".join([HEADER, *rows]))
    found = [stated("A", place, method).recipe for place, method in (("T", "ZeroQ"), ("U", "ZeroQ"), ("T", "GDFQ"))]
    assert found == ["calibrate", "fine-tune", "fine-tune"]
    assert stated("A", "T", "ZAQ") == ProtocolFacts(other="symmetric")
    assert stated("B", "T", "ZeroQ") == ProtocolFacts()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source,place\nA,T\n", "protocols lack the column 'method'"),
        (f"{HEADER}\nA,T\n", "line 2 of the protocols has missing or superfluous fields"),
        (f"{HEADER}\n,T,,,,,,,,,,\n", "line 2 of the protocols has missing or superfluous fields"),
        (f"{HEADER}\nA,T,,,,,,finetune,,,,\n", "line 2 of the protocols: recipe 'finetune' is none of calibrate,"),
        (f"{HEADER}\nA,T,,,,,,,many,,,\n", "images 'many' is no number"),
        (f"{HEADER}\nA,T,,,,,,,,first,,\n", "selection 'first' is none of best test epoch, last"),
        (f"{HEADER}\nA,T,,,,,,,,,,hearsay\n", "how 'hearsay' is none of released code, paper, inferred"),
    ],
)
def test_damaged_protocols_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_protocols(text)


def test_plugin_file_may_state_its_protocol(tmp_path: Path) -> None:
    numbers = "source_paper,table_or_where,reported_in,method,dataset,model,w_bits,a_bits,fp_top1,top1,notes"
    line = "X,Table 1,the paper,mine,ImageNet,ResNet-18,4,4,71.47,60,"
    file = tmp_path / "claims.csv"
    file.write_text(f"{numbers},recipe,first_last\n{line}best test epoch,reconstruct,8\n")
    [number] = read_numbers(file)
    assert (number.protocol, number.selection, number.kind) == ("other", "best", "reconstruct")
    file.write_text(f"{numbers}\n{line}\n")
    [plain] = read_numbers(file)
    assert (plain.protocol, plain.selection, plain.stated) == ("gdfq", "unknown", ProtocolFacts())
    file.write_text(f"{numbers},recipe\n{line},tuned\n")
    with pytest.raises(InputError, match="does not hold claims: line 2: recipe 'tuned' is none of calibrate"):
        read_numbers(file)


def test_distance_is_in_every_format() -> None:
    for fmt in ("text", "md", "latex", "html", "csv"):
        shown = " ".join(render([cell()], fmt, publications=PublicationIndex([claim(stated=GENIE)])).split())
        assert "reconstructed as Genie (here calibrate)" in shown
        assert fmt == "csv" or shown.count("ot stated by one source or another") == 1
    [found] = json.loads(render([cell()], "json", publications=PublicationIndex([claim(stated=GENIE)])))
    [told] = found["claims"]
    assert "learned ranges" not in told["distance"]  # the record does not name a range rule
    assert told["not_stated"] == not_stated([claim(stated=GENIE)]) == ["number of images", "epoch", "weights"]
    assert SAME in render([cell()], "md", publications=PublicationIndex([claim()]))


def test_text_fits_narrow_and_wide_terminals() -> None:
    numbers = select(published_numbers(), bits="w3a3", dataset="imagenet")
    narrow, wide = (render_numbers(numbers, width=width) for width in (40, 130))
    assert max(map(len, narrow.splitlines())) <= 80
    assert 80 < max(map(len, wide.splitlines())) <= 130
    tables = (
        render([cell()], publications=published_index()).partition("Published numbers")[2].partition("* verdict")[0]
    )
    assert max(map(len, tables.splitlines())) <= 80


def test_plurals() -> None:
    assert "1 claim about 1 method from 1 source; implemented here: 1 method\n" in render_numbers([claim()])
    text = render_numbers([claim(), claim(method="X")])
    assert "2 claims about 2 methods from 1 source; implemented here: 1 method\n" in text
