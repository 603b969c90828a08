"""Kernels over tables of numbers for each sample and channel: moments of a batch, and a generator's BatchNorm."""

# Triton reads these functions as its own language: no annotations but those of its constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: D103, PLR0917, N803

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["samples"])
def batch_moments(means, variances, mean, var, samples, channels, P: tl.constexpr, C: tl.constexpr):
    """Moments of all samples from those of each, by the law of total variance."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    here = c < channels
    total = tl.zeros([C], tl.float32)
    for start in range(0, samples, P):
        n = start + tl.arange(0, P)
        at, inside = n[:, None] * channels + c[None, :], (n < samples)[:, None] & here[None, :]
        total += tl.sum(tl.load(means + at, mask=inside, other=0.0), 0)
    centre = total / samples
    second = tl.zeros([C], tl.float32)
    for start in range(0, samples, P):
        n = start + tl.arange(0, P)
        at, inside = n[:, None] * channels + c[None, :], (n < samples)[:, None] & here[None, :]
        off = tl.where(inside, tl.load(means + at, mask=inside, other=0.0) - centre[None, :], 0.0)
        second += tl.sum(tl.load(variances + at, mask=inside, other=0.0) + off * off, 0)
    tl.store(mean + c, centre, mask=here)
    tl.store(var + c, second / samples, mask=here)


@triton.jit(do_not_specialize=["samples"])
def batch_moments_backward(
    means, mean, to_mean, to_var, to_means, to_variances, samples, channels, B: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < samples * channels
    c = i % channels
    of_var = tl.load(to_var + c, mask=inside, other=0.0) / samples
    off = tl.load(means + i, mask=inside, other=0.0) - tl.load(mean + c, mask=inside, other=0.0)
    tl.store(to_variances + i, of_var, mask=inside)
    tl.store(to_means + i, tl.load(to_mean + c, mask=inside, other=0.0) / samples + 2.0 * of_var * off, mask=inside)


@triton.jit(do_not_specialize=["samples", "eps"])
def batch_affine(
    scale, shift, mean, var, inverse, whole, moved, samples, channels, eps, ROWS: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """Scale and shift of x for each sample: they normalise it by a batch's moments and apply `scale` and `shift`."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < samples * channels
    c = i % channels
    of_layer = i if ROWS else c
    one_over = tl.div_rn(1.0, tl.sqrt_rn(tl.load(var + c, mask=inside, other=1.0) + eps))
    slope = tl.load(scale + of_layer, mask=inside, other=0.0) * one_over
    tl.store(inverse + c, one_over, mask=inside & (i < channels))
    tl.store(whole + i, slope, mask=inside)
    offset = tl.load(shift + of_layer, mask=inside, other=0.0) - tl.load(mean + c, mask=inside, other=0.0) * slope
    tl.store(moved + i, offset, mask=inside)


@triton.jit(do_not_specialize=["samples", "count"])
def batch_affine_backward(
    by_x, to_shift, scale, mean, inverse, to_scales, to_shifts, incline, offset, samples, channels, count,
    ROWS: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients of a BatchNorm over a batch: in scale and shift, of each sample (ROWS) or of all; that of the moments.

    by_x and to_shift are sums for each sample; scale is (samples, channels) with ROWS, (channels) without.
    """
    c = tl.program_id(0) * C + tl.arange(0, C)
    here = c < channels
    one_over = tl.load(inverse + c, mask=here, other=0.0)
    of_g, of_gz = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(0, samples, P):
        n = start + tl.arange(0, P)
        at, inside = n[:, None] * channels + c[None, :], (n < samples)[:, None] & here[None, :]
        g = tl.load(to_shift + at, mask=inside, other=0.0)
        gz = tl.load(by_x + at, mask=inside, other=0.0) * one_over[None, :]
        if ROWS:
            tl.store(to_scales + at, gz, mask=inside)
            s = tl.load(scale + at, mask=inside, other=0.0)
            g, gz = g * s, gz * s
        of_g += tl.sum(g, 0)
        of_gz += tl.sum(gz, 0)
    if not ROWS:
        tl.store(to_scales + c, of_gz, mask=here)
        tl.store(to_shifts + c, of_g, mask=here)
        s = tl.load(scale + c, mask=here, other=0.0)
        of_g, of_gz = of_g * s, of_gz * s
    slope = -(of_gz / count) * one_over * one_over
    tl.store(incline + c, slope, mask=here)
    tl.store(offset + c, -(of_g / count) * one_over - slope * tl.load(mean + c, mask=here, other=0.0), mask=here)
