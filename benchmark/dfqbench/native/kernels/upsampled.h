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

// How the small map is taken: itself, or its differences down, across, or both.
enum Taken { PLAIN, DOWN, ACROSS, BOTH };
constexpr Taken ALL[] = {PLAIN, DOWN, ACROSS, BOTH};

inline bool down(Taken taken) { return taken == DOWN || taken == BOTH; }
inline bool across(Taken taken) { return taken == ACROSS || taken == BOTH; }
// Sums of a window that it is multiplied with, and where the first of them is among the nine.
inline long sums(Taken taken) { return (down(taken) ? 2 : 1) * (across(taken) ? 2 : 1); }
inline long first_sum(Taken taken) { return taken == PLAIN ? 0 : taken == DOWN ? 1 : taken == ACROSS ? 3 : 5; }

struct Upsampled {
  long samples, height, width, channels, outputs;

  long plane() const { return height * width * channels; }
  long places() const { return (height + 1) * (width + 1) * 4 * outputs; }
  // Differences stand before each row and column, and after the last.
  long high(Taken taken) const { return height + down(taken); }
  long wide(Taken taken) const { return width + across(taken); }
  // Whether a phase has a place in the map at row y, column x of the phases.
  bool seen(long y, long x, long phase) const {
    const long i = y - phase / 2, j = x - phase % 2;
    return i >= 0 && i < height && j >= 0 && j < width;
  }
};

// Rows from begin to end of some images, of the small map or of its differences, one after another.
struct Rows {
  long images, begin, end, wide;

  long positions() const { return images * (end - begin) * wide; }
  long at(long image, long y, long x) const { return (image * (end - begin) + y - begin) * wide + x; }
};

// What is worked on at once: several small images, or a band of rows of a large one, so that it stays in cache.
struct Piece {
  long first, images, begin, end;  // images, and rows of the small map

  // The rows that outputs of these rows need.
  Rows before(Upsampled shape, Taken taken) const {
    const long last = end == shape.height ? shape.high(taken) : end;
    return {images, down(taken) ? begin : std::max(0L, begin - 1), last, shape.wide(taken)};
  }
  // The rows that are theirs alone.
  Rows own(Upsampled shape, Taken taken) const {
    return {images, begin, end == shape.height ? shape.high(taken) : end, shape.wide(taken)};
  }
  // The rows of which gradients at these rows are made: one more, which is the next piece's own.
  Rows after(Upsampled shape, Taken taken) const {
    return {images, begin, end + down(taken), shape.wide(taken)};
  }
};

struct Pieces {
  Upsampled shape;

  long images() const { return std::max(1L, 256 / (shape.height * shape.width)); }
  long rows() const { return images() > 1 ? shape.height : std::min(shape.height, std::max(8L, 512 / shape.width)); }
  long bands() const { return (shape.height + rows() - 1) / rows(); }
  long count() const { return (shape.samples + images() - 1) / images() * bands(); }
  Piece operator[](long index) const {
    const long first = index / bands() * images(), begin = index % bands() * rows();
    return {first, std::min(images(), shape.samples - first), begin, std::min(shape.height, begin + rows())};
  }
  // Positions of the largest piece, differences both ways and a row more included.
  long most() const { return images() * (rows() + 2) * (shape.width + 1); }
};

// A matrix as products take it on their right, from one whose element (k, j) is at[k * by_row + j * by_column].
inline void pack(const float* at, long by_row, long by_column, long depth, long columns, float* out) {
  for (long j = 0; j < columns; ++j)
    for (long k = 0; k < depth; ++k) out[packed(k, j, depth, columns)] = at[k * by_row + j * by_column];
}

