"""SQuant's rounding: the released algorithm's levels, its inequalities, and students under every protocol."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dfqbench.api import Batch, SampleSource, UsageError
from dfqbench.quant import Student, parse_scheme, prepare
from dfqbench.quant.coverage import measure_coverage
from dfqbench.quant.fake_quantize import fake_quantize_weight, zeroq_qparams
from dfqbench.quantizers.calibrate import Calibrate, CalibrateParams
from dfqbench.quantizers.squant import SQuant, SQuantParams
from dfqbench.quantizers.squant_rounding import squant_levels
from dfqbench.quantizers.weight_quantizer import uniform_noise
from dfqbench.synth import FixedSource
from dfqbench.synth.no_images import NoSource
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_images, toy_network

SCHEMES = ("w4a4@gdfq", "w3a8@deploy", "w2a32@gdfq")


def kernels(weight: Tensor) -> Tensor:
    return weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(2)


def in_units(weight: Tensor, bits: int) -> Tensor:
    """Return a weight (out, ...) in units of its step size, (out, in, kernel elements)."""
    scale, zero_point = zeroq_qparams(*torch.aminmax(weight.flatten(1), dim=1), bits)
    return kernels(weight) * scale.view(-1, 1, 1) - zero_point.view(-1, 1, 1)


def weight(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def student_of(scheme: str = "w3a4@gdfq", source: SampleSource | None = None, **params: object) -> Student:
    ctx = ToyContext(bits=parse_scheme(scheme))
    quantizer = SQuant(SQuantParams(**params))  # type: ignore[arg-type]
    return quantizer.quantize(toy_network(), FixedSource(toy_images(64)) if source is None else source, ctx)


def calibrated(scheme: str) -> Student:
    return Calibrate(CalibrateParams()).quantize(
        toy_network(), FixedSource(toy_images(64)), ToyContext(bits=parse_scheme(scheme))
    )


@pytest.mark.parametrize("stages", ["k", "c", "kc"])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("name", ["conv3", "conv3wide", "depthwise", "pointwise", "linear"])
def test_levels_equal_those_of_the_released_code(real_data: Path, name: str, bits: int, stages: str) -> None:
    vectors = load_file(real_data / "squant" / "vectors.safetensors")
    levels = squant_levels(in_units(vectors[f"{name}.w"], bits), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, stages)
    assert torch.equal(levels.to(torch.int8), kernels(vectors[f"{name}.w{bits}.{stages}"]))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_errors_cancel_in_kernels_and_channels(bits: int) -> None:
    steps, limits = in_units(weight(32, 24, 3, 3), bits), (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    by_kernel, by_both = (squant_levels(steps, *limits, stages) - steps for stages in ("k", "kc"))
    assert float(by_kernel.sum(2).abs().max()) <= 0.5 + 1e-4
    assert float(by_both.sum((1, 2)).abs().max()) <= 0.5 + 1e-3
    assert float(by_both.sum(2).abs().max()) < 1.0
    assert float(by_both.abs().max()) < 1.0
    nearest = steps.round() - steps
    assert float(nearest.sum((1, 2)).abs().max()) > 1.0


@pytest.mark.parametrize("shape", [(16, 1, 3, 3), (12, 10, 1, 1), (10, 64)])
def test_depthwise_weights_need_no_stage_c_and_others_of_one_element_no_stage_k(shape: tuple[int, ...]) -> None:
    steps = in_units(weight(*shape), 3)
    one, both = ("k", "kc") if len(shape) == 4 and shape[1] == 1 else ("c", "kc")
    assert torch.equal(squant_levels(steps, -4, 3, one), squant_levels(steps, -4, 3, both))


def test_a_weight_on_its_levels_stays() -> None:
    steps = torch.randint(-4, 4, (3, 5, 9), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(squant_levels(steps, -4, 3), steps)


def test_a_clamped_weight_stays_on_the_levels() -> None:
    levels = squant_levels(10 * torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(0)), -4, 3)
    assert set(levels.unique().tolist()) <= set(range(-4, 4))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_keep_scale_and_zero_point_and_move_by_less_than_a_step(scheme: str) -> None:
    teacher = calibrated(scheme)
    for (name, rounded, quantizer), (_, original, _) in zip(
        student_of(scheme).quantized_weights(), teacher.quantized_weights(), strict=True
    ):
        nearest, inverse_step = fake_quantize_weight(original, quantizer.operand, quantizer.bits)
        assert torch.allclose(quantizer(rounded), rounded, atol=1e-6), name
        assert torch.equal(quantizer.rounded(rounded)[1], inverse_step), name
        moved = ((rounded - nearest) * inverse_step).round()
        assert set(moved.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert bool((moved != 0).any()), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_state_holds_scale_and_zero_point(scheme: str) -> None:
    student, images = student_of(scheme), toy_images(16, seed=9)
    loaded = prepare(toy_network(), parse_scheme(scheme), toy_card())
    loaded.load_state_dict(student.finished_state())
    assert torch.equal(loaded(images), student(images))
    assert measure_coverage(loaded, images).levels_ok
    for _, weight, quantizer in loaded.quantized_weights():
        inverse_step = quantizer.rounded(weight)[1]
        assert torch.equal(quantizer.rounded(weight / 2)[1], inverse_step)


def test_ranges_are_those_of_calibrate_for_the_rounded_weights() -> None:
    student = student_of("w3a4@gdfq", images=32)
    again = prepare(toy_network(), parse_scheme("w3a4@gdfq"), toy_card())
    again.load_state_dict(student.finished_state())
    with torch.no_grad(), again.observing("minmax"):
        again(toy_images(64)[:32])
    ranges = [[(float(q.low), float(q.high)) for q in s.activation_quantizers()] for s in (student, again)]
    assert ranges[0] == ranges[1]
    assert ranges[0] != [(float(q.low), float(q.high)) for q in calibrated("w3a4@gdfq").activation_quantizers()]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ranges", ["bn", "noise"])
def test_no_images_are_needed(ranges: str, scheme: str) -> None:
    student = student_of(scheme, NoSource(), without_images=ranges)
    assert measure_coverage(student, toy_images(8)).violations == []


def test_ranges_follow_batchnorm_where_the_rule_says_so() -> None:
    class Untouched(FixedSource):
        def sample(self, size: int) -> Batch:
            raise AssertionError(size)

    expected = student_of("w4a4@gdfq", NoSource()).state_dict()
    actual = student_of("w4a4@gdfq", Untouched(toy_images(4)), range="bn").state_dict()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_uniform_noise_is_not_normalised() -> None:
    noise = uniform_noise(50, ToyContext())
    assert noise.shape == (50, 3, 8, 8)
    assert float(noise.min()) == pytest.approx(0.0, abs=0.01)
    assert float(noise.max()) == pytest.approx(1.0, abs=0.01)


def test_range_rules_are_checked() -> None:
    with pytest.raises(UsageError, match="unknown range rule 'no-such-rule'"):
        SQuantParams(range="no-such-rule")
