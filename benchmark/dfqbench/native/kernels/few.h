// 3x3 convolutions over a margin of one to at most four channels: a generator's last.
//
// The nine taps of a few outputs are as many numbers as another layer has channels, so that one product of matrices does
// for a strip of rows. Forward it is that of inputs and weight, whose products are then added where they belong; for the
// gradient in the weight that of the inputs and, for each position, the outputs in whose windows it is.

#pragma once

#include "products.h"
#include "window.h"

namespace {

constexpr long FEW = 4;

// Images in strips of rows.
struct Strips {
  long samples, height, width;

  long rows() const { return std::max(8L, 1024 / width); }
  long of_image() const { return (height + rows() - 1) / rows(); }
  long count() const { return samples * of_image(); }
};

struct Strip {
  long image, begin, end;  // first row of its image among all rows; its own within it

  Strip(Strips all, long index)
      : image(index / all.of_image() * all.height),
        begin(index % all.of_image() * all.rows()),
        end(std::min(all.height, begin + all.rows())) {}
};

// Columns of a matrix of the taps of all outputs; what is beyond them is 0.
inline long columns_of_taps(long outputs) { return (TAPS * outputs + PANEL - 1) / PANEL * PANEL; }

// out = factor conv(x, weight).
void convolved_to_few(const float* x, const float* weight, const float* factor, float* out, Strips all, Window window,
                      int threads) {
  const long inputs = window.inputs, few = window.outputs, columns = columns_of_taps(few);
  const Room right(inputs * columns);
  std::fill(right.get(), right.get() + inputs * columns, 0.0f);
  for (long o = 0; o < few; ++o)
    for (long t = 0; t < TAPS; ++t)
      for (long k = 0; k < inputs; ++k)
        right.get()[packed(k, t * few + o, inputs, columns)] = weight[window.place(o, k, t)];
#pragma omp parallel num_threads(threads)
  {
    const Room products((all.rows() + 2) * all.width * columns);
#pragma omp for schedule(dynamic)
    for (long index = 0; index < all.count(); ++index) {
      const Strip strip(all, index);
      // Its neighbours' rows belong to its windows.
      const long begin = std::max(0L, strip.begin - 1), end = std::min(all.height, strip.end + 1);
      product({x + (strip.image + begin) * all.width * inputs, inputs, 1}, right.get(), (end - begin) * all.width,
                     inputs, columns, products.get(), columns);
      for (long y = strip.begin; y < strip.end; ++y)
        for (long j = 0; j < all.width; ++j) {
          float sum[FEW] = {};
          for (long t = 0; t < TAPS; ++t) {
            const long row = y + t / 3 - 1, column = j + t % 3 - 1;
            if (row < 0 || row >= all.height || column < 0 || column >= all.width) continue;
            const float* from = products.get() + ((row - begin) * all.width + column) * columns + t * few;
            for (long o = 0; o < few; ++o) sum[o] += from[o];
          }
          float* to = out + ((strip.image + y) * all.width + j) * few;
          for (long o = 0; o < few; ++o) to[o] = factor == nullptr ? sum[o] : sum[o] * factor[o];
        }
    }
  }
}

// For each position of a strip, tap by tap, the gradient at the output that sees it there; packed.
inline void seen_by(const float* grad, Strips all, Strip strip, long few, float* out) {
  const long positions = (strip.end - strip.begin) * all.width, columns = columns_of_taps(few);
  std::fill(out, out + positions * columns, 0.0f);
  for (long tap = 0; tap < TAPS; ++tap)
    for (long o = 0; o < few; ++o) {
      float* to = out + packed(0, tap * few + o, positions, columns);
      const long move = 1 - tap % 3, first = std::max(0L, -move), last = std::min(all.width, all.width - move);
      for (long y = strip.begin; y < strip.end; ++y) {
        const long row = y + 1 - tap / 3;
        if (row < 0 || row >= all.height) continue;
        const float* from = grad + ((strip.image + row) * all.width + move) * few + o;
        float* line = to + (y - strip.begin) * all.width * PANEL;
        for (long x = first; x < last; ++x) line[x * PANEL] = from[x * few];
      }
    }
}

// out = factor times the gradient in the weight.
void weight_gradient_of_few(const float* x, const float* grad, const float* factor, float* out, Strips all,
                            Window window, int threads) {
  // Parts of the sum over positions are taken side by side; how many there are does not depend on the threads.
  constexpr long MOST_PARTS = 8;
  const long inputs = window.inputs, few = window.outputs, columns = columns_of_taps(few), whole = inputs * columns;
  const long parts = std::min(MOST_PARTS, all.count());
  const Room sums(parts * whole);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (long part = 0; part < parts; ++part) {
    const long beginning = part * all.count() / parts, ending = (part + 1) * all.count() / parts;
    const Room right(all.rows() * all.width * columns);
    for (long index = beginning; index < ending; ++index) {
      const Strip strip(all, index);
      seen_by(grad, all, strip, few, right.get());
      const Left left{x + (strip.image + strip.begin) * all.width * inputs, 1, inputs};
      const long positions = (strip.end - strip.begin) * all.width;
      float* sum = sums.get() + part * whole;
      product(left, right.get(), inputs, positions, columns, sum, columns, index > beginning);
    }
  }
  for (long k = 0; k < inputs; ++k)
    for (long t = 0; t < TAPS; ++t)
      for (long o = 0; o < few; ++o) {
        float sum = 0.0f;
        for (long part = 0; part < parts; ++part) sum += sums.get()[part * whole + k * columns + t * few + o];
        out[window.place(o, k, t)] = factor == nullptr ? sum : sum * factor[o];
      }
}

}  // namespace
