// Passes over feature maps that torch has no single operation for.
//
// Maps are channels-last: `samples` blocks of `positions` rows of `channels` numbers, float32 or bfloat16; arithmetic
// is float32, sums over positions float64 from one segment to the next. A sample is worked on by one thread from its
// beginning to its end, so that no result depends on the number of threads. Compiled without contraction: a * b + c is
// rounded twice, as torch does it, and `round_to_grid` equals torch's operations bit for bit. Loops over channels are
// free of dependences, and `omp simd` says so.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// Positions that stay in cache between the two readings that a variance takes.
constexpr long SEGMENT = 256;

using bfloat16 = std::uint16_t;  // the upper half of a float32

inline float wide(float x) { return x; }

inline float wide(bfloat16 x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline void narrow(float x, float& out) { out = x; }

inline void narrow(float x, bfloat16& out) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  out = static_cast<bfloat16>(x != x ? 0x7fc0u : rounded);
}

// The sum over rows of term(value, channel), four rows at a time.
template <class T, class Term>
void add_up(const T* rows, long count, long channels, float* __restrict sum, Term term) {
  std::fill(sum, sum + channels, 0.0f);
  long p = 0;
  for (; p + 4 <= count; p += 4) {
    const T* __restrict a = rows + p * channels;
    const T* __restrict b = a + channels;
    const T* __restrict c = b + channels;
    const T* __restrict d = c + channels;
#pragma omp simd
    for (long i = 0; i < channels; ++i)
      sum[i] += (term(wide(a[i]), i) + term(wide(b[i]), i)) + (term(wide(c[i]), i) + term(wide(d[i]), i));
  }
  for (; p < count; ++p) {
    const T* __restrict a = rows + p * channels;
#pragma omp simd
    for (long i = 0; i < channels; ++i) sum[i] += term(wide(a[i]), i);
  }
}

// Mean and biased variance of each channel of one sample; `visit(begin, end)` is called while a segment is in cache.
template <class T, class Visit>
void moments_of(const T* map, long positions, long channels, float* mean, float* var, Visit visit) {
  std::vector<double> centre(channels, 0.0), spread(channels, 0.0);
  std::vector<float> sum(channels), middle(channels);
  for (long begin = 0; begin < positions; begin += SEGMENT) {
    const long end = std::min(positions, begin + SEGMENT), count = end - begin;
    const T* rows = map + begin * channels;
    add_up(rows, count, channels, sum.data(), [](float x, long) { return x; });
#pragma omp simd
    for (long i = 0; i < channels; ++i) middle[i] = sum[i] / count;
    const float* m = middle.data();
    add_up(rows, count, channels, sum.data(), [m](float x, long i) { return (x - m[i]) * (x - m[i]); });
    // Chan, Golub, LeVeque (1983): how the moments of two parts make those of the whole.
    const double share = static_cast<double>(count) / end;
#pragma omp simd
    for (long i = 0; i < channels; ++i) {
      const double step = middle[i] - centre[i];
      centre[i] += step * share;
      spread[i] += sum[i] + step * step * share * begin;
    }
    visit(begin, end);
  }
#pragma omp simd
  for (long i = 0; i < channels; ++i) {
    mean[i] = static_cast<float>(centre[i]);
    var[i] = static_cast<float>(spread[i] / positions);
  }
}

template <class T>
void moments(const T* x, float* mean, float* var, long samples, long positions, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n)
    moments_of(x + n * positions * channels, positions, channels, mean + n * channels, var + n * channels,
               [](long, long) {});
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

