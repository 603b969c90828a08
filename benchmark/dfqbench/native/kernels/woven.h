// A generator's BatchNorm over the batch with its leaky ReLU, on the phases of an upsampled convolution.

#pragma once

#include "numbers.h"

namespace {

// Nearest upsampling by two and a 3x3 convolution, as one convolution that gives four phases: a row of the phases' map
// (height + 1, width + 1, 4, channels) has, for each column, the places of parity (0, 0), (0, 1), (1, 0), (1, 1) of the
// woven map (2 height, 2 width, channels), those at the border excepted.
struct Woven {
  long height, width, channels;

  long phases() const { return (height + 1) * (width + 1) * 4 * channels; }
  long places() const { return 4 * height * width * channels; }

  // Calls visit(row of numbers among the phases, and in the woven map, or -1 where it has no place there).
  template <class Visit>
  void row(long i, Visit visit) const {
    for (long j = 0; j <= width; ++j)
      for (long k = 0; k < 4; ++k) {
        const long a = k / 2, b = k % 2, y = i - a, x = j - b;
        const bool seen = y >= 0 && y < height && x >= 0 && x < width;
        visit(((i * (width + 1) + j) * 4 + k) * channels, seen ? ((2 * y + a) * 2 * width + 2 * x + b) * channels : -1);
      }
  }
};

// Mean and biased variance of each sample's woven map.
template <class T>
void woven_moments(Woven shape, const T* phases, float* mean, float* var, long samples, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n) {
    Moments found(shape.channels);
    std::vector<const T*> seen;
    for (long i = 0; i <= shape.height; ++i) {
      seen.clear();
      shape.row(i, [&](long from, long to) {
        if (to >= 0) seen.push_back(phases + n * shape.phases() + from);
      });
      found.add(Scattered<T>{seen.data()}, static_cast<long>(seen.size()));
    }
    found.write(mean + n * shape.channels, var + n * shape.channels);
  }
}

// A row of numbers: y = scale x + shift, and what a leaky ReLU makes of it.
struct Leaky {
  const float *scale, *shift;
  float slope;

  float value(float x, long c) const {
    const float y = x * scale[c] + shift[c];
    return y < 0.0f ? y * slope : y;
  }
  float passed(float x, float grad, long c) const { return x * scale[c] + shift[c] > 0.0f ? grad : grad * slope; }
};

// The woven map of leaky(scale x + shift), with scale and shift of each sample.
template <class T>
void woven_forward(Woven shape, const T* phases, const float* scale, const float* shift, T* out, float slope,
                   long samples, int threads) {
  const long channels = shape.channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n) {
    const Leaky leaky{scale + n * channels, shift + n * channels, slope};
    const T* map = phases + n * shape.phases();
    T* woven = out + n * shape.places();
    for (long i = 0; i <= shape.height; ++i)
      shape.row(i, [=](long from, long to) {
        if (to < 0) return;
        const T* __restrict a = map + from;
        T* __restrict b = woven + to;
#pragma omp simd
        for (long c = 0; c < channels; ++c) narrow(leaky.value(wide(a[c]), c), b[c]);
      });
  }
}

// For each sample the sums over positions of the gradient before the activation, and of that times (x - centre).
template <class T>
void woven_sums(Woven shape, const T* phases, const T* grad, const float* scale, const float* shift,
                const float* centre, float* to_scale, float* to_shift, float slope, long samples, int threads) {
  const long channels = shape.channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n) {
    const Leaky leaky{scale + n * channels, shift + n * channels, slope};
    const T *map = phases + n * shape.phases(), *woven = grad + n * shape.places();
    Sums sums(channels);
    float* __restrict by_x = sums.of_slope();
    float* __restrict total = sums.of_shift();
    for (long i = 0; i <= shape.height; ++i) {
      shape.row(i, [=](long from, long to) {
        if (to < 0) return;
        const T* __restrict a = map + from;
        const T* __restrict g = woven + to;
#pragma omp simd
        for (long c = 0; c < channels; ++c) {
          const float x = wide(a[c]), passed = leaky.passed(x, wide(g[c]), c);
          total[c] += passed;
          by_x[c] += passed * (x - centre[c]);
        }
      });
      sums.keep();
    }
    sums.write(to_scale + n * channels, to_shift + n * channels);
  }
}

// The gradient in the phases: that of scale x + shift, and incline x + offset for each channel, which is that of the
// batch's moments.
template <class T>
void woven_backward(Woven shape, const T* phases, const T* grad, const float* scale, const float* shift,
                    const float* incline, const float* offset, T* to_phases, float slope, long samples, int threads) {
  const long channels = shape.channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n) {
    const Leaky leaky{scale + n * channels, shift + n * channels, slope};
    const T *map = phases + n * shape.phases(), *woven = grad + n * shape.places();
    T* out = to_phases + n * shape.phases();
    for (long i = 0; i <= shape.height; ++i)
      shape.row(i, [=](long from, long to) {
        T* __restrict b = out + from;
        if (to < 0) {
          std::fill(b, b + channels, T{0});
          return;
        }
        const T* __restrict a = map + from;
        const T* __restrict g = woven + to;
#pragma omp simd
        for (long c = 0; c < channels; ++c) {
          const float x = wide(a[c]), passed = leaky.passed(x, wide(g[c]), c);
          narrow((offset[c] + incline[c] * x) + passed * leaky.scale[c], b[c]);
        }
      });
  }
}

}  // namespace
