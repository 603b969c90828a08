// BatchNorm layers whose statistics are frozen, with the residual and the activation that follow.

#pragma once

#include <cmath>

#include "numbers.h"

namespace {

template <class T>
void moments(const T* x, float* mean, float* var, long samples, long positions, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n)
    moments_of(x + n * positions * channels, positions, channels, mean + n * channels, var + n * channels,
               [](long, long) {});
}

// out = slope x + offset for each sample.
template <class T>
void moments_backward(const T* x, const float* slope, const float* offset, T* out, long samples, long positions,
                      long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n) {
    const float *s = slope + n * channels, *o = offset + n * channels;
    for (long p = n * positions; p < (n + 1) * positions; ++p) {
      const T* __restrict a = x + p * channels;
      T* __restrict b = out + p * channels;
#pragma omp simd
      for (long i = 0; i < channels; ++i) narrow(o[i] + s[i] * wide(a[i]), b[i]);
    }
  }
}

// What a BatchNorm layer in eval mode amounts to, and one over its running deviation.
inline void affine(const float* weight, const float* bias, const float* mean, const float* var, float* scale,
                   float* shift, float* inverse, long channels, float eps) {
  for (long i = 0; i < channels; ++i) {
    inverse[i] = 1.0f / std::sqrt(var[i] + eps);
    scale[i] = inverse[i] * weight[i];
    shift[i] = bias[i] - mean[i] * scale[i];
  }
}

// A BatchNorm layer in eval mode with what follows it: y = scale x + shift, plus a residual, clipped to [0, ceiling].
template <bool ADD_RESIDUAL, bool CLIP>
struct Block {
  static constexpr bool ADD = ADD_RESIDUAL;
  float ceiling;

  // In this order NaN stays NaN.
  float sum(float x, float scale, float shift, float residual) const {
    const float y = x * scale + shift;
    return ADD ? y + residual : y;
  }
  float clipped(float y) const {
    if (!CLIP) return y;
    y = y < 0.0f ? 0.0f : y;
    return y > ceiling ? ceiling : y;
  }
  // As torch has it for numbers that are not finite, too; all comparisons always, so that the loop has no branch.
  bool stopped(float y) const { return CLIP & ((y <= 0.0f) | (std::isfinite(ceiling) & !(y < ceiling))); }
};

// The block's output, and the moments of x.
template <class T, class B>
void block_forward(B block, const T* x, const float* scale, const float* shift, const T* residual, T* out, float* mean,
                   float* var, long samples, long positions, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n) {
    const long first = n * positions;
    const T* map = x + first * channels;
    moments_of(map, positions, channels, mean + n * channels, var + n * channels, [=](long begin, long end) {
      for (long p = first + begin; p < first + end; ++p) {
        const T* __restrict a = x + p * channels;
        const T* __restrict r = residual + p * channels;
        T* __restrict b = out + p * channels;
#pragma omp simd
        for (long i = 0; i < channels; ++i)
          narrow(block.clipped(block.sum(wide(a[i]), scale[i], shift[i], wide(r[i]))), b[i]);
      }
    });
  }
}

// Gradients in x (slope x + offset is that of the moments, for each sample) and in the residual, where there is one.
template <class T, class B>
void block_backward(B block, const T* x, const T* residual, const T* grad, const float* scale, const float* shift,
                    const float* slope, const float* offset, T* to_x, T* to_residual, long samples, long positions,
                    long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n) {
    const float *s = slope + n * channels, *o = offset + n * channels;
    for (long p = n * positions; p < (n + 1) * positions; ++p) {
      const T* __restrict a = x + p * channels;
      const T* __restrict r = residual + p * channels;
      const T* __restrict g = grad + p * channels;
      T* __restrict b = to_x + p * channels;
      T* __restrict d = to_residual + p * channels;
#pragma omp simd
      for (long i = 0; i < channels; ++i) {
        const float got = wide(g[i]), y = block.sum(wide(a[i]), scale[i], shift[i], wide(r[i]));
        const float passed = block.stopped(y) ? 0.0f : got;
        narrow((o[i] + s[i] * wide(a[i])) + passed * scale[i], b[i]);
        if (B::ADD) narrow(passed, d[i]);
      }
    }
  }
}

// Calls what(Block<...>) as residual and ceiling (negative: nothing is clipped, nor added) say.
template <class What>
void as_block(bool add, float ceiling, What what) {
  if (ceiling < 0) what(Block<false, false>{ceiling});
  else if (add) what(Block<true, true>{ceiling});
  else what(Block<false, true>{ceiling});
}

// Gradients of a block in x and in the residual, and for each sample the sums over positions of the gradient that the
// activation lets through and of that times (x - centre): those of shift and of scale.
template <class T, class B>
void affine_backward(B block, const T* x, const T* residual, const T* grad, const float* scale, const float* shift,
                     const float* centre, T* to_x, T* to_residual, float* to_scale, float* to_shift, long samples,
                     long positions, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n) {
    Sums sums(channels);
    float* __restrict slope = sums.of_slope();
    float* __restrict total = sums.of_shift();
    for (long begin = n * positions; begin < (n + 1) * positions; begin += SEGMENT) {
      const long end = std::min((n + 1) * positions, begin + SEGMENT);
      for (long p = begin; p < end; ++p) {
        const T* __restrict a = x + p * channels;
        const T* __restrict r = residual + p * channels;
        const T* __restrict g = grad + p * channels;
        T* __restrict b = to_x + p * channels;
        T* __restrict d = to_residual + p * channels;
#pragma omp simd
        for (long i = 0; i < channels; ++i) {
          const float got = wide(g[i]), y = block.sum(wide(a[i]), scale[i], shift[i], wide(r[i]));
          const float passed = block.stopped(y) ? 0.0f : got;
          total[i] += passed;
          slope[i] += passed * (wide(a[i]) - centre[i]);
          narrow(passed * scale[i], b[i]);
          if (B::ADD) narrow(passed, d[i]);
        }
      }
      sums.keep();
    }
    sums.write(to_scale + n * channels, to_shift + n * channels);
  }
}

}  // namespace
