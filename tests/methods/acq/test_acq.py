from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from dfqbench.api import budget_named
from dfqbench.synth import (
    FeatureMaps,
    GeneratorSource,
    attention_centre,
    attention_consistency_loss,
    batch_statistics,
    paired_centre_condition,
)
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network
from dfqbench_methods.acq.plugin import Acq, AcqParams

PARAMS = AcqParams(latent=8)
OFF: dict[str, Any] = {
    "ce_weight": 0.0,
    "bns_weight": 0.0,
    "centre_weight": 0.0,
    "pair_weight": 0.0,
    "consistency_weight": 0.0,
}


def _source(params: AcqParams = PARAMS, seed: int = 0, budget: str = "smoke") -> GeneratorSource:
    source = Acq(params).synthesize(toy_network(), ToyContext(root_seed=seed, budget=budget_named(budget)))
    assert isinstance(source, GeneratorSource)
    return source


def _only(**weights: float) -> AcqParams:
    return dataclasses.replace(PARAMS, **OFF | weights)


@pytest.mark.parametrize("name", ["ce", "bns", "centre", "pair", "consistency"])
def test_each_loss_trains_alone(name: str) -> None:
    source = _source(_only(**{f"{name}_weight": 1.0}))
    assert [term.name for term in source.terms] == [name]
    before = [p.detach().clone() for p in source.generator.parameters()]
    for _ in range(2):
        source.train_step(4)
    assert any(not torch.equal(a, b) for a, b in zip(before, source.generator.parameters(), strict=True))


def test_the_teachers_attention_follows_the_centre() -> None:
    teacher = toy_network()
    source = _source(_only(centre_weight=1.0), budget="short")

    def distance() -> float:
        condition = paired_centre_condition(8, 4, 0.7)(256, torch.Generator().manual_seed(7))
        assert condition.extra is not None
        with torch.no_grad(), FeatureMaps(teacher) as recorder:
            teacher(source.generator(condition.noise, condition.labels, condition.extra))
            return float((attention_centre(recorder.last.attention[-1]) - condition.extra).square().sum(1).mean())

    before = distance()
    for _ in range(150):
        source.train_step(32)
    assert distance() < 0.75 * before


def test_consistency_compares_the_two_modes() -> None:
    teacher = toy_network()
    values: list[float] = []
    source = Acq(PARAMS).synthesize(teacher, ToyContext())
    assert isinstance(source, GeneratorSource)
    term = next(term for term in source.terms if term.name == "consistency")
    measured = term.loss
    term.loss = lambda view: values.append(float((actual := measured(view)).detach())) or actual  # type: ignore
    batch = source.train_step(6)
    with FeatureMaps(teacher) as recorder:
        teacher(batch.images)
        own = recorder.last.attention
        with batch_statistics(teacher):
            teacher(batch.images)
        b = recorder.last.attention
    assert values == [pytest.approx(float(attention_consistency_loss(own, b)), rel=1e-4)]
    assert values[0] > 0


def test_batch_of_one_has_no_pair() -> None:
    batch = _source().train_step(1)
    assert torch.isfinite(batch.images).all()
