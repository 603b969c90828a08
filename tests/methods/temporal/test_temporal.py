from __future__ import annotations

import dataclasses
import io
from fractions import Fraction
from typing import Literal

import pytest
import torch

from dfqbench.api import Budget
from dfqbench.quant import parse_scheme
from dfqbench.quantizers.distill import Distill
from dfqbench.synth import GeneratorSource
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network
from dfqbench_methods.temporal.plugin import Temporal, TemporalParams


def test_the_margin_comes_after_warmup() -> None:
    source = Temporal(TemporalParams(latent=8)).synthesize(toy_network(), ToyContext())
    assert isinstance(source, GeneratorSource)
    margin = next(term for term in source.terms if term.name == "margin")
    assert margin.start == 10 + 1  # 10 steps of ranges and round(16 * 200 / 4000) more
    assert source.needs_student


def _student(params: TemporalParams) -> list[torch.Tensor]:
    teacher = toy_network()
    budget = Budget("toy", Fraction(1, 10_000), range_floor=2)
    source = Temporal(params).synthesize(teacher, ToyContext(budget=budget))
    recipe = dataclasses.replace(Distill.recipes["temporal"], batch_few_classes=8)
    student = Distill(recipe).quantize(teacher, source, ToyContext(budget=budget, bits=parse_scheme("w3a3")))
    return [value for name, value in student.state_dict().items() if name.endswith("original")]


def test_trains_through_the_quantized_student() -> None:
    params = TemporalParams(latent=8, margin_mean=5.0)
    on, again, off = _student(params), _student(params), _student(dataclasses.replace(params, margin_weight=0.0))
    assert all(torch.equal(a, b) for a, b in zip(on, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(on, off, strict=True))


@pytest.mark.parametrize("form", ["sampled", "erf"])
def test_resume_restores_the_running_margin(form: Literal["sampled", "erf"]) -> None:
    params = TemporalParams(latent=8, margin_start=0, margin_scale="running", margin_form=form)
    teacher, student = toy_network(), toy_network(seed=1)

    def build(seed: int) -> GeneratorSource:
        source = Temporal(params).synthesize(teacher, ToyContext(root_seed=seed))
        assert isinstance(source, GeneratorSource)
        return source

    first, second, buffer = build(0), build(9), io.BytesIO()
    for _ in range(3):
        first.train_step(4, student)
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for _ in range(3):
        assert torch.equal(first.train_step(4, student).images, second.train_step(4, student).images)
    states = [source.state_dict()["terms"]["margin"] for source in (first, second)]
    assert states[0].keys() == {"mean", "var", "weight"}
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert float(states[0]["mean"]) > 0
