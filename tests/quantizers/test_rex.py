"""REx: a sum of quantized terms converges to the weight, is saved as such, and its cost is counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dfqbench.api import SampleSource, UsageError
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins.params import build_params
from dfqbench.quant import Student, load_student, parse_scheme, prepare, save_student
from dfqbench.quant.coverage import measure_coverage
from dfqbench.quant.fake_quantize_modules import FakeQuantizeWeight
from dfqbench.quantizers.calibrate import Calibrate, CalibrateParams
from dfqbench.quantizers.residual_expansion import layer_shares
from dfqbench.quantizers.rex import Rex, RexParams
from dfqbench.synth import FixedSource
from dfqbench.synth.no_images import NoSource
from dfqbench.targets.catalogue import Catalogue
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_images, toy_network

SCHEMES = ("w4a4@gdfq", "w3a4@deploy", "w4a4@tensor", "w2a4@brecq")
IMAGES = toy_images(16, seed=9)


def expanded(
    scheme: str, terms: int, gamma: float = 1.0, source: SampleSource | None = None, teacher: nn.Module | None = None
) -> Student:
    quantizer = Rex(RexParams(terms=terms, gamma=gamma))
    return quantizer.quantize(teacher or toy_network(), source or NoSource(), ToyContext(bits=parse_scheme(scheme)))


def nearest(scheme: str) -> Student:
    quantizer = Calibrate(CalibrateParams(range="bn"))
    return quantizer.quantize(toy_network(), NoSource(), ToyContext(bits=parse_scheme(scheme)))


def quantizers(student: Student) -> list[tuple[Tensor, FakeQuantizeWeight]]:
    return [(weight.detach(), quantizer) for _, weight, quantizer in student.quantized_weights()]


def digits() -> ModelSpec:
    model = Catalogue.discover([], [], families={}).models("digits")[0]
    assert isinstance(model, ModelSpec)
    return model


@pytest.mark.parametrize("scheme", ["w3a32@gdfq", "w4a32@gdfq", "w4a32@deploy", "w6a32@tensor", "w3a32@brecq"])
@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_the_error_falls_by_half_a_step_with_every_term(scheme: str, terms: int) -> None:
    for weight, quantizer in quantizers(expanded(scheme, terms)):
        largest = weight.abs().flatten(1).amax(1)
        if scheme.endswith("@tensor"):
            largest = largest.amax()
        present = torch.ones(len(weight))
        if quantizer.residual_scales is not None:
            present = 1 + (quantizer.residual_scales > 0).sum(0)
        # float32 does not hold the third term of 8 bits.
        assert quantizer.bits > 4 or set(present.tolist()) == {terms}
        bound = (0.5 / (2 ** (quantizer.bits - 1) - 1)) ** present * largest
        error = (quantizer(weight) - weight).abs().flatten(1).amax(1)
        assert bool((error <= 1.001 * bound + 2e-7 * largest).all())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("terms", "gamma"), [(1, 1.0), (3, 0.0)])
def test_one_term_or_no_covered_channel_is_rounding_to_nearest(scheme: str, terms: int, gamma: float) -> None:
    student, expected = expanded(scheme, terms, gamma), nearest(scheme)
    for (weight, quantizer), (other, rounding) in zip(quantizers(student), quantizers(expected), strict=True):
        assert torch.equal(quantizer(weight), rounding(other))
    assert torch.equal(student(IMAGES), expected(IMAGES))
    state = expanded(scheme, 1).finished_state()
    assert all(torch.equal(state.pop(name), value) for name, value in student.finished_state().items())
    assert not state


@torch.no_grad()
def test_four_terms_of_four_bits_recover_the_outputs() -> None:
    teacher = toy_network()
    logits = teacher(IMAGES)
    error = (expanded("w4a32@gdfq", 4)(IMAGES) - logits).abs().max() / logits.abs().max()
    assert float(error) < 1e-4
    assert float((expanded("w4a32@gdfq", 1)(IMAGES) - logits).abs().max() / logits.abs().max()) > 1e-2


def test_shares_of_layers_rise_and_their_mean_is_gamma() -> None:
    for gamma in (0.0, 0.25, 0.5, 0.8, 1.0):
        shares = layer_shares(gamma, 7)
        assert shares == sorted(shares)
        assert min(shares) >= 0
        assert max(shares) <= 1
        assert sum(shares) / 7 == pytest.approx(gamma)
    assert layer_shares(0.5, 3) == [0.0, 0.5, 1.0]
    assert layer_shares(0.3, 1) == [0.3]


def test_sparse_terms_cover_the_channels_with_the_largest_remainder() -> None:
    student, one = expanded("w3a4@gdfq", 2, 0.5), expanded("w3a4@gdfq", 1)
    layers = list(student.layers)
    covered: dict[str, float] = {}
    for (name, weight, quantizer), (_, rounding) in zip(student.quantized_weights(), quantizers(one), strict=True):
        if quantizer.residual_scales is None:
            covered[name] = 0.0
            continue
        has_term = quantizer.residual_scales[0] > 0
        covered[name] = float(has_term.float().mean())
        remainder = (rounding(weight) - weight).detach().flatten(1).norm(dim=1)
        if 0 < covered[name] < 1:
            assert remainder[has_term].min() >= remainder[~has_term].max()
        assert torch.equal(quantizer(weight)[~has_term], rounding(weight)[~has_term])
    shares = [covered[name] for name in layers]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("terms", "gamma"), [(2, 1.0), (3, 0.5), (4, 1.0), (12, 1.0)])
def test_a_state_holds_the_terms_and_coverage_accepts_them(scheme: str, terms: int, gamma: float) -> None:
    student = expanded(scheme, terms, gamma)
    loaded = prepare(toy_network(), parse_scheme(scheme), toy_card())
    loaded.load_state_dict(student.finished_state())
    assert torch.equal(loaded(IMAGES), student(IMAGES))
    measured = measure_coverage(loaded, IMAGES)
    assert measured.violations == []
    assert measured.as_dict() == measure_coverage(student, IMAGES).as_dict()


def test_a_saved_student_is_loaded_with_its_terms(tmp_path: Path) -> None:
    model = digits()
    ctx = ToyContext(bits=parse_scheme("w3a3@gdfq"), card=model.card)
    student = Rex(RexParams(terms=3, gamma=0.5)).quantize(build_teacher(model), NoSource(), ctx)
    save_student(student, tmp_path, model.as_dict())
    loaded = load_student(tmp_path)
    images = torch.randn(4, *model.card.input_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(images), student(images))
    assert measure_coverage(loaded, images).as_dict() == measure_coverage(student, images).as_dict()


def test_ranges_come_from_images_where_there_are_some() -> None:
    source = FixedSource(toy_images(64))
    first, second, without = (expanded("w4a4@gdfq", 2, source=s) for s in (source, source, None))
    states = [student.finished_state() for student in (first, second, without)]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    ranges = [[float(quantizer.high) for quantizer in s.activation_quantizers()] for s in (first, without)]
    assert ranges[0] != ranges[1]
    assert measure_coverage(first, IMAGES).violations == []


def test_parameters_are_checked() -> None:
    for values in ({"terms": 0}, {"gamma": 1.5}, {"gamma": -0.1}):
        with pytest.raises(UsageError, match=next(iter(values))):
            build_params(RexParams, values, "rex")
    assert dataclasses.asdict(RexParams())["terms"] == 2
