"""Device functions that several kernels share."""

# Triton reads these functions as its own language: no annotations but those of its constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: added and taken off again, it rounds a smaller float32 half to even."""


@triton.jit
def quantized(x, scale, shift, low, high):
    """The integer S times the level nearest to x (`quant.fake_quantize`)."""
    n = x * scale - shift
    n = tl.where(n < low, low, n)
    n = tl.where(n > high, high, n)
    return ((n + ROUND) - ROUND) + shift


@triton.jit
def channel(i, channels, POWER: tl.constexpr):
    """The channel of the i-th element; cheap where their number is a power of two, which the compiler then knows."""
    return i % POWER if POWER > 0 else i % channels


@triton.jit
def sample_of(i, sample, WHOLE: tl.constexpr, B: tl.constexpr):
    """The sample of the i-th element; with WHOLE all elements of a program are of one."""
    return (tl.program_id(0) * B) // sample if WHOLE else i // sample


@triton.jit
def slice_of(positions, slices):
    """Begin and end of the program's slice of the positions."""
    length = tl.cdiv(positions, slices)
    begin = tl.program_id(1) * length
    return begin, tl.minimum(begin + length, positions)


@triton.jit
def nearest(x):
    """The nearest integer, half to even, however large x is."""
    down = tl.floor(x)
    above = x - down
    odd = down - 2.0 * tl.floor(down * 0.5)
    return down + tl.where(above == 0.5, odd, tl.where(above > 0.5, 1.0, 0.0))
