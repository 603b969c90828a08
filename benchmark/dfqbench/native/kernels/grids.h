// Rounding to grids, and scaling between types.

#pragma once

#include <cmath>

#include "blocks.h"

namespace {

// out = factor x for each channel, from one type to another.
template <class T, class U>
void scale_channels(const T* x, const float* factor, U* out, long rows, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long p = 0; p < rows; ++p) {
    const T* __restrict a = x + p * channels;
    U* __restrict b = out + p * channels;
#pragma omp simd
    for (long i = 0; i < channels; ++i) narrow(wide(a[i]) * factor[i], b[i]);
  }
}

// A grid of integers over a scale, and the integer that stands for x.
struct Grid {
  float scale, shift, low, high;

  float code(float x) const {
    float n = std::nearbyint(x * scale - shift);
    n = n < low ? low : n;  // in this order NaN stays NaN
    n = n > high ? high : n;
    return n + shift;
  }
};

// out = (clamp(round(scale x - shift), low, high) + shift) / scale; its integers too where `codes` is not null. `out` may
// be `x`.
void round_to_grid(Grid grid, const float* x, float* out, bfloat16* codes, long count, int threads) {
  if (codes == nullptr) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (long i = 0; i < count; ++i) out[i] = grid.code(x[i]) / grid.scale;
  } else {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (long i = 0; i < count; ++i) {
      const float n = grid.code(x[i]);
      out[i] = n / grid.scale;
      narrow(n, codes[i]);
    }
  }
}

// Each of `rows` output channels on the grid of its own range, its integers and scales; a range is at least `smallest`
// wide.
void rounded_weight(const float* x, float* out, bfloat16* codes, float* scale, long rows, long count, float low,
                    float high, float half, float smallest, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long row = 0; row < rows; ++row) {
    const float* __restrict a = x + row * count;
    float least = a[0], most = a[0];
    bool whole = true;
#pragma omp simd reduction(min : least) reduction(max : most) reduction(&& : whole)
    for (long i = 0; i < count; ++i) {
      least = a[i] < least ? a[i] : least;
      most = a[i] > most ? a[i] : most;
      whole = whole && a[i] == a[i];
    }
    // As in torch, a range is no number where one of its numbers is none.
    const float span = whole ? most - least : NAN;
    const float unit = 1.0f / (span < smallest ? smallest : span) * (high - low);
    const Grid grid{unit, std::nearbyint(unit * least) + half, low, high};
    round_to_grid(grid, a, out + row * count, codes + row * count, count, 1);
    scale[row] = unit;
  }
}

// Between a convolution's integers and its numbers, and for its gradients: 1 / (S_x S_w), that times S_x, S_w / S_x.
inline void units(const float* x_scale, const float* w_scale, float* unit, float* inner, float* ratio, long channels) {
  for (long i = 0; i < channels; ++i) {
    unit[i] = 1.0f / (*x_scale * w_scale[i]);
    inner[i] = unit[i] * *x_scale;
    ratio[i] = w_scale[i] / *x_scale;
  }
}

// A block's output on a grid whose lowest point is 0, which clips as ReLU does: `rows` positions of it.
template <bool CODES, class B>
inline void rounded_rows(B block, Grid grid, const float* x, const float* scale, const float* shift,
                         const float* residual, float* out, bfloat16* codes, long rows, long channels) {
  for (long p = 0; p < rows; ++p) {
    const float* __restrict a = x + p * channels;
    const float* __restrict r = residual + p * channels;
    float* __restrict b = out + p * channels;
    bfloat16* __restrict c = CODES ? codes + p * channels : nullptr;
#pragma omp simd
    for (long i = 0; i < channels; ++i) {
      const float n = grid.code(block.sum(a[i], scale[i], shift[i], r[i]));
      b[i] = n / grid.scale;
      if (CODES) narrow(n, c[i]);
    }
  }
}

template <bool CODES, class B>
void rounded_block(B block, Grid grid, const float* x, const float* scale, const float* shift, const float* residual,
                   float* out, bfloat16* codes, long rows, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long begin = 0; begin < rows; begin += SEGMENT) {
    const long first = begin * channels;
    rounded_rows<CODES>(block, grid, x + first, scale, shift, residual + first, out + first,
                        CODES ? codes + first : nullptr, std::min(SEGMENT, rows - begin), channels);
  }
}

}  // namespace
