// Products of matrices that fit the caches, in registers.

#pragma once

#include <algorithm>
#include <new>
#include <type_traits>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

// As many float32 numbers as a register holds; multiplied() is a b + sum, rounded once where the processor can.
// With DFQ_LANES registers of any width are emulated, for tests.
#if defined(__AVX512F__) && !defined(DFQ_LANES)
using Lanes = __m512;
inline Lanes load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Lanes x) { _mm512_storeu_ps(to, x); }
inline Lanes repeated(float x) { return _mm512_set1_ps(x); }
inline Lanes multiplied(Lanes a, Lanes b, Lanes sum) { return _mm512_fmadd_ps(a, b, sum); }
#elif defined(__AVX2__) && defined(__FMA__) && !defined(DFQ_LANES)
using Lanes = __m256;
inline Lanes load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Lanes x) { _mm256_storeu_ps(to, x); }
inline Lanes repeated(float x) { return _mm256_set1_ps(x); }
inline Lanes multiplied(Lanes a, Lanes b, Lanes sum) { return _mm256_fmadd_ps(a, b, sum); }
#else
#if !defined(DFQ_LANES)
#define DFQ_LANES 4
#endif
typedef float Lanes __attribute__((vector_size(4 * DFQ_LANES)));
inline Lanes load(const float* from) {
  Lanes x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
inline void store(float* to, Lanes x) { __builtin_memcpy(to, &x, sizeof x); }
inline Lanes repeated(float x) { return x - Lanes{}; }
#if defined(__ARM_NEON) && DFQ_LANES == 4
inline Lanes multiplied(Lanes a, Lanes b, Lanes sum) { return vfmaq_f32(sum, a, b); }
#else
inline Lanes multiplied(Lanes a, Lanes b, Lanes sum) { return sum + a * b; }
#endif
#endif

// Read once and kept in a register, where a compiler would rather read it again for each use.
#if defined(__x86_64__) && !defined(DFQ_LANES)
inline void keep(Lanes& x) { asm("" : "+x"(x)); }
#else
inline void keep(Lanes&) {}
#endif

constexpr long LANES = sizeof(Lanes) / sizeof(float);
constexpr long PANEL = 2 * LANES;   // columns worked on at once
constexpr long DEPTH = 256;         // rows of a panel that stay in the nearest cache
constexpr int ROWS = 6;             // with PANEL columns as many sums as registers hold
constexpr long APART = 16;          // numbers between matrices, so that they do not fall on the same places of a cache

// Room for numbers, at first whatever was there.
class Room {
 public:
  explicit Room(long count) : numbers(static_cast<float*>(::operator new(count * sizeof(float), LINE))) {}
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { ::operator delete(numbers, LINE); }
  float* get() const { return numbers; }

 private:
  static constexpr std::align_val_t LINE{64};
  float* numbers;
};

// A matrix whose element (i, k) is at[i * by_row + k * by_column].
struct Left {
  const float* at;
  long by_row, by_column;
};

// A matrix is packed panel by panel, each row by row, the last narrower where columns end: where (k, j) lies.
inline long packed(long k, long j, long depth, long columns) {
  const long first = j / PANEL * PANEL, width = std::min(PANEL, columns - first);
  return first * depth + k * width + (j - first);
}

// Some rows, and `WIDE` registers of columns, of a product with a packed panel.
template <int COUNT, int WIDE, bool ADD>
__attribute__((always_inline)) inline void product_tile(Left left, const float* panel, long depth, float* out,
                                                        long by_row) {
  // From two rows each, all addresses are within reach.
  const long step = left.by_row;
  const float *upper = left.at, *lower = left.at + 3 * step;
  float* below = out + 3 * by_row;
  Lanes sum[COUNT][WIDE];
#pragma GCC unroll 6
  for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < WIDE; ++j)
      sum[i][j] = ADD ? load((i < 3 ? out + i * by_row : below + (i - 3) * by_row) + j * LANES) : repeated(0.0f);
  for (long k = 0; k < depth; ++k) {
    Lanes r[WIDE];
#pragma GCC unroll 2
    for (int j = 0; j < WIDE; ++j) {
      r[j] = load(panel + j * LANES);
      keep(r[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < COUNT; ++i) {
      const Lanes l = repeated(i < 3 ? upper[i * step] : lower[(i - 3) * step]);
#pragma GCC unroll 2
      for (int j = 0; j < WIDE; ++j) sum[i][j] = multiplied(l, r[j], sum[i][j]);
    }
    upper += left.by_column;
    lower += left.by_column;
    panel += WIDE * LANES;
  }
#pragma GCC unroll 6
  for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < WIDE; ++j)
      store((i < 3 ? out + i * by_row : below + (i - 3) * by_row) + j * LANES, sum[i][j]);
}

// Not inlined: sums stay in registers only where little else is alive.
template <int COUNT, int WIDE, bool ADD>
__attribute__((noinline)) void product_tiles(Left left, const float* panel, long tiles, long depth, float* out,
                                             long by_row) {
  for (; tiles > 0; --tiles) {
    product_tile<COUNT, WIDE, ADD>(left, panel, depth, out, by_row);
    left.at += COUNT * left.by_row;
    out += COUNT * by_row;
  }
}

template <int WIDE, bool ADD>
void product_panel(Left left, const float* panel, long rows, long depth, float* out, long by_row) {
  const long tiles = rows / ROWS;
  product_tiles<ROWS, WIDE, ADD>(left, panel, tiles, depth, out, by_row);
  left.at += ROWS * tiles * left.by_row;
  out += ROWS * tiles * by_row;
  switch (rows - ROWS * tiles) {
    case 5: return product_tiles<5, WIDE, ADD>(left, panel, 1, depth, out, by_row);
    case 4: return product_tiles<4, WIDE, ADD>(left, panel, 1, depth, out, by_row);
    case 3: return product_tiles<3, WIDE, ADD>(left, panel, 1, depth, out, by_row);
    case 2: return product_tiles<2, WIDE, ADD>(left, panel, 1, depth, out, by_row);
    case 1: return product_tiles<1, WIDE, ADD>(left, panel, 1, depth, out, by_row);
    default: return;
  }
}

// out = left right, or with `add` out + left right; `right` is packed, columns are a multiple of LANES, rows of `out` are `by_row`
// apart. An element's sum is taken in the same order, however many rows and columns there are.
inline void product(Left left, const float* right, long rows, long depth, long columns, float* out, long by_row,
                    bool add = false) {
  const auto panel = [&](auto wide, long j, long k) {
    constexpr int WIDE = decltype(wide)::value;
    const Left part{left.at + k * left.by_column, left.by_row, left.by_column};
    const float* at = right + j * depth + k * WIDE * LANES;
    const long count = std::min(depth - k, DEPTH);
    if (add || k > 0) product_panel<WIDE, true>(part, at, rows, count, out + j, by_row);
    else product_panel<WIDE, false>(part, at, rows, count, out + j, by_row);
  };
  long j = 0;
  for (; j + PANEL <= columns; j += PANEL)
    for (long k = 0; k < depth; k += DEPTH) panel(std::integral_constant<int, 2>{}, j, k);
  if (j < columns)
    for (long k = 0; k < depth; k += DEPTH) panel(std::integral_constant<int, 1>{}, j, k);
}

}  // namespace