// Rows of the small map, or of its differences, to place(row, channel); `x` is the first image's.
template <class Place>
void differences(const float* x, Upsampled shape, Rows rows, Taken taken, Place place) {
  const long channels = shape.channels;
  for (long n = 0; n < rows.images; ++n)
    for (long y = rows.begin; y < rows.end; ++y)
      for (long j = 0; j < rows.wide; ++j) {
        const float* image = x + n * shape.plane();
        const auto at = [&](long i, long k, long c) {
          const bool inside = i >= 0 && i < shape.height && k >= 0 && k < shape.width;
          return inside ? load(image + (i * shape.width + k) * channels + c) : repeated(0.0f);
        };
        const long row = rows.at(n, y, j);
        for (long c = 0; c < channels; c += LANES) {
          Lanes found = at(y, j, c);
          if (taken == DOWN) found -= at(y - 1, j, c);
          if (taken == ACROSS) found -= at(y, j - 1, c);
          if (taken == BOTH) found = (found - at(y, j - 1, c)) - (at(y - 1, j, c) - at(y - 1, j - 1, c));
          store(place(row, c), found);
        }
      }
}

// weight (9, outputs, channels): for each way of taking the map its windows' sums, in the order of `first_sum`.
void upsampled_forward(const float* x, const float* weight, float* phases, Upsampled shape, int threads) {
  const long channels = shape.channels, outputs = shape.outputs;
  const Room right(9 * channels * outputs);
  for (const Taken taken : ALL) {
    const long from = first_sum(taken) * outputs * channels;
    pack(weight + from, 1, channels, channels, sums(taken) * outputs, right.get() + from);
  }
  const Pieces pieces{shape};
#pragma omp parallel num_threads(threads)
  {
    const long most = pieces.most();
    const Room left(most * channels), plain(most * outputs), of_down(most * 2 * outputs),
        of_across(most * 2 * outputs), of_both(most * 4 * outputs);
    float* const products[] = {plain.get(), of_down.get(), of_across.get(), of_both.get()};
#pragma omp for schedule(dynamic)
    for (long index = 0; index < pieces.count(); ++index) {
      const Piece piece = pieces[index];
      for (const Taken taken : ALL) {
        const Rows rows = piece.before(shape, taken);
        differences(x + piece.first * shape.plane(), shape, rows, taken,
                    [&](long row, long c) { return left.get() + row * channels + c; });
        const long columns = sums(taken) * outputs;
        product({left.get(), channels, 1}, right.get() + first_sum(taken) * outputs * channels, rows.positions(),
                channels, columns, products[taken], columns);
      }
      const Rows p = piece.before(shape, PLAIN), d = piece.before(shape, DOWN), s = piece.before(shape, ACROSS),
                 all = piece.before(shape, BOTH);
      for (long n = 0; n < piece.images; ++n)
        for (long y = all.begin; y < all.end; ++y)
          for (long j = 0; j < all.wide; ++j)
            for (long phase = 0; phase < 4; ++phase) {
              const long a = phase / 2, b = phase % 2;
              float* to = phases + (piece.first + n) * shape.places() + ((y * all.wide + j) * 4 + phase) * outputs;
              if (!shape.seen(y, j, phase)) {
                std::fill(to, to + outputs, 0.0f);
                continue;
              }
              const float *f = products[PLAIN] + p.at(n, y - a, j - b) * outputs,
                          *g = products[DOWN] + (d.at(n, y, j - b) * 2 + a) * outputs,
                          *h = products[ACROSS] + (s.at(n, y - a, j) * 2 + b) * outputs,
                          *k = products[BOTH] + (all.at(n, y, j) * 4 + phase) * outputs;
              for (long o = 0; o < outputs; o += LANES)
                store(to + o, load(k + o) + ((load(f + o) + load(g + o)) + load(h + o)));
            }
    }
  }
}

