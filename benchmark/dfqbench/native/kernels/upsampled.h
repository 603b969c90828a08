// Nearest upsampling by two followed by a 3x3 convolution, as the phases that woven.h reads, with nine multiplications
// for each position of the small map where its four 2x2 windows have sixteen.
//
// In one dimension the even output of x[i] is w0 x[i-1] + (w1 + w2) x[i], and the odd one (w0 + w1) x[i] + w2 x[i+1].
// With s = w0 + w1 + w2 and d[i] = x[i] - x[i-1] they are s x[i] - w0 d[i] and s x[i] + w2 d[i+1]: three products, of x
// with s and of d with -w0 and w2. In the plane each of the nine pairs of these is a product of matrices: of the map
// itself with s s, of its differences down with two, of those across with two, of those both ways with four.

#pragma once

#include "products.h"

namespace {

// How the small map is taken.
enum Taken { PLAIN, DOWN, ACROSS, BOTH };

// `images` images at once; the rows of each matrix are those of one image after another.
struct Upsampled {
  long images, height, width, channels, outputs;

  static bool down(Taken taken) { return taken == DOWN || taken == BOTH; }
  static bool across(Taken taken) { return taken == ACROSS || taken == BOTH; }
  // Differences stand before each row and after the last.
  long high(Taken taken) const { return height + down(taken); }
  long wide(Taken taken) const { return width + across(taken); }
  long positions(Taken taken) const { return images * high(taken) * wide(taken); }
  // Sums that each position takes part in, and where theirs are among the nine.
  static long sums(Taken taken) { return (down(taken) ? 2 : 1) * (across(taken) ? 2 : 1); }
  static long first(Taken taken) { return taken == PLAIN ? 0 : taken == DOWN ? 1 : taken == ACROSS ? 3 : 5; }

