"""Verdicts: comparability first, then the numbers; a best epoch is held against the oracle only."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from tests.report.records import record, scheme

from dfqbench.report import render
from dfqbench.report.comparison.wilson import wilson_error
from dfqbench.report.literature.names import method_key, model_key
from dfqbench.report.literature.protocol_facts import ProtocolFacts
from dfqbench.report.literature.publication_index import PublicationIndex, published_index
from dfqbench.report.literature.published import PublishedNumber
from dfqbench.report.literature.verdict import judge, tolerance, verdicts
from dfqbench.run.store.record import Record


def claim(**changes: Any) -> PublishedNumber:
    printed = {"method": "ZeroQ", "dataset": "CIFAR-10", "model": "ResNet-20", "w_bits": 4, "a_bits": 4}
    source = {"paper": "Cai CVPR20", "reported_in": "ZeroQ repo README", "place": "README table", "notes": ""}
    changes["stated"] = ProtocolFacts(**changes.get("stated", {}))
    return PublishedNumber(**{**printed, **source, "fp_top1": 93.9, "top1": 80.0, **changes})


def cell(**changes: Any) -> Record:
    """Return a record of ZeroQ on CIFAR-10 at the paper's budget."""
    made: dict[str, Any] = {"target": "cifar10", "dataset": {"name": "cifar10", "n": 10000, "subset": None}}
    made |= {"model": {"name": "cifar:resnet20", "ref": "cifar:resnet20"}, "budget": "paper"}
    return record("a", **made | {"fp_top1": 93.85, "top1": 80.2} | changes)


# 2 sqrt(0.808 * 0.192 / 10000) is 0.788 points, 2 sqrt(0.792 * 0.208 / 10000) is 0.812; half a point is the least.
@pytest.mark.parametrize(
    ("top1", "images", "word"),
    [
        *((80.0, 10**4, "reproduced"), (80.78, 10**4, "reproduced"), (80.8, 10**4, "above")),
        *((79.2, 10**4, "reproduced"), (79.1, 10**4, "below")),
        *((80.5, 10**9, "reproduced"), (80.51, 10**9, "above"), (79.49, 10**9, "below")),
    ],
)
def test_verdict_allows_twice_the_standard_error(top1: float, images: int, word: str) -> None:
    assert judge([cell(top1=top1, dataset={"name": "cifar10", "n": images})], claim()).word == word


def test_verdict_uses_mean_and_deviation_over_seeds() -> None:
    seeds = [cell(top1=top1, seed=seed) for seed, top1 in enumerate((78.0, 80.0, 82.0))]
    found = judge(seeds, claim(top1=84.0))
    assert found.word == "reproduced"
    assert [found.measured, found.tolerance] == pytest.approx([80.0, 2 * math.sqrt(0.16 + 4.0)])
    assert judge(seeds, claim(top1=84.1)).word == "below"
    assert tolerance([50.0], 100) == pytest.approx(2 * wilson_error(50.0, 100))
    assert tolerance([100.0], 100) == pytest.approx(100 / 101)
    assert tolerance([50.0], None) == 0.5


def test_precedence_of_differences() -> None:
    wrong: dict[str, Any] = {"budget": "short", "quantizer": "distill", "changed_params": ["method.iterations"]}
    wrong |= {"fp_top1": 91.0, "top1": 10.0}
    for word in ("other budget", "other protocol", "other parameters", "other weights", "below"):
        assert judge([cell(**wrong)], claim()).word == word
        del wrong[next(iter(wrong))]