// Gradients at the products of one way of taking the map, of those at the phases; what has no place in the map gives
// none. `grad` is the first image's.
inline void gradients_of_products(const float* grad, Upsampled shape, Rows rows, Taken taken, float* out) {
  const long outputs = shape.outputs, high = down(taken) ? 1 : 2, wide = across(taken) ? 1 : 2;
  for (long n = 0; n < rows.images; ++n)
    for (long y = rows.begin; y < rows.end; ++y)
      for (long x = 0; x < rows.wide; ++x)
        for (long sum = 0; sum < sums(taken); ++sum) {
          // The parities of the outputs, as far as the sum says; over the rest is summed.
          const long a = down(taken) ? sum / (3 - wide) : 0, b = across(taken) ? sum % 2 : 0;
          float* to = out + (rows.at(n, y, x) * sums(taken) + sum) * outputs;
          const float* parts[4];
          long count = 0;
          for (long i = 0; i < high; ++i)
            for (long j = 0; j < wide; ++j) {
              const long phase = 2 * (a + i) + b + j, row = y + i, column = x + j;
              if (shape.seen(row, column, phase))
                parts[count++] =
                    grad + n * shape.places() + ((row * (shape.width + 1) + column) * 4 + phase) * outputs;
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
  // Parts of the sum over pieces are taken side by side; how many there are does not depend on the threads.
  constexpr long MOST_PARTS = 8;
  const long channels = shape.channels, outputs = shape.outputs, whole = 9 * outputs * channels;
  const Pieces pieces{shape};
  const long parts = std::min(MOST_PARTS, pieces.count());
  const Room right(whole), totals(parts * whole);
  for (const Taken taken : ALL) {
    const long from = first_sum(taken) * outputs * channels;
    pack(weight + from, channels, 1, sums(taken) * outputs, channels, right.get() + from);
  }
#pragma omp parallel num_threads(threads)
  {
    const long most = pieces.most();
    const Room map(most * channels), at_products(most * 4 * outputs), plain(most * channels), of_down(most * channels),
        of_across(most * channels), of_both(most * channels);
    float* const to_maps[] = {plain.get(), of_down.get(), of_across.get(), of_both.get()};
#pragma omp for schedule(dynamic)
    for (long part = 0; part < parts; ++part) {
      const long beginning = part * pieces.count() / parts, ending = (part + 1) * pieces.count() / parts;
      for (long index = beginning; index < ending; ++index) {
        const Piece piece = pieces[index];
        for (const Taken taken : ALL) {
          const long columns = sums(taken) * outputs, from = first_sum(taken) * outputs * channels;
          const Rows after = piece.after(shape, taken), own = piece.own(shape, taken);
          gradients_of_products(grad + piece.first * shape.places(), shape, after, taken, at_products.get());
          product({at_products.get(), columns, 1}, right.get() + from, after.positions(), columns, channels,
                  to_maps[taken], channels);
          // A piece's own rows come first, so that the others' can be left out of the sum.
          const long rows = own.positions();
          differences(x + piece.first * shape.plane(), shape, own, taken,
                      [&](long row, long c) { return map.get() + packed(row, c, rows, channels); });
          const Left left{at_products.get(), 1, columns};
          float* total = totals.get() + part * whole + from;
          product(left, map.get(), columns, rows, channels, total, channels, index > beginning);
        }
        for (long n = 0; n < piece.images; ++n)
          for (long y = piece.begin; y < piece.end; ++y)
            for (long j = 0; j < shape.width; ++j) {
              const auto place = [&](Taken taken, long i, long k) {
                return to_maps[taken] + piece.after(shape, taken).at(n, i, k) * channels;
              };
              const float *itself = place(PLAIN, y, j), *d = place(DOWN, y, j), *e = place(DOWN, y + 1, j),
                          *a = place(ACROSS, y, j), *b = place(ACROSS, y, j + 1), *p = place(BOTH, y, j),
                          *q = place(BOTH, y, j + 1), *r = place(BOTH, y + 1, j), *s = place(BOTH, y + 1, j + 1);
              float* to = to_x + (piece.first + n) * shape.plane() + (y * shape.width + j) * channels;
              for (long c = 0; c < channels; c += LANES)
                store(to + c, load(itself + c) + (load(d + c) - load(e + c)) + (load(a + c) - load(b + c)) +
                                  ((load(p + c) - load(q + c)) - (load(r + c) - load(s + c))));
            }
      }
    }
#pragma omp for schedule(static)
    for (long i = 0; i < whole; i += LANES) {
      Lanes sum = load(totals.get() + i);
      for (long part = 1; part < parts; ++part) sum += load(totals.get() + part * whole + i);
      store(to_weight + i, sum);
    }
  }
}

}  // namespace
