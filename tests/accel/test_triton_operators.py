"""Triton forms of the operators on feature maps and weights, interpreted, against the operators' definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dfqbench.quant.batch_norm import batch_norm_act
from dfqbench.quant.fake_quantize import fake_quantize, fake_quantize_channels, zeroq_qparams
from dfqbench.synth.generators import standardize
from dfqbench.synth.moments import batch_norm_stats
from dfqbench.synth.sub_pixel import sub_pixel_norm

pytest.importorskip("triton", reason="Triton is not installed")

from dfqbench.accel.triton.batch_norm_act import batch_norm_act_form
from dfqbench.accel.triton.fake_quantize import fake_quantize_channels_form, fake_quantize_form
from dfqbench.accel.triton.statistics import batch_norm_stats_form
from dfqbench.accel.triton.sub_pixel import standardize_form, sub_pixel_norm_form

pytestmark = pytest.mark.usefixtures("interpreter")

TYPES = (torch.float32, torch.bfloat16)
SIZES = ((3, 8, 1, 1), (2, 16, 8, 8), (2, 24, 5, 7), (1, 130, 23, 24))
"""One position; whole programs of one sample; channels that are no power of two; several slices of positions."""


def plain(function: Any) -> Any:
    """Return the form behind a dispatching function, or the definition behind an operator."""
    return function.__wrapped__


def random_map(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0, spread: float = 30) -> Tensor:
    """Return a channels-last map whose channels are far from zero, so that a careless variance would show."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=random) + spread * torch.randn(1, size[1], 1, 1, generator=random)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def outputs_and_gradients(function: Any, args: Sequence[Any], grads: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return a function's outputs, and the gradients in those of its first `count` arguments that are not None."""
    leaves = [arg.clone().requires_grad_() for arg in args[:count] if arg is not None]
    iterator = iter(leaves)
    out = function(*(None if arg is None else next(iterator) for arg in args[:count]), *args[count:])
    outs = out if isinstance(out, tuple) else (out,)
    typed = [grad.to(a.dtype) for a, grad in zip(outs, grads, strict=True)]
    return [*(a.detach() for a in outs), *torch.autograd.grad(outs, leaves, typed)]


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Compare tensors, relative to the largest number of each."""
    for a, b in zip(actual, expected, strict=True):
        atol = tolerance * float(b.abs().max().clamp(min=1e-3))
        torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=atol)


def batch_norm(channels: int) -> list[Tensor]:
    """Return weight, bias, running mean and variance of a BatchNorm layer."""
    random = torch.Generator().manual_seed(7)
    weight, bias, mean, var = torch.rand(4, channels, generator=random)
    return [3 * weight - 1, 2 * bias - 1, 4 * mean - 2, 4 * var + 0.1]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_fake_quantize_is_the_definition_bit_for_bit(bits: int, order: torch.memory_format) -> None:
    x = (3 * torch.randn(5, 9, 6, 7)).to(memory_format=order)
    x[0, 0, 0, :6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e30])
    scale, shift = zeroq_qparams(torch.tensor(-1.3), torch.tensor(2.7), bits)
    x[1, 0, 0] = (torch.arange(7) + 0.5 + shift) / scale  # between two levels
    grad = torch.randn(x.shape)
    out, to_x = outputs_and_gradients(plain(fake_quantize_form), (x, scale, shift, bits), [grad], 1)
    assert torch.equal(to_x, grad)
    torch.testing.assert_close(out, plain(fake_quantize)(x, scale, shift, bits), rtol=0, atol=0, equal_nan=True)
    assert out.stride() == x.stride()
    assert out[0, 0, 0].isnan().tolist() == [False] * 4 + [True] + [False] * 2


@pytest.mark.parametrize("size", [(5, 3, 3, 3), (4, 512, 3, 3), (7, 40), (3, 8, 1, 1), (2, 1, 1, 1)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_weights_are_the_definition_bit_for_bit(size: tuple[int, ...], order: torch.memory_format) -> None:
    weight = torch.randn(size, generator=torch.Generator().manual_seed(5))
    weight[-1] = weight[-1].clamp(-1.5, 1.5)  # with 2 bits the range begins half-way between two integers
    weight[0] = 0.7  # a range without width
    weight[1] = weight[1] * 1e-3 + 12.3  # far from zero
    weight = weight.to(memory_format=order) if len(size) == 4 else weight
    grad = torch.randn(size)
    for bits in (2, 4, 8):
        leaf = weight.clone().requires_grad_()
        out, scale = plain(fake_quantize_channels_form)(leaf, bits)
        expected, expected_scale = plain(fake_quantize_channels)(weight, bits)
        assert torch.equal(out, expected)
        assert torch.equal(scale, expected_scale)
        assert not scale.requires_grad
        assert out.stride() == weight.stride()
        assert torch.equal(torch.autograd.grad(out, leaf, grad)[0], grad)


def test_nan_in_a_weight_stays_in_its_channel() -> None:
    weight = torch.randn(3, 8, 3, 3)
    weight[1, 2, 0, 0] = torch.nan
    out, _ = plain(fake_quantize_channels_form)(weight, 4)
    assert out.isnan().flatten(1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("upper", "add"), [(torch.inf, False), (torch.inf, True), (6.0, True)])
def test_batch_norm_act_is_the_definition(size: tuple[int, ...], dtype: torch.dtype, upper: float, add: bool) -> None:
    x = random_map(*size, dtype=dtype, spread=3)
    residual = random_map(*size, dtype=dtype, seed=3, spread=1) if add else None
    args = x, residual, *batch_norm(size[1]), 1e-5, upper
    grad = torch.randn(size, generator=torch.Generator().manual_seed(2)).to(dtype)  # contiguous
    actual = outputs_and_gradients(plain(batch_norm_act_form), args, [grad], 4)
    wide = [arg.float() if isinstance(arg, Tensor) else arg for arg in args]
    expected = outputs_and_gradients(plain(batch_norm_act), wide, [grad], 4)
    assert actual[0].dtype == actual[1].dtype == dtype
    assert actual[0].is_contiguous(memory_format=torch.channels_last)
    assert_close(actual, expected, 1e-4 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("upper", [torch.inf, 6.0])
def test_batch_norm_act_clips_and_keeps_nan_as_the_definition(upper: float) -> None:
    x = torch.zeros(1, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    x[0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 6.0, 7.0, -1.0, 3.0]).view(3, 3)
    ones, zeros = torch.ones(16), torch.zeros(16)
    # The residual's gradient is what the activation lets through.
    args = x, torch.zeros_like(x), ones, zeros, zeros, ones, 0.0, upper
    actual, expected = (
        outputs_and_gradients(plain(form), args, [torch.ones_like(x)], 2)
        for form in (batch_norm_act_form, batch_norm_act)
    )
    torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(actual[2], expected[2])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_batch_norm_stats_are_those_of_double_precision(size: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random_map(*size, dtype=dtype)
    grads = list(torch.randn(2, *size[:2], generator=torch.Generator().manual_seed(1)))
    mean, var, to_x = outputs_and_gradients(plain(batch_norm_stats_form), [x], grads, 1)
    expected = outputs_and_gradients(plain(batch_norm_stats), [x.double()], grads, 1)
    assert (mean.dtype, var.dtype, to_x.dtype) == (torch.float32, torch.float32, dtype)
    torch.testing.assert_close(mean.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), expected[1], rtol=2e-5, atol=1e-6)
    assert_close([to_x], expected[2:], 2e-5 if dtype == torch.float32 else 1e-2)


def test_nan_in_a_map_stays_in_its_sample_and_channel() -> None:
    x = random_map(2, 16, 4, 4)
    x[1, 3, 2, 2] = torch.nan
    for moment in plain(batch_norm_stats_form)(x):
        assert moment.isnan().nonzero().tolist() == [[1, 3]]


def random_phases(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return phases whose border, which is no part of the merged map, is far from all other numbers."""
    samples, channels, height, width = size
    x = random_map(samples, 4 * channels, height + 1, width + 1, spread=0)
    x += 10 * torch.randn(channels, generator=torch.Generator().manual_seed(3)).repeat(4).view(1, -1, 1, 1)
    for phase in range(4):
        a, b = divmod(phase, 2)
        part = x[:, phase * channels : (phase + 1) * channels]
        part[:, :, 0 if a else height] = 1e4
        part[:, :, :, 0 if b else width] = -1e4
    return x.to(dtype)


