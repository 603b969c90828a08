"""The compiled passes for GPUs, in Triton; each computes what its namesake in `kernels/` does.

Counts of elements and channels are left for Triton to specialise on: only where it knows them to be multiples of 16
does it read several elements at once.

Maps are channels-last, (samples, positions, channels) in memory, and are computed in float32. Those that sum over
positions run a program for each sample, block of channels and slice of positions; the others take elements in a row.
"""

# Triton reads these functions as its own language: no annotations but those of its constants.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# ruff: noqa: D103, PLR0917, N803

from __future__ import annotations

import triton
import triton.language as tl

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: added and taken off again, it rounds a smaller float32 half to even."""


@triton.jit
def _summed(x, scale, shift, residual, ADD: tl.constexpr):
    y = x * scale + shift
    return y + residual if ADD else y


@triton.jit
def _clipped(y, ceiling, CLIP: tl.constexpr):
    # In this order NaN stays NaN.
    if CLIP:
        y = tl.where(y < 0.0, 0.0, y)
        y = tl.where(y > ceiling, ceiling, y)
    return y


@triton.jit
def _passed(grad, y, ceiling, CLIP: tl.constexpr, CAPPED: tl.constexpr):
    if CLIP:
        grad = tl.where(y <= 0.0, 0.0, grad)
        if CAPPED:
            grad = tl.where(y < ceiling, grad, 0.0)
    return grad


@triton.jit
def _code(x, scale, shift, low, high):
    n = x * scale - shift
    n = tl.where(n < low, low, n)
    n = tl.where(n > high, high, n)
    return ((n + ROUND) - ROUND) + shift


@triton.jit
def _channel(i, channels, POWER: tl.constexpr):
    """The channel of the i-th element; cheap where their number is a power of two, which the compiler then knows."""
    return i % POWER if POWER > 0 else i % channels


@triton.jit
def _sample(i, sample, WHOLE: tl.constexpr, B: tl.constexpr):
    """The sample of the i-th element; with WHOLE all elements of a program are of one."""
    return (tl.program_id(0) * B) // sample if WHOLE else i // sample


@triton.jit
def _slice(positions, slices):
    """Begin and end of the program's slice of the positions."""
    length = tl.cdiv(positions, slices)
    begin = tl.program_id(1) * length
    return begin, tl.minimum(begin + length, positions)


@triton.jit
def _nearest(x):
    """The nearest integer, half to even, however large x is."""
    down = tl.floor(x)
    above = x - down
    odd = down - 2.0 * tl.floor(down * 0.5)
    return down + tl.where(above == 0.5, odd, tl.where(above > 0.5, 1.0, 0.0))


@triton.jit
def _place(position, width, channels):
    """Where a position of the woven map lies among the phases, in numbers from the sample's first."""
    y, x = position // (2 * width), position % (2 * width)
    a, b = y % 2, x % 2
    i, j = a + y // 2, b + x // 2
    return ((i * (width + 1) + j) * 4 + 2 * a + b) * channels


@triton.jit(do_not_specialize=["positions", "slices", "ceiling"])
def statistics(
    x, scale, shift, residual, out, mean, var, positions, slices, channels, ceiling,
    APPLY: tl.constexpr, ADD: tl.constexpr, CLIP: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of a slice of positions; with APPLY the block's output, too."""
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    here = c < channels
    begin, end = _slice(positions, slices)
    first = n * positions * channels
    total = tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + p[:, None] * channels + c[None, :]
        total += tl.sum(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), 0)
    centre = total / (end - begin)
    second = tl.zeros([C], tl.float32)
    if APPLY:
        slope = tl.load(scale + c, mask=here, other=0.0)[None, :]
        offset = tl.load(shift + c, mask=here, other=0.0)[None, :]
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + p[:, None] * channels + c[None, :]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        off = tl.where(inside, v - centre[None, :], 0.0)
        second += tl.sum(off * off, 0)
        if APPLY:
            r = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32) if ADD else 0.0
            tl.store(out + at, _clipped(_summed(v, slope, offset, r, ADD), ceiling, CLIP), mask=inside)
    to = (n * slices + part) * channels + c
    tl.store(mean + to, centre, mask=here)
    tl.store(var + to, second / (end - begin), mask=here)