  // The phase of output (a, b) at a place (y, x) among the phases has a place in the map.
  bool seen(long y, long x, long phase) const {
    const long i = y - phase / 2, j = x - phase % 2;
    return i >= 0 && i < height && j >= 0 && j < width;
  }
  // Row of a matrix for image n, and the position (y, x).
  long row(Taken taken, long n, long y, long x) const { return (n * high(taken) + y) * wide(taken) + x; }
};

constexpr Taken ALL[] = {PLAIN, DOWN, ACROSS, BOTH};

// A matrix as products take it on their right, from one whose element (k, j) is at[k * by_row + j * by_column].
inline void pack(const float* at, long by_row, long by_column, long depth, long columns, float* out) {
  for (long j = 0; j < columns; ++j)
    for (long k = 0; k < depth; ++k) out[packed(k, j, depth, columns)] = at[k * by_row + j * by_column];
}

// The small map, or its differences; to place(row, channel).
template <class Place>
void differences(const float* x, Upsampled shape, Taken taken, Place place) {
  const long channels = shape.channels;
  for (long n = 0; n < shape.images; ++n)
    for (long y = 0; y < shape.high(taken); ++y)
      for (long j = 0; j < shape.wide(taken); ++j) {
        const float* image = x + n * shape.height * shape.width * channels;
        const auto at = [&](long i, long k, long c) {
          const bool inside = i >= 0 && i < shape.height && k >= 0 && k < shape.width;
          return inside ? load(image + (i * shape.width + k) * channels + c) : repeated(0.0f);
        };
        const long row = shape.row(taken, n, y, j);
        for (long c = 0; c < channels; c += LANES) {
          Lanes found = at(y, j, c);
          if (taken == DOWN) found -= at(y - 1, j, c);
          if (taken == ACROSS) found -= at(y, j - 1, c);
          if (taken == BOTH) found = (found - at(y, j - 1, c)) - (at(y - 1, j, c) - at(y - 1, j - 1, c));
          store(place(row, c), found);
        }
      }
}

// weight (9, outputs, channels): for each way of taking the map its windows' sums, in the order of `first`.
void upsampled_forward(const float* x, const float* weight, float* phases, Upsampled shape, int threads) {
  const long channels = shape.channels, outputs = shape.outputs, samples = shape.images;
  const long places = (shape.height + 1) * (shape.width + 1) * 4 * outputs;
  const Room right(9 * channels * outputs);
  for (const Taken taken : ALL) {
    const long from = Upsampled::first(taken) * outputs * channels;
    pack(weight + from, 1, channels, channels, Upsampled::sums(taken) * outputs, right.get() + from);
  }
  const Upsampled one{1, shape.height, shape.width, channels, outputs};
#pragma omp parallel num_threads(threads)
  {
    const Room taken_map(one.positions(BOTH) * channels), plain(one.positions(PLAIN) * outputs),
        down(one.positions(DOWN) * 2 * outputs), across(one.positions(ACROSS) * 2 * outputs);
#pragma omp for schedule(dynamic)
    for (long n = 0; n < samples; ++n) {
      const float* image = x + n * one.positions(PLAIN) * channels;
      float* out = phases + n * places;
      float* const to[] = {plain.get(), down.get(), across.get(), out};
      for (const Taken taken : ALL) {
        const float* left = image;
        if (taken != PLAIN) {
          differences(image, one, taken, [&](long row, long c) { return taken_map.get() + row * channels + c; });
          left = taken_map.get();
        }
        const long columns = Upsampled::sums(taken) * outputs;
        product<false>({left, channels, 1}, right.get() + Upsampled::first(taken) * outputs * channels,
                       one.positions(taken), channels, columns, to[taken], columns);
      }
      for (long y = 0; y <= one.height; ++y)
        for (long j = 0; j <= one.width; ++j)
          for (long phase = 0; phase < 4; ++phase) {
            const long a = phase / 2, b = phase % 2;
            float* at = out + ((y * (one.width + 1) + j) * 4 + phase) * outputs;
            if (!one.seen(y, j, phase)) {
              std::fill(at, at + outputs, 0.0f);
              continue;
            }
            const float* p = plain.get() + one.row(PLAIN, 0, y - a, j - b) * outputs;
            const float* d = down.get() + (one.row(DOWN, 0, y, j - b) * 2 + a) * outputs;
            const float* s = across.get() + (one.row(ACROSS, 0, y - a, j) * 2 + b) * outputs;
            for (long o = 0; o < outputs; o += LANES)
              store(at + o, load(at + o) + ((load(p + o) + load(d + o)) + load(s + o)));
          }
    }
  }
}

// Gradients at the sums of one way of taking the map, of those at the phases; what has no place in the map gives none.
inline void gradients_of_sums(const float* grad, Upsampled shape, Taken taken, float* out) {
  const long outputs = shape.outputs, wide = shape.width + 1;
  const long rows = Upsampled::down(taken) ? 1 : 2, columns = Upsampled::across(taken) ? 1 : 2;
  for (long n = 0; n < shape.images; ++n)
    for (long y = 0; y < shape.high(taken); ++y)
      for (long x = 0; x < shape.wide(taken); ++x)
        for (long sum = 0; sum < Upsampled::sums(taken); ++sum) {
          // Which phase it is, as far as the sum says; over the rest is summed.
          const long a = Upsampled::down(taken) ? sum / (3 - columns) : 0, b = Upsampled::across(taken) ? sum % 2 : 0;
          float* to = out + (shape.row(taken, n, y, x) * Upsampled::sums(taken) + sum) * outputs;
          const float* parts[4];
          long count = 0;
          for (long i = 0; i < rows; ++i)
            for (long j = 0; j < columns; ++j) {
              const long phase = 2 * (a + i) + b + j, row = y + i, column = x + j;
              if (shape.seen(row, column, phase))
                parts[count++] = grad + (((n * (shape.height + 1) + row) * wide + column) * 4 + phase) * outputs;
            }
          for (long o = 0; o < outputs; o += LANES) {
            Lanes found = repeated(0.0f);
            for (long part = 0; part < count; ++part) found += load(parts[part] + o);
            store(to + o, found);
          }
        }
}

// to_x (samples, height, width, channels) and to_weight (9, outputs, channels).
void upsampled_backward(const float* x, const float* weight, const float* grad, float* to_x, float* to_weight,
                        Upsampled shape, int threads) {
  // Parts of the sum over samples are taken side by side; how many there are does not depend on the threads.
  constexpr long MOST_PARTS = 8, DEEP = 256;
  const long channels = shape.channels, outputs = shape.outputs, samples = shape.images;
  const long whole = 9 * outputs * channels, parts = std::min(MOST_PARTS, samples);
  const long places = (shape.height + 1) * (shape.width + 1) * 4 * outputs, plane = shape.height * shape.width * channels;
  const long at_once = std::max(1L, DEEP / (shape.height * shape.width));
  const Room right(whole), sums(parts * whole);
  for (const Taken taken : ALL) {
    const long from = Upsampled::first(taken) * outputs * channels;
    pack(weight + from, channels, 1, Upsampled::sums(taken) * outputs, channels, right.get() + from);
  }
#pragma omp parallel num_threads(threads)
  {
    const Upsampled most{at_once, shape.height, shape.width, channels, outputs};
    const Room taken_map(most.positions(BOTH) * channels), at_sums(most.positions(BOTH) * 4 * outputs),
        down(most.positions(DOWN) * channels), across(most.positions(ACROSS) * channels),
        both(most.positions(BOTH) * channels);
#pragma omp for schedule(dynamic)
    for (long part = 0; part < parts; ++part) {
      const long beginning = part * samples / parts, ending = (part + 1) * samples / parts;
      for (long n = beginning; n < ending; n += at_once) {
        const Upsampled some{std::min(at_once, ending - n), shape.height, shape.width, channels, outputs};
        float* const to_map[] = {to_x + n * plane, down.get(), across.get(), both.get()};
        for (const Taken taken : ALL) {
          const long rows = some.positions(taken), columns = Upsampled::sums(taken) * outputs;
          const long from = Upsampled::first(taken) * outputs * channels;
          gradients_of_sums(grad + n * places, some, taken, at_sums.get());
          product<false>({at_sums.get(), columns, 1}, right.get() + from, rows, columns, channels, to_map[taken],
                         channels);
          differences(x + n * plane, some, taken,
                      [&](long row, long c) { return taken_map.get() + packed(row, c, rows, channels); });
          const Left left{at_sums.get(), 1, columns};
          float* sum = sums.get() + part * whole + from;
          if (n > beginning) product<true>(left, taken_map.get(), columns, rows, channels, sum, channels);
          else product<false>(left, taken_map.get(), columns, rows, channels, sum, channels);
        }
        for (long image = 0; image < some.images; ++image)
          for (long y = 0; y < some.height; ++y)
            for (long j = 0; j < some.width; ++j) {
              const auto place = [&](Taken taken, long i, long k) {
                return to_map[taken] + some.row(taken, image, i, k) * channels;
              };
              float* to = place(PLAIN, y, j);
              const float *d = place(DOWN, y, j), *e = place(DOWN, y + 1, j), *a = place(ACROSS, y, j),
                          *b = place(ACROSS, y, j + 1), *p = place(BOTH, y, j), *q = place(BOTH, y, j + 1),
                          *r = place(BOTH, y + 1, j), *s = place(BOTH, y + 1, j + 1);
              for (long c = 0; c < channels; c += LANES)
                store(to + c, load(to + c) + (load(d + c) - load(e + c)) + (load(a + c) - load(b + c)) +
                                  ((load(p + c) - load(q + c)) - (load(r + c) - load(s + c))));
            }
      }
    }
#pragma omp for schedule(static)
    for (long i = 0; i < whole; i += LANES) {
      Lanes sum = load(sums.get() + i);
      for (long part = 1; part < parts; ++part) sum += load(sums.get() + part * whole + i);
      store(to_weight + i, sum);
    }
  }
}

}  // namespace