def test_other_protocol() -> None:
    tuned, eight = claim(stated={"recipe": "fine-tune"}), claim(stated={"first_last": "8"})
    intraq = claim(stated={"recipe": "fine-tune as IntraQ"})
    part = {"name": "cifar10", "n": 100, "subset": "100 random images"}
    others = [
        (cell(scheme=scheme(4, "deploy")), claim()),
        (cell(dataset=part), claim()),
        (cell(), tuned),
        (cell(), eight),
    ]
    assert {judge([measured], printed).word for measured, printed in others} == {"other protocol"}
    assert judge([cell(quantizer="distill")], tuned).word == "reproduced"
    cross = {"quantizer": "distill", "cross": True}
    assert judge([cell(**cross, recipe="intraq")], intraq).word == "reproduced"
    assert judge([cell(**cross, recipe="dffg")], intraq).word == "other protocol"
    assert judge([cell()], claim(stated={"other": "symmetric weights"})).word == "other protocol"
    mixed = judge(
        [cell(scheme=scheme(4) | {"label": "w4a4@gdfq:size=4bit", "mixed": {"budget": "size=4bit"}})], claim()
    )
    assert mixed.word == "other protocol"
    assert "one width for all weights (here mixed precision, size=4bit)" in mixed.distance


def test_weights_agree_within_a_tenth_of_a_point() -> None:
    assert judge([cell(fp_top1=93.8)], claim()).word == "reproduced"
    assert judge([cell(fp_top1=93.79)], claim()).word == "other weights"
    # Where the source prints none, those that any source prints for the network count: 93.89 to 94.08.
    assert judge([cell(fp_top1=93.85)], claim(fp_top1=None)).word == "reproduced"
    assert judge([cell(fp_top1=91.73)], claim(fp_top1=None)).word == "other weights"
    assert judge([cell(fp_top1=None)], claim()).word == "other weights"


def test_best_epoch_is_compared_with_the_oracle() -> None:
    best = claim(stated={"selection": "best test epoch"})
    assert judge([cell(top1=80.0)], best).word == "needs oracle"
    found = judge([cell(top1=10.0, oracle={"top1": 80.1, "step": 7})], best)
    assert (found.word, found.measured) == ("reproduced", 80.1)
    # And a claim that is not one never sees the oracle.
    assert judge([cell(top1=10.0, oracle={"top1": 80.1, "step": 7})], claim()).word == "below"
    # Every seed needs its best snapshot.
    for budget, word in (("paper", "needs oracle"), ("short", "other budget")):
        found = judge([cell(oracle={"top1": 80.0, "step": 7}, budget=budget), cell(seed=1, budget=budget)], best)
        assert (found.word, found.measured) == (word, None)


def test_changed_parameters_are_never_reproduced() -> None:
    assert judge([cell(changed_params=[])], claim()).word == "reproduced"
    seeds = [cell(changed_params=[]), cell(seed=1, changed_params=["quantizer.alpha"])]
    assert judge(seeds, claim()).word == "other parameters"
    assert "other parameters" in render(seeds[1:], "text", publications=PublicationIndex([claim()]))


def test_numbers_about_a_plugin_method() -> None:
    mine = claim(method="Stripes", plugin_method="stripes", notes="")
    assert mine.implemented == "stripes"
    ran = cell(method="stripes", quantizer="reconstruct", cross=False)
    [found] = verdicts([ran], PublicationIndex([mine]))
    assert found.word == "reproduced"
    assert judge([cell(method="stripes", quantizer="reconstruct", cross=True)], mine).word == "other protocol"
    # Its own source prints no full precision: another of the book does.
    silent, loud = dataclasses.replace(mine, fp_top1=None), claim(fp_top1=93.85, model="cifar:resnet20")
    assert judge([ran], silent, PublicationIndex([silent])).word == "other weights"
    assert judge([ran], silent, PublicationIndex([silent, loud])).word == "reproduced"


def test_verdicts_are_about_the_same_cell() -> None:
    assert verdicts([cell()])
    others = [claim(w_bits=8), claim(method="SynQ"), claim(dataset="CIFAR-100"), claim(model="VGG16bn")]
    others.append(claim(top1=70.0))
    assert [found.number.top1 for found in verdicts([cell()], PublicationIndex(others))] == [70.0]
    assert verdicts([cell(scheme=scheme(3))], PublicationIndex(others)) == []
    subset = cell(dataset={"name": "imagenet-val1300", "n": 1300}, model={"name": "torchvision:resnet18"})
    assert verdicts([subset]) == []
    assert verdicts([]) == []


