from __future__ import annotations

import dataclasses

import torch

from dfqbench.api import Fidelity, describe_params, is_live
from dfqbench.quant import parse_scheme
from dfqbench.quantizers.distill import Distill
from dfqbench.synth import GeneratorSource
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network
from dfqbench_methods.gdfq.plugin import Gdfq, GdfqParams, dfqbench_methods


def _source(**params: object) -> GeneratorSource:
    source = Gdfq(GdfqParams(**params)).synthesize(toy_network(), ToyContext())  # type: ignore[arg-type]
    assert isinstance(source, GeneratorSource)
    return source


def test_defaults_are_the_released_ones() -> None:
    params = GdfqParams()
    assert (params.ce_weight, params.bns_weight, params.latent) == (1.0, 0.1, 100)
    assert (params.lr, params.beta1, params.beta2) == (1e-3, 0.5, 0.999)
    assert (params.epochs, params.iterations, params.lr_steps) == (400, 200, (100, 200, 300))
    assert Gdfq.fidelity is Fidelity.RELEASED
    assert Gdfq.quantizer == "distill:gdfq"
    assert [offer.name for offer in dfqbench_methods()] == ["gdfq"]
    assert all(info.help and info.source for info in describe_params(GdfqParams))


def test_is_live_with_the_two_released_losses() -> None:
    source = _source()
    assert is_live(source)
    assert [(term.name, term.weight) for term in source.terms] == [("ce", 1.0), ("bns", 0.1)]
    assert not source.needs_student


def test_help_of_other_methods_is_a_parameter() -> None:
    assert _source(margin_weight=1.0).needs_student
    assert [term.name for term in _source(ce_weight=0.0).terms] == ["bns"]


def test_trains_a_student_with_its_recipe() -> None:
    def student(seed: int) -> list[torch.Tensor]:
        ctx = ToyContext(bits=parse_scheme("w4a4"), root_seed=seed)
        teacher = toy_network()
        source = Gdfq(GdfqParams(latent=8)).synthesize(teacher, ToyContext(root_seed=seed))
        params = dataclasses.replace(Distill.recipes["gdfq"], batch_few_classes=8)
        return list(Distill(params).quantize(teacher, source, ctx).state_dict().values())

    one, same, other = student(0), student(0), student(1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
