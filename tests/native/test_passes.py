"""The compiled passes against their twins in torch operations."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from dfqbench.native import binding, passes
from dfqbench.quant.fake import integral_shift, quantize_integral_shift, quantize_weight, quantize_with_codes
from dfqbench.quant.frozen import FrozenBatchNorm2d, affine_of, freeze_batchnorm
from dfqbench.quant.grid_conv import NOTE, GridConvolutions, on_grid
from dfqbench.synth.watched import watched_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import ModelCard
from dfqbench.models.cifar import CifarResNet
from dfqbench.quant import parse_scheme, prepare
from dfqbench.synth.moments import sample_moments

TYPES = (torch.float32, torch.bfloat16)
SIZES = ((3, 8, 1, 1), (2, 16, 5, 7), (4, 24, 17, 16), (1, 130, 40, 33))
"""One position, fewer and more than a segment, channels that fill no register."""


def feature_map(size: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Far from zero in some channels, so that a careless variance would show."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=random) + 30 * torch.randn(1, size[1], 1, 1, generator=random)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        for tensor, low, high in (
            (layer.running_mean, -2.0, 2.0),
            (layer.running_var, 0.1, 4.0),
            (layer.weight, -1.0, 2.0),
            (layer.bias, -1.0, 1.0),
        ):
            assert tensor is not None
            tensor.uniform_(low, high)
    return layer


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_moments_are_those_of_double_precision(in_use: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x = feature_map(size, dtype)
    mean, var = passes.moments(x)
    exact_var, exact_mean = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), exact_var, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_moments_and_gradients_equal_torchs(in_use: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    def found() -> list[Tensor]:
        x = feature_map(size, dtype).requires_grad_()
        moments = sample_moments(x)
        (moments.mean.sin().sum() + moments.var.sqrt().sum()).backward()
        assert x.grad is not None
        return [moments.mean.detach(), moments.var.detach(), x.grad]

    compiled = found()
    with binding.using(None):
        expected = found()
    tolerance = 2e-4 if dtype == torch.float32 else 1e-2
    if size[2] * size[3] > 1:  # the root's gradient is infinite where the variance is 0
        for one, other in zip(compiled, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=1e-5)
    torch.testing.assert_close(compiled[0], expected[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_watched_batchnorm_equals_torchs(in_use: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = norm(size[1]).requires_grad_(requires_grad=False)
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(size, generator=random), *(torch.randn(size[:2], generator=random) for _ in range(2))]

    def found() -> list[Tensor]:
        x = feature_map(size, dtype).requires_grad_()
        out, moments = watched_batchnorm(x, layer)
        parts = (out.float(), moments.mean, moments.var)
        sum((w * part).sum() for w, part in zip(weights, parts, strict=True)).backward()  # type: ignore[union-attr]
        assert x.grad is not None
        return [out.detach(), moments.mean.detach(), moments.var.detach(), x.grad]

    compiled = found()
    with binding.using(None):
        expected = found()
    assert compiled[0].dtype == compiled[3].dtype == dtype
    assert compiled[0].is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for one, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_rounding_is_equal_bit_for_bit(in_use: str, bits: int, order: torch.memory_format) -> None:
    x = (3 * torch.randn(5, 9, 6, 7)).to(memory_format=order)
    x[0, 0, 0, :6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e30])
    scale, shift = integral_shift(torch.tensor(-1.3), torch.tensor(2.7), bits)
    # Values half-way between two points of the grid.
    x[1, 0, 0, :] = (torch.arange(7) + 0.5 + shift) / scale
    compiled = quantize_with_codes(x, scale, shift, bits)
    alone = quantize_integral_shift(x, scale, shift, bits)
    with binding.using(None):
        expected = quantize_with_codes(x, scale, shift, bits)
    for one, other in zip((*compiled, alone), (*expected, expected[0]), strict=True):
        assert torch.equal(one.nan_to_num(nan=77.0), other.nan_to_num(nan=77.0))
        assert one.stride() == other.stride()
    assert torch.isnan(alone[0, 0, 0, 4])


@pytest.mark.parametrize("size", [(5, 3, 3, 3), (4, 512, 3, 3), (7, 40), (3, 8, 1, 1), (2, 1, 1, 1)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_weights_are_rounded_as_torch_does(in_use: str, size: tuple[int, ...], order: torch.memory_format) -> None:
    weight = torch.randn(size, generator=torch.Generator().manual_seed(5))
    weight[0] = 0.7  # a range without width
    weight[1] = weight[1] * 1e-3 + 12.3  # far from zero
    if len(size) == 4:
        weight = weight.to(memory_format=order)
    for bits in (2, 4, 8):
        results = []
        for path in ("in use", None):
            leaf = weight.clone().requires_grad_()
            with binding.using(None) if path is None else nullcontext():
                found = quantize_weight(leaf, bits, rounding="integral_shift", symmetric=False, per_channel=True)
                grid = getattr(found, NOTE)
                found.mul(torch.arange(found.numel()).view(found.shape)).sum().backward()
            assert leaf.grad is not None
            integers = grid.integers(found.detach())
            results.append((found.detach(), grid.scale.expand(size[0], *(1,) * (len(size) - 1)), integers, leaf.grad))
            assert found.stride() == weight.stride()
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_weight_that_is_not_a_number_stays_so(in_use: str) -> None:
    weight = torch.randn(3, 8, 3, 3)
    weight[1, 2, 0, 0] = torch.nan
    found = quantize_weight(weight, 4, rounding="integral_shift", symmetric=False, per_channel=True)
    assert found.isnan().flatten(1).any(1).tolist() == [False, True, False]


def test_scaling_between_types_equals_torchs(in_use: str) -> None:
    factor = torch.rand(1, 24, 1, 1) + 0.5
    wide = feature_map((3, 24, 5, 5))
    wide[0, 0, 0, 0] = torch.nan
    narrowed = passes.scaled(wide, factor, torch.bfloat16)
    assert torch.equal(narrowed.nan_to_num(nan=77.0), (wide * factor).to(torch.bfloat16).nan_to_num(nan=77.0))
    widened = passes.scaled(narrowed, factor, torch.float32)
    assert torch.equal(widened.nan_to_num(nan=77.0), (narrowed.float() * factor).nan_to_num(nan=77.0))


@pytest.mark.parametrize("size", SIZES)
def test_a_students_batchnorm_has_torchs_values_and_gradients(in_use: str, size: tuple[int, ...]) -> None:
    layer = norm(size[1])
    grad = torch.randn(size, generator=torch.Generator().manual_seed(2))

    def found(of: nn.Module) -> list[Tensor]:
        of.zero_grad()
        x = feature_map(size).requires_grad_()
        out = of(x)
        out.backward(grad)
        grads = [parameter.grad.clone() for parameter in of.parameters() if parameter.grad is not None]
        assert len(grads) == 2
        assert x.grad is not None
        return [out.detach(), x.grad, *grads]

    compiled, expected = found(FrozenBatchNorm2d.of(layer)), found(layer)
    assert torch.equal(compiled[0], expected[0])
    for one, other in zip(compiled[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_freezing_keeps_parameters_names_and_layers_that_do_more() -> None:
    class Special(nn.BatchNorm2d):
        pass

    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), Special(8), nn.BatchNorm2d(8, track_running_stats=False)
    )
    before = dict(network.named_parameters())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    freeze_batchnorm(network)
    assert [type(layer) for layer in network] == [nn.Conv2d, FrozenBatchNorm2d, Special, nn.BatchNorm2d]
    assert all(dict(network.named_parameters())[name] is parameter for name, parameter in before.items())
    assert list(network.state_dict()) == list(state)


def test_a_gradient_in_another_memory_order_is_read_right(in_use: str) -> None:
    x = feature_map((2, 16, 6, 5))
    grad = torch.randn(2, 16, 6, 5)  # rows of positions, not of channels
    affine = (torch.ones(16), torch.zeros(16))
    inverse = torch.rand(16) + 0.5
    out, _, to_scale, to_shift = passes.affine_backward(x, grad, affine, affine[1], inverse=inverse)
    torch.testing.assert_close(out, grad)
    torch.testing.assert_close(to_scale, (grad * x).sum((0, 2, 3)) * inverse, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(to_shift, grad.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_takes_the_other_path(in_use: str) -> None:
    good = feature_map((2, 16, 4, 4))
    assert passes.fits(good)
    assert not passes.fits(good.contiguous())
    assert not passes.fits(good.double())
    assert not passes.fits(feature_map((2, 3, 4, 4)))
    assert not passes.fits(good[0])
    assert not passes.fits(good[:0])
    assert not passes.fits_flat(good[:, :8])
    with binding.using(None):
        assert not passes.fits(good)
        assert not passes.fits_flat(good)
    assert binding.takes("cpu")


def test_the_number_of_threads_changes_nothing(library: str) -> None:
    x = feature_map((5, 24, 20, 20))
    scale, shift = torch.rand(1, 24, 1, 1), torch.rand(1, 24, 1, 1)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            to_x, _, *sums = passes.affine_backward(x, x, (scale, shift), shift, inverse=scale.flatten())
            grid = (scale[0, 0, 0, 0] * 10, shift[0, 0, 0, 0], -8.0, 7.0)
            rounded = passes.rounded_block(x, (scale, shift), grid, residual=x)
            clipped = passes.affine_backward(
                x, x, (scale, shift), shift, inverse=scale.flatten(), residual=x, ceiling=torch.inf
            )
            results = (*passes.block_forward(x, (scale, shift)), to_x, *sums, rounded, *clipped)
            found.append([tensor for tensor in results if tensor is not None])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_a_nan_is_kept(in_use: str) -> None:
    x = feature_map((2, 16, 4, 4))
    x[1, 3, 2, 2] = torch.nan
    mean, var = passes.moments(x)
    assert torch.isnan(mean[1, 3])
    assert torch.isnan(var[1, 3])
    assert int(torch.isnan(mean).sum()) == int(torch.isnan(var).sum()) == 1
    affine = (torch.ones(16), torch.zeros(16))
    for residual in (None, torch.zeros_like(x)):
        for ceiling in (None, torch.inf, 6.0):
            if residual is None or ceiling is not None:
                out = passes.block_forward(x, affine, residual=residual, ceiling=ceiling)[0]
                assert torch.equal(torch.isnan(out), torch.isnan(x))


@pytest.mark.parametrize("ceiling", [torch.inf, 6.0])
def test_gradients_of_numbers_that_are_not_finite_are_torchs(in_use: str, ceiling: float) -> None:
    values = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 6.0, 7.0, -1.0, 3.0]
    x = torch.zeros(1, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    x[0, 0] = torch.tensor(values).view(3, 3)
    leaf = x.clone().requires_grad_()
    (F.relu(leaf) if ceiling == torch.inf else F.relu6(leaf)).sum().backward()
    affine, nothing = (torch.ones(16), torch.zeros(16)), torch.zeros(1, 16)
    # A residual's gradient is what the activation lets through.
    _, passed = passes.block_backward(
        x, torch.ones_like(x), affine, (nothing, nothing), residual=torch.zeros_like(x), ceiling=ceiling
    )
    assert passed is not None
    assert leaf.grad is not None
    assert torch.equal(passed, leaf.grad)


def test_one_factor_serves_all_channels(in_use: str) -> None:
    wide = feature_map((3, 24, 5, 5))
    factor = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    assert torch.equal(passes.scaled(wide, factor, torch.bfloat16), (wide * factor.float()).to(torch.bfloat16))


def test_a_weight_with_one_range_trains_as_in_torch(in_use: str) -> None:
    """The convolution on integers of a grid that one scale describes."""
    torch.manual_seed(0)
    x, weight = torch.relu(torch.randn(2, 16, 6, 6)), torch.randn(16, 16, 3, 3)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))

    def found() -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        scale, shift = integral_shift(torch.tensor(0.0), torch.tensor(3.0), 4)
        quantized = on_grid(quantize_integral_shift(leaves[0], scale, shift, 4), scale)
        grid = quantize_weight(leaves[1], 4, rounding="integral_shift", symmetric=False, per_channel=False)
        with GridConvolutions():
            out = torch.conv2d(quantized, grid, None, (1, 1), (1, 1), (1, 1), 1)
        out.square().sum().backward()
        assert leaves[0].grad is not None
        assert leaves[1].grad is not None
        return [out.detach(), leaves[0].grad, leaves[1].grad]

    compiled = found()
    with binding.using(None):
        expected = found()
    for one, other in zip(compiled, expected, strict=True):
        if in_use == "kernels":
            # They do not round the sums to bfloat16.
            assert (one - other).norm() <= 2**-8 * other.norm()
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("add", [False, True])
def test_a_rounded_block_is_the_rounding_of_its_sum(in_use: str, size: tuple[int, ...], add: bool) -> None:
    x, residual = feature_map(size), feature_map(size, seed=3).contiguous() if add else None
    x[0, 0, 0, 0] = torch.nan
    factors, shifts = torch.randn(2, size[1])
    affine = factors, shifts
    scale, shift = integral_shift(torch.tensor(0.0), torch.tensor(60.0), 4)
    codes = torch.empty_like(x, dtype=torch.bfloat16)
    out = passes.rounded_block(x, affine, (scale, shift, -8.0, 7.0), residual=residual, codes=codes)
    total = x * affine[0].view(1, -1, 1, 1) + affine[1].view(1, -1, 1, 1)
    total = total if residual is None else total + residual
    expected, integers = quantize_with_codes(total, scale, shift, 4)
    assert torch.equal(out.nan_to_num(nan=77.0), expected.nan_to_num(nan=77.0))
    assert torch.equal(codes.nan_to_num(nan=77.0), integers.nan_to_num(nan=77.0))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_a_default_type_of_torch_changes_nothing(in_use: str) -> None:
    x = feature_map((2, 16, 4, 4))
    expected = passes.moments(x)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found = passes.moments(x)
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_operands_of_another_size_are_refused(in_use: str) -> None:
    x = feature_map((2, 16, 4, 4))
    with pytest.raises(ValueError, match="does not fit"):
        passes.block_forward(x, (torch.ones(1), torch.zeros(16)))
    with pytest.raises(ValueError, match="does not fit"):
        passes.block_forward(x, (torch.ones(16), torch.zeros(16)), residual=x[:1], ceiling=torch.inf)
    with pytest.raises(ValueError, match="needs a ceiling"):
        passes.block_forward(x, (torch.ones(16), torch.zeros(16)), residual=x)
    with pytest.raises(ValueError, match="does not fit"):
        passes.rounded_block(x, (torch.ones(16), torch.zeros(16)), (x[0, 0, 0, 0],) * 2 + (0.0, 1.0), residual=x[:1])
    with pytest.raises(ValueError, match="does not fit"):
        passes.affine_backward(x, x[:, :8], (torch.ones(16), torch.zeros(16)), torch.zeros(16), inverse=torch.ones(16))


@pytest.mark.parametrize("scheme", ["w4a4", "w3a8@deploy"])
def test_an_evaluated_student_has_the_same_logits_bit_for_bit(in_use: str, scheme: str) -> None:
    torch.manual_seed(0)
    network = CifarResNet(8, 10, "A").train()
    images = torch.randn(2 if in_use == "kernels" else 16, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        network(images)
        student = prepare(network.eval(), parse_scheme(scheme), ModelCard((3, 32, 32), (0.0,) * 3, (1.0,) * 3, 10))
        with student.observing("minmax"):
            student(images)
        compiled = student(images)
        with binding.using(None):
            assert torch.equal(student(images), compiled)


def test_small_factors_are_those_of_torch(in_use: str) -> None:
    layer = norm(40)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    frozen = layer.running_mean, layer.running_var, 1e-5
    assert passes.fits_affine(layer.weight, *frozen[:2])
    compiled = affine_of(layer.weight, layer.bias, frozen)
    with binding.using(None):
        assert not passes.fits_affine(layer.weight)
        expected = affine_of(layer.weight, layer.bias, frozen)
    for one, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-6, atol=1e-7)
    x_scale, w_scale = torch.tensor(3.7), torch.rand(9, 1, 1, 1) + 0.5
    unit, inner, ratio = passes.units(x_scale, w_scale)
    assert torch.equal(unit, (x_scale * w_scale).reciprocal().flatten())
    assert torch.equal(inner, unit * x_scale)
    assert torch.equal(ratio, (w_scale / x_scale).flatten())
