"""Device functions that several kernels share."""

# Triton functions have no annotations but those of their constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def channel(i, channels, POWER: tl.constexpr):
    """The channel of the i-th element; cheap where the number of channels is a power of two, POWER."""
    return i % POWER if POWER > 0 else i % channels


@triton.jit
def slice_of(positions, slices):
    """Begin and end of the program's slice of the positions."""
    length = tl.cdiv(positions, slices)
    begin = tl.program_id(1) * length
    return begin, tl.minimum(begin + length, positions)


@triton.jit
def phase_offset(position, channels, WIDTH: tl.constexpr):
    """The offset of a position of a merged map of 2 WIDTH columns in its sample of sub-pixel phases."""
    y, x = position // (2 * WIDTH), position % (2 * WIDTH)
    a, b = y % 2, x % 2
    i, j = a + y // 2, b + x // 2
    return ((i * (WIDTH + 1) + j) * 4 + 2 * a + b) * channels