def test_order_of_verdicts_ignores_accuracy() -> None:
    far, near = claim(top1=10.0), claim(top1=80.2, reported_in="somebody's note")
    assert [found.number.top1 for found in verdicts([cell()], PublicationIndex([near, far]))] == [10.0, 80.2]


MODEL_KEYS = {
    "resnet20": ("ResNet-20", "cifar:resnet20", "pytorchcv:resnet20_cifar10"),
    "resnet18": ("torchvision:resnet18?weights=x.pth",),
    "resnet50": ("timm:resnet50.a1_in1k",),
    "mobilenetv2": ("torchvision:mobilenet_v2", "pytorchcv:mobilenetv2_w1"),
    "mobilenetv1075": ("mobilenetv1-075",),
    "mobilenetv1": ("MobileNetV1",),
}


def test_names_in_papers_and_of_the_host_share_a_key() -> None:
    for key, names in MODEL_KEYS.items():
        assert {model_key(name) for name in names} == {key}
    assert method_key("ZeroQ") == ("zeroq", "calibrate")
    assert method_key("DFFG (5 save points, 10X)") == method_key("DFFG") == ("dffg", "fine-tune")
    assert claim(stated={"recipe": "fine-tune as IntraQ"}).implemented == "zeroq+distill"
    assert claim(stated={"recipe": "reconstruct"}).implemented == "zeroq+reconstruct"
    assert method_key("GDFQ+AIT") == ("", "")


def test_tables_show_published_numbers_with_verdicts() -> None:
    text = " ".join(render([cell()], "text", publications=published_index()).split())
    # The other weights are DSG's: 94.08.
    for part in ("Published numbers for these cells", "w4a4@gdfq, zeroq, resnet20: 80.20 measured", "other weights"):
        assert part in text
    for fmt in ("text", "md", "latex", "html"):
        shown = render([cell()], fmt, publications=published_index())
        assert "AIT CVPR22" in shown
        assert "79.30" in shown
    [found] = json.loads(render([cell()], "json", publications=published_index()))
    assert {entry["verdict"] for entry in found["claims"]} >= {"other weights", "above"}
    digits = render([cell(dataset={"name": "digits", "n": 540})], "text", publications=published_index())
    assert "No published number is known" in digits


def test_published_numbers_are_optional() -> None:
    assert "Published" not in render([cell()], "text")
    assert "verdict" not in render([cell()], "csv")
    header, line = render([cell()], "csv", publications=published_index()).splitlines()
    assert header.endswith("claimed_top1,claimed_drop,claim_source,claim_selection,claim_distance,verdict")
    assert "79.3" in line


@pytest.mark.parametrize(
    ("quantizer", "printed"), [("squant", "SQuant"), ("dfq", "DFQ"), ("rex", "REx"), ("calibrate", "")]
)
def test_without_images_the_quantizer_is_the_method_of_papers(quantizer: str, printed: str) -> None:
    network, bits = ("resnet50", 6) if quantizer == "rex" else ("resnet18", 4)
    model = {"name": f"torchvision:{network}", "ref": f"torchvision:{network}"}
    target = {"target": "imagenet", "dataset": {"name": "imagenet", "n": 50000}, "model": model}
    made = cell(method="none", quantizer=quantizer, cross=True, scheme=scheme(bits, "squant"), **target)
    assert {verdict.number.method for verdict in verdicts([made])} == ({printed} if printed else set())
    crossed = cell(method="noise", quantizer=quantizer, cross=True, scheme=scheme(bits, "squant"), **target)
    assert not {verdict.number.method for verdict in verdicts([crossed])} & {"SQuant", "DFQ", "REx"}


def test_squant_under_its_protocol_differs_in_what_it_states_alone() -> None:
    model = {"name": "torchvision:resnet18", "ref": "torchvision:resnet18"}
    target = {"target": "imagenet", "dataset": {"name": "imagenet", "n": 50000}, "model": model}
    made = cell(method="none", quantizer="squant", cross=True, scheme=scheme(4, "squant"), range="sigma", **target)
    differs = {verdict.number.source: verdict.differs for verdict in verdicts([made])}
    assert differs == {"SQuant ICLR22, Table 1": ()}