@pytest.mark.parametrize("size", [(3, 8, 2, 2), (2, 16, 5, 7), (4, 24, 9, 3), (1, 6, 1, 1), (2, 20, 16, 10)])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("per_sample", [True, False])
def test_sub_pixel_norm_is_the_definition(size: tuple[int, ...], dtype: torch.dtype, per_sample: bool) -> None:
    samples, channels, height, width = size
    random = torch.Generator().manual_seed(1)
    scale, shift = torch.randn(2, samples if per_sample else 1, channels, generator=random)
    args = random_phases(size, dtype), scale, shift, 0.8, 0.2
    grad = torch.randn(samples, channels, 2 * height, 2 * width, generator=random).to(dtype)
    actual = outputs_and_gradients(plain(sub_pixel_norm_form), args, [grad], 3)
    expected = outputs_and_gradients(plain(sub_pixel_norm), [*(arg.double() for arg in args[:3]), *args[3:]], [grad], 3)
    assert actual[0].dtype == actual[1].dtype == dtype
    assert actual[0].is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        # Where the leaky ReLU's input is 0 but for rounding, its slope may be the other one.
        assert int((~torch.isclose(a.double(), b, rtol=tolerance, atol=tolerance)).sum()) <= 2


@pytest.mark.parametrize("size", [(3, 3, 5, 7), (5, 8, 1, 1)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_standardize_is_the_definition(size: tuple[int, ...], order: torch.memory_format) -> None:
    x, grad = random_map(*size, spread=3).contiguous(memory_format=order), torch.randn(size)
    actual = outputs_and_gradients(plain(standardize_form), (x, 1e-5), [grad], 1)
    expected = outputs_and_gradients(plain(standardize), (x.double(), 1e-5), [grad], 1)
    assert_close(actual, expected, 1e-4)
