// Numbers of both types, sums over rows, and moments.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// Positions that stay in cache, between the two readings that a variance takes for one, and over which sums are float32.
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

// Rows of `channels` numbers one after another, or wherever the pointers say.
template <class T>
struct Adjacent {
  const T* first;
  long channels;
  const T* operator[](long p) const { return first + p * channels; }
};

template <class T>
struct Scattered {
  const T* const* at;
  const T* operator[](long p) const { return at[p]; }
};

// The sum over rows of term(value, channel), four rows at a time.
template <class Rows, class Term>
void add_up(Rows rows, long count, long channels, float* __restrict sum, Term term) {
  std::fill(sum, sum + channels, 0.0f);
  long p = 0;
  for (; p + 4 <= count; p += 4) {
    const auto* __restrict a = rows[p];
    const auto* __restrict b = rows[p + 1];
    const auto* __restrict c = rows[p + 2];
    const auto* __restrict d = rows[p + 3];
#pragma omp simd
    for (long i = 0; i < channels; ++i)
      sum[i] += (term(wide(a[i]), i) + term(wide(b[i]), i)) + (term(wide(c[i]), i) + term(wide(d[i]), i));
  }
  for (; p < count; ++p) {
    const auto* __restrict a = rows[p];
#pragma omp simd
    for (long i = 0; i < channels; ++i) sum[i] += term(wide(a[i]), i);
  }
}

// Mean and biased variance of each channel, from one segment of rows to the next.
class Moments {
 public:
  explicit Moments(long count)
      : channels(count), centre(count), spread(count), sum(count), middle(count) {}

  template <class Rows>
  void add(Rows rows, long count) {
    add_up(rows, count, channels, sum.data(), [](float x, long) { return x; });
#pragma omp simd
    for (long i = 0; i < channels; ++i) middle[i] = sum[i] / count;
    const float* m = middle.data();
    add_up(rows, count, channels, sum.data(), [m](float x, long i) { return (x - m[i]) * (x - m[i]); });
    // Chan, Golub, LeVeque (1983): how the moments of two parts make those of the whole.
    const double share = static_cast<double>(count) / (seen + count);
#pragma omp simd
    for (long i = 0; i < channels; ++i) {
      const double step = middle[i] - centre[i];
      centre[i] += step * share;
      spread[i] += sum[i] + step * step * share * seen;
    }
    seen += count;
  }

  void write(float* mean, float* var) const {
#pragma omp simd
    for (long i = 0; i < channels; ++i) {
      mean[i] = static_cast<float>(centre[i]);
      var[i] = static_cast<float>(spread[i] / seen);
    }
  }

 private:
  long channels, seen = 0;
  std::vector<double> centre, spread;
  std::vector<float> sum, middle;
};

// The moments of one sample; `visit(begin, end)` is called while a segment is in cache.
template <class T, class Visit>
void moments_of(const T* map, long positions, long channels, float* mean, float* var, Visit visit) {
  Moments found(channels);
  for (long begin = 0; begin < positions; begin += SEGMENT) {
    const long end = std::min(positions, begin + SEGMENT);
    found.add(Adjacent<T>{map + begin * channels, channels}, end - begin);
    visit(begin, end);
  }
  found.write(mean, var);
}

// Two sums for each channel of one sample, those of the gradients of scale and shift: float32 within a segment.
class Sums {
 public:
  explicit Sums(long count) : channels(count), slopes(count), shifts(count), slope(count), shift(count) {}

  float* of_slope() { return slope.data(); }
  float* of_shift() { return shift.data(); }

  // Ends a segment.
  void keep() {
#pragma omp simd
    for (long i = 0; i < channels; ++i) {
      slopes[i] += slope[i];
      shifts[i] += shift[i];
    }
    std::fill(slope.begin(), slope.end(), 0.0f);
    std::fill(shift.begin(), shift.end(), 0.0f);
  }

  void write(float* to_scale, float* to_shift) const {
#pragma omp simd
    for (long i = 0; i < channels; ++i) {
      to_scale[i] = static_cast<float>(slopes[i]);
      to_shift[i] = static_cast<float>(shifts[i]);
    }
  }

 private:
  long channels;
  std::vector<double> slopes, shifts;
  std::vector<float> slope, shift;
};

}  // namespace