// Gradients of out = scale x + shift in x, and for each sample the sums of grad and of grad (x - centre).
template <class T>
void affine_backward(const T* x, const T* grad, const float* scale, const float* centre, T* out, float* to_scale,
                     float* to_shift, long samples, long positions, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < samples; ++n) {
    std::vector<double> slopes(channels, 0.0), shifts(channels, 0.0);
    std::vector<float> sum(channels);
    const long first = n * positions;
    for (long begin = 0; begin < positions; begin += SEGMENT) {
      const long end = std::min(positions, begin + SEGMENT);
      const T* rows = grad + (first + begin) * channels;
      add_up(rows, end - begin, channels, sum.data(), [](float g, long) { return g; });
#pragma omp simd
      for (long i = 0; i < channels; ++i) shifts[i] += sum[i];
      std::fill(sum.begin(), sum.end(), 0.0f);
      float* __restrict total = sum.data();
      for (long p = first + begin; p < first + end; ++p) {
        const T* __restrict a = x + p * channels;
        const T* __restrict g = grad + p * channels;
        T* __restrict b = out + p * channels;
#pragma omp simd
        for (long i = 0; i < channels; ++i) {
          total[i] += wide(g[i]) * (wide(a[i]) - centre[i]);
          narrow(wide(g[i]) * scale[i], b[i]);
        }
      }
#pragma omp simd
      for (long i = 0; i < channels; ++i) slopes[i] += sum[i];
    }
#pragma omp simd
    for (long i = 0; i < channels; ++i) {
      to_scale[n * channels + i] = static_cast<float>(slopes[i]);
      to_shift[n * channels + i] = static_cast<float>(shifts[i]);
    }
  }
}

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

inline float code(float x, float scale, float shift, float low, float high) {
  float n = std::nearbyint(x * scale - shift);
  n = n < low ? low : n;  // in this order NaN stays NaN
  n = n > high ? high : n;
  return n + shift;
}

}  // namespace

extern "C" {

#define FOR_TYPE(NAME, T)                                                                                             \
  void dfq_moments_##NAME(const T* x, float* mean, float* var, long samples, long positions, long channels,           \
                          int threads) {                                                                              \
    moments(x, mean, var, samples, positions, channels, threads);                                                     \
  }                                                                                                                   \
  void dfq_moments_backward_##NAME(const T* x, const float* slope, const float* offset, T* out, long samples,         \
                                   long positions, long channels, int threads) {                                      \
    moments_backward(x, slope, offset, out, samples, positions, channels, threads);                                   \
  }                                                                                                                   \
  void dfq_block_forward_##NAME(const T* x, const float* scale, const float* shift, const T* residual, T* out,        \
                                float* mean, float* var, long samples, long positions, long channels, float ceiling,  \
                                int threads) {                                                                        \
    as_block(residual != nullptr, ceiling, [=](auto block) {                                                          \
      block_forward(block, x, scale, shift, residual == nullptr ? x : residual, out, mean, var, samples, positions,   \
                    channels, threads);                                                                               \
    });                                                                                                               \
  }                                                                                                                   \
  void dfq_block_backward_##NAME(const T* x, const T* residual, const T* grad, const float* scale, const float* shift,\
                                 const float* slope, const float* offset, T* to_x, T* to_residual, long samples,      \
                                 long positions, long channels, float ceiling, int threads) {                         \
    as_block(residual != nullptr, ceiling, [=](auto block) {                                                          \
      block_backward(block, x, residual == nullptr ? x : residual, grad, scale, shift, slope, offset, to_x,           \
                     to_residual == nullptr ? to_x : to_residual, samples, positions, channels, threads);             \
    });                                                                                                               \
  }                                                                                                                   \
  void dfq_affine_backward_##NAME(const T* x, const T* grad, const float* scale, const float* centre, T* out,         \
                                  float* to_scale, float* to_shift, long samples, long positions, long channels,      \
                                  int threads) {                                                                      \
    affine_backward(x, grad, scale, centre, out, to_scale, to_shift, samples, positions, channels, threads);          \
  }

FOR_TYPE(float32, float)
FOR_TYPE(bfloat16, bfloat16)

void dfq_widen_scaled(const bfloat16* x, const float* factor, float* out, long rows, long channels, int threads) {
  scale_channels(x, factor, out, rows, channels, threads);
}

void dfq_narrow_scaled(const float* x, const float* factor, bfloat16* out, long rows, long channels, int threads) {
  scale_channels(x, factor, out, rows, channels, threads);
}

// out = (clamp(round(scale x - shift), low, high) + shift) / scale; its integers too where `codes` is not null.
void dfq_round_to_grid(const float* x, float* out, bfloat16* codes, long count, const float* scale_at,
                       const float* shift_at, float low, float high, int threads) {
  const float scale = *scale_at, shift = *shift_at;
  if (codes == nullptr) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < count; ++i) out[i] = code(x[i], scale, shift, low, high) / scale;
  } else {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < count; ++i) {
      const float n = code(x[i], scale, shift, low, high);
      out[i] = n / scale;
      narrow(n, codes[i]);
    }
  }
}

}  // extern "C"