@triton.jit(do_not_specialize=["positions", "slices"])
def pooled(means, variances, mean, var, positions, slices, channels, S: tl.constexpr, C: tl.constexpr):
    """Moments of all positions from those of the slices, by the law of total variance."""
    n, c = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    s = tl.arange(0, S)
    inside = (s < slices)[:, None] & (c < channels)[None, :]
    at = (n * slices + s[:, None]) * channels + c[None, :]
    length = tl.cdiv(positions, slices)
    weight = tl.maximum(tl.minimum(positions - s * length, length), 0).to(tl.float32)[:, None] / positions
    m = tl.load(means + at, mask=inside, other=0.0)
    whole = tl.sum(m * weight, 0)
    off = tl.where(inside, m - whole[None, :], 0.0)
    v = tl.load(variances + at, mask=inside, other=0.0)
    tl.store(mean + n * channels + c, whole, mask=c < channels)
    tl.store(var + n * channels + c, tl.sum((v + off * off) * weight, 0), mask=c < channels)


@triton.jit
def moments_backward(
    x, slope, offset, out, count, sample, channels, POWER: tl.constexpr, WHOLE: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    to = _sample(i, sample, WHOLE, B) * channels + _channel(i, channels, POWER)
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    a, b = tl.load(slope + to, mask=inside, other=0.0), tl.load(offset + to, mask=inside, other=0.0)
    tl.store(out + i, b + a * v, mask=inside)


@triton.jit(do_not_specialize=["ceiling"])
def block_backward(
    x, residual, grad, scale, shift, slope, offset, to_x, to_residual, count, sample, channels, ceiling,
    ADD: tl.constexpr, CLIP: tl.constexpr, CAPPED: tl.constexpr, POWER: tl.constexpr, WHOLE: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    c = _channel(i, channels, POWER)
    to = _sample(i, sample, WHOLE, B) * channels + c
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(scale + c, mask=inside, other=0.0)
    if CLIP:
        r = tl.load(residual + i, mask=inside, other=0.0).to(tl.float32) if ADD else 0.0
        y = _summed(v, s, tl.load(shift + c, mask=inside, other=0.0), r, ADD)
        g = _passed(g, y, ceiling, CLIP, CAPPED)
    a, b = tl.load(slope + to, mask=inside, other=0.0), tl.load(offset + to, mask=inside, other=0.0)
    tl.store(to_x + i, (b + a * v) + g * s, mask=inside)
    if ADD:
        tl.store(to_residual + i, g, mask=inside)


@triton.jit(do_not_specialize=["positions", "slices", "ceiling"])
def affine_backward(
    x, residual, grad, scale, shift, centre, to_x, to_residual, to_scale, to_shift, positions, slices, channels,
    ceiling, ADD: tl.constexpr, CLIP: tl.constexpr, CAPPED: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    here = c < channels
    begin, end = _slice(positions, slices)
    first = n * positions * channels
    slope = tl.load(scale + c, mask=here, other=0.0)[None, :]
    offset = tl.load(shift + c, mask=here, other=0.0)[None, :]
    middle = tl.load(centre + c, mask=here, other=0.0)[None, :]
    by_x, total = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + p[:, None] * channels + c[None, :]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if CLIP:
            r = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32) if ADD else 0.0
            g = _passed(g, _summed(v, slope, offset, r, ADD), ceiling, CLIP, CAPPED)
        total += tl.sum(g, 0)
        by_x += tl.sum(g * (v - middle), 0)
        tl.store(to_x + at, g * slope, mask=inside)
        if ADD:
            tl.store(to_residual + at, g, mask=inside)
    to = (part * tl.num_programs(0) + n) * channels + c
    tl.store(to_scale + to, by_x, mask=here)
    tl.store(to_shift + to, total, mask=here)


@triton.jit
def totals(first, second, to_first, to_second, rows, channels, P: tl.constexpr, C: tl.constexpr):
    """Sums of two tables over their rows."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    one, two = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(0, rows, P):
        p = start + tl.arange(0, P)
        inside = (p < rows)[:, None] & (c < channels)[None, :]
        at = p[:, None] * channels + c[None, :]
        one += tl.sum(tl.load(first + at, mask=inside, other=0.0), 0)
        two += tl.sum(tl.load(second + at, mask=inside, other=0.0), 0)
    tl.store(to_first + c, one, mask=c < channels)
    tl.store(to_second + c, two, mask=c < channels)


@triton.jit(do_not_specialize=["positions", "by_mean", "by_var"])
def moments_gradient(mean, to_mean, to_var, slope, offset, positions, by_mean, by_var, channels, C: tl.constexpr):
    """A program for each sample: slope and offset of the moments' gradient; rows of gradients lie apart."""
    n, c = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    here = c < channels
    a = tl.load(to_var + n * by_var + c, mask=here, other=0.0) * (2.0 / positions)
    of_mean = tl.load(to_mean + n * by_mean + c, mask=here, other=0.0) / positions
    tl.store(slope + n * channels + c, a, mask=here)
    tl.store(offset + n * channels + c, of_mean - a * tl.load(mean + n * channels + c, mask=here, other=0.0), mask=here)


@triton.jit(do_not_specialize=["eps"])
def affine(weight, bias, mean, var, scale, shift, inverse, channels, eps, C: tl.constexpr):
    """What a BatchNorm layer in eval mode amounts to."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    here = c < channels
    one_over = tl.div_rn(1.0, tl.sqrt_rn(tl.load(var + c, mask=here, other=1.0) + eps))
    slope = tl.load(weight + c, mask=here, other=0.0) * one_over
    tl.store(inverse + c, one_over, mask=here)
    tl.store(scale + c, slope, mask=here)
    moved = tl.load(bias + c, mask=here, other=0.0) - tl.load(mean + c, mask=here, other=0.0) * slope
    tl.store(shift + c, moved, mask=here)


@triton.jit
def units(x_scale, w_scale, unit, inner, ratio, channels, C: tl.constexpr):
    """The factors between a convolution's integers and its numbers, and those of its gradients."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    here = c < channels
    of_x, of_w = tl.load(x_scale), tl.load(w_scale + c, mask=here, other=1.0)
    one = tl.div_rn(1.0, of_x * of_w)
    tl.store(unit + c, one, mask=here)
    tl.store(inner + c, one * of_x, mask=here)
    tl.store(ratio + c, tl.div_rn(of_w, of_x), mask=here)


@triton.jit
def scaled(x, factor, out, count, channels, POWER: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + i, v * tl.load(factor + _channel(i, channels, POWER), mask=inside, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["low", "high"])
def round_to_grid(x, out, codes, scale, shift, count, low, high, CODES: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    unit = tl.load(scale)
    n = _code(tl.load(x + i, mask=inside, other=0.0), unit, tl.load(shift), low, high)
    tl.store(out + i, tl.div_rn(n, unit), mask=inside)
    if CODES:
        tl.store(codes + i, n, mask=inside)


@triton.jit(do_not_specialize=["low", "high"])
def rounded_block(
    x, scale, shift, residual, out, codes, grid_scale, grid_shift, count, channels, low, high,
    ADD: tl.constexpr, CODES: tl.constexpr, POWER: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    c = _channel(i, channels, POWER)
    r = tl.load(residual + i, mask=inside, other=0.0) if ADD else 0.0
    a, b = tl.load(scale + c, mask=inside, other=0.0), tl.load(shift + c, mask=inside, other=0.0)
    unit = tl.load(grid_scale)
    y = _summed(tl.load(x + i, mask=inside, other=0.0), a, b, r, ADD)
    n = _code(y, unit, tl.load(grid_shift), low, high)
    tl.store(out + i, tl.div_rn(n, unit), mask=inside)
    if CODES:
        tl.store(codes + i, n, mask=inside)


@triton.jit(do_not_specialize=["low", "high", "half", "smallest"])
def rounded_weight(
    x, out, codes, scale, count, low, high, half, smallest, B: tl.constexpr
):  # fmt: skip
    """A program for each output channel, whose numbers lie in a row: rounds them to the grid of their range."""
    row = tl.program_id(0)
    least = tl.full([B], float("inf"), tl.float32)
    most = tl.full([B], float("-inf"), tl.float32)
    for start in range(0, count, B):
        i = start + tl.arange(0, B)
        inside = i < count
        v = tl.load(x + row * count + i, mask=inside, other=0.0)
        least = tl.where(inside & (v < least), v, least)
        most = tl.where(inside & (v > most), v, most)
    bottom, top = tl.min(least, 0), tl.max(most, 0)
    span = top - bottom
    span = tl.where(span < smallest, smallest, span)
    unit = tl.div_rn(1.0, span) * (high - low)
    shift = _nearest(unit * bottom) + half
    tl.store(scale + row, unit)
    for start in range(0, count, B):
        i = start + tl.arange(0, B)
        inside = i < count
        n = _code(tl.load(x + row * count + i, mask=inside, other=0.0), unit, shift, low, high)
        tl.store(out + row * count + i, tl.div_rn(n, unit), mask=inside)
        tl.store(codes + row * count + i, n, mask=inside)


@triton.jit(do_not_specialize=["slices"])
def woven_statistics(
    phases, mean, var, height: tl.constexpr, width: tl.constexpr, slices, channels: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of a slice of the woven map's positions."""
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    here = c < channels
    positions = 4 * height * width
    begin, end = _slice(positions, slices)
    first = n * (height + 1) * (width + 1) * 4 * channels
    total = tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + _place(p, width, channels)[:, None] + c[None, :]
        total += tl.sum(tl.load(phases + at, mask=inside, other=0.0).to(tl.float32), 0)
    centre = total / (end - begin)
    second = tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + _place(p, width, channels)[:, None] + c[None, :]
        v = tl.load(phases + at, mask=inside, other=0.0).to(tl.float32)
        off = tl.where(inside, v - centre[None, :], 0.0)
        second += tl.sum(off * off, 0)
    to = (n * slices + part) * channels + c
    tl.store(mean + to, centre, mask=here)
    tl.store(var + to, second / (end - begin), mask=here)


@triton.jit(do_not_specialize=["negative"])
def woven_forward(
    phases, scale, shift, out, count, height: tl.constexpr, width: tl.constexpr, channels: tl.constexpr,
    negative, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    c, row = i % channels, i // channels
    n, p = row // (4 * height * width), row % (4 * height * width)
    at = n * (height + 1) * (width + 1) * 4 * channels + _place(p, width, channels) + c
    to = n * channels + c
    a, b = tl.load(scale + to, mask=inside, other=0.0), tl.load(shift + to, mask=inside, other=0.0)
    y = tl.load(phases + at, mask=inside, other=0.0).to(tl.float32) * a + b
    tl.store(out + i, tl.where(y < 0.0, y * negative, y), mask=inside)


@triton.jit(do_not_specialize=["slices", "negative"])
def woven_sums(
    phases, grad, scale, shift, centre, to_scale, to_shift, height: tl.constexpr, width: tl.constexpr, slices,
    channels: tl.constexpr, negative, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    n, part, c = tl.program_id(0), tl.program_id(1), tl.program_id(2) * C + tl.arange(0, C)
    here = c < channels
    positions = 4 * height * width
    begin, end = _slice(positions, slices)
    first = n * (height + 1) * (width + 1) * 4 * channels
    slope = tl.load(scale + n * channels + c, mask=here, other=0.0)[None, :]
    offset = tl.load(shift + n * channels + c, mask=here, other=0.0)[None, :]
    middle = tl.load(centre + c, mask=here, other=0.0)[None, :]
    by_x, total = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(begin, end, P):
        p = start + tl.arange(0, P)
        inside = (p < end)[:, None] & here[None, :]
        at = first + _place(p, width, channels)[:, None] + c[None, :]
        v = tl.load(phases + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + (n * positions + p[:, None]) * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        g = tl.where(v * slope + offset > 0.0, g, g * negative)
        total += tl.sum(g, 0)
        by_x += tl.sum(tl.where(inside, g * (v - middle), 0.0), 0)
    to = (part * tl.num_programs(0) + n) * channels + c
    tl.store(to_scale + to, by_x, mask=here)
    tl.store(to_shift + to, total, mask=here)


@triton.jit(do_not_specialize=["negative"])
def woven_backward(
    phases, grad, scale, shift, incline, offset, out, count, height: tl.constexpr, width: tl.constexpr,
    channels: tl.constexpr, negative, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * B + tl.arange(0, B)
    inside = i < count
    c, row = i % channels, i // channels
    k, row = row % 4, row // 4
    a, b = k // 2, k % 2
    x, row = row % (width + 1) - b, row // (width + 1)
    y, n = row % (height + 1) - a, row // (height + 1)
    seen = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    woven = ((n * 2 * height + 2 * y + a) * 2 * width + 2 * x + b) * channels + c
    to = n * channels + c
    v = tl.load(phases + i, mask=seen, other=0.0).to(tl.float32)
    g = tl.load(grad + woven, mask=seen, other=0.0).to(tl.float32)
    s = tl.load(scale + to, mask=seen, other=0.0)
    g = tl.where(v * s + tl.load(shift + to, mask=seen, other=0.0) > 0.0, g, g * negative)
    of_moments = tl.load(offset + c, mask=seen, other=0.0) + tl.load(incline + c, mask=seen, other=0.0) * v
    tl.store(out + i, tl.where(seen, of_moments + g * s, 0.0), mask=inside)
