// Convolutions that take steps, over windows of any size: each row of outputs is a product of matrices with each row
// of inputs that it sees, whose windows lie in memory one step after another.
//
// The gradient in the input is taken likewise: with q = (y + margin) / step and its phase what is left, row q - d of
// the outputs sees row y by tap phase + step d, so that the rows and columns of a phase see the same taps (with steps of
// two over a window of three one or two).

#pragma once

#include <cstring>
#include <vector>

#include "products.h"

namespace {

// A convolution of maps (samples, height, width, channels) over windows `side` wide and high, over a margin of zeros.
struct Strided {
  long samples, height, width, channels, outputs, side, step, margin;

  long high() const { return (height + 2 * margin - side) / step + 1; }
  long wide() const { return (width + 2 * margin - side) / step + 1; }
  long row_of_taps() const { return side * channels; }
};

// Rows of a map with zeros before and after them, of which a few are kept.
class Lines {
 public:
  // Of maps (.., height, width, channels), with so many positions of zeros.
  Lines(const float* map, long height, long width, long channels, long before, long after, long kept)
      : map(map), height(height), width(width), channels(channels), before(before),
        length((before + width + after) * channels), kept(kept), held(kept, -1), numbers(kept * length) {
    std::fill(numbers.get(), numbers.get() + kept * length, 0.0f);
  }
  // A row of an image, from its zeros on; those of as many others stay where they are.
  const float* at(long image, long y) {
    const long row = image * height + y, slot = row % kept;
    float* line = numbers.get() + slot * length;
    if (held[slot] != row) {
      std::memcpy(line + before * channels, map + row * width * channels, width * channels * sizeof(float));
      held[slot] = row;
    }
    return line;
  }

 private:
  const float* map;
  long height, width, channels, before, length, kept;
  std::vector<long> held;
  Room numbers;
};

// out = conv(x, weight); the weight lies (outputs, side, side, channels).
void strided(const float* x, const float* weight, float* out, Strided conv, int threads) {
  const long depth = conv.row_of_taps(), count = conv.outputs, high = conv.high(), wide = conv.wide();
  const Room right(conv.side * depth * count);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (long o = 0; o < count; ++o)
      for (long i = 0; i < conv.side; ++i)
        for (long k = 0; k < depth; ++k)
          right.get()[i * depth * count + packed(k, o, depth, count)] = weight[(o * conv.side + i) * depth + k];
    Lines lines(x, conv.height, conv.width, conv.channels, conv.margin, conv.margin, conv.side);
#pragma omp for schedule(dynamic)
    for (long image = 0; image < conv.samples; ++image)
      for (long row = 0; row < high; ++row) {
        float* to = out + (image * high + row) * wide * count;
        bool add = false;
        for (long i = 0; i < conv.side; ++i) {
          const long y = row * conv.step - conv.margin + i;
          if (y < 0 || y >= conv.height) continue;
          product({lines.at(image, y), conv.step * conv.channels, 1}, right.get() + i * depth * count, wide, depth,
                  count, to, count, add);
          add = true;
        }
        if (!add) std::fill(to, to + wide * count, 0.0f);
      }
  }
}

// One dimension of an input, by phases.
struct Phases {
  long step, margin, side, size;

  long most() const { return (side + step - 1) / step; }                           // taps of phase 0
  long taps(long a) const { return std::max(0L, side - a + step - 1) / step; }     // the rest have as many or fewer
  long places() const { return (size - 1 + margin) / step + 1; }                   // numbers that q can be
  long first(long a) const { return std::max(0L, margin - a + step - 1) / step; }  // q of the first y of a phase
  long position(long q, long a) const { return q * step + a - margin; }
  long count(long a) const { return std::max(0L, size - 1 - position(first(a), a) + step) / step; }
};

// Weights by phases: for each phase of rows and each of its taps, and each phase of columns, a matrix that is packed;
// its rows are the taps of the columns, the last first, times outputs.
class ByPhases {
 public:
  ByPhases(const float* weight, Strided conv, int threads)
      : shape(conv), phases{conv.step, conv.margin, conv.side, 0},
        numbers(conv.side * conv.row_of_taps() * conv.outputs) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (long y = 0; y < conv.side; ++y)
      for (long b = 0; b < conv.step; ++b) {
        const long across = phases.taps(b), depth = across * conv.outputs;
        float* to = numbers.get() + place(y, b);
        for (long j = 0; j < across; ++j)
          for (long o = 0; o < conv.outputs; ++o) {
            const long x = b + conv.step * (across - 1 - j);
            const float* from = weight + ((o * conv.side + y) * conv.side + x) * conv.channels;
            for (long k = 0; k < conv.channels; k += LANES)
              store(to + packed(j * conv.outputs + o, k, depth, conv.channels), load(from + k));
          }
      }
  }
  // Of tap y of the rows, and phase b of the columns.
  const float* at(long y, long b) const { return numbers.get() + place(y, b); }

 private:
  Strided shape;
  Phases phases;
  Room numbers;

  long place(long y, long b) const {
    long before = y * shape.side;
    for (long c = 0; c < b; ++c) before += phases.taps(c);
    return before * shape.outputs * shape.channels;
  }
};

// out = the gradient in the input.
void strided_data_gradient(const float* grad, const float* weight, float* out, Strided conv, int threads) {
  const long count = conv.outputs, channels = conv.channels, step = conv.step, high = conv.high(), wide = conv.wide();
  const Phases down{step, conv.margin, conv.side, conv.height}, across{step, conv.margin, conv.side, conv.width};
  const ByPhases right(weight, conv, threads);
  const long before = across.most() - 1, after = std::max(0L, across.places() - wide);
#pragma omp parallel num_threads(threads)
  {
    Lines lines(grad, high, wide, count, before, after, down.most());
#pragma omp for schedule(dynamic)
    for (long image = 0; image < conv.samples; ++image)
      for (long y = 0; y < conv.height; ++y) {
        const long q = (y + conv.margin) / step, a = (y + conv.margin) % step;
        for (long b = 0; b < step; ++b) {
          const long first = across.first(b), places = across.count(b), taps = across.taps(b);
          float* to = out + ((image * conv.height + y) * conv.width + across.position(first, b)) * channels;
          bool add = false;
          for (long d = 0; d < down.taps(a) && taps > 0; ++d) {
            if (q - d < 0 || q - d >= high) continue;
            product({lines.at(image, q - d) + (before + first - taps + 1) * count, count, 1},
                    right.at(a + step * d, b), places, taps * count, channels, to, step * channels, add);
            add = true;
          }
          if (!add)
            for (long x = 0; x < places; ++x) std::fill(to + x * step * channels, to + (x * step + 1) * channels, 0.0f);
        }
      }
  }
}

// out = the gradient in the input of few channels: all phases are columns of one product.
void strided_data_gradient_of_few(const float* grad, const float* weight, float* out, Strided conv, int threads) {
  const long count = conv.outputs, channels = conv.channels, step = conv.step, high = conv.high(), wide = conv.wide();
  const Phases down{step, conv.margin, conv.side, conv.height}, across{step, conv.margin, conv.side, conv.width};
  const long most = down.most(), places = across.places(), depth = most * count;
  const long columns = (step * step * channels + LANES - 1) / LANES * LANES;
  const Room right(most * depth * columns);
  std::fill(right.get(), right.get() + most * depth * columns, 0.0f);
  for (long y = 0; y < conv.side; ++y)
    for (long x = 0; x < conv.side; ++x)
      for (long o = 0; o < count; ++o)
        for (long k = 0; k < channels; ++k) {
          const long row = (most - 1 - x / step) * count + o, column = (y % step * step + x % step) * channels + k;
          right.get()[y / step * depth * columns + packed(row, column, depth, columns)] =
              weight[((o * conv.side + y) * conv.side + x) * channels + k];
        }
#pragma omp parallel num_threads(threads)
  {
    Lines lines(grad, high, wide, count, most - 1, std::max(0L, places - wide), most);
    const Room found(places * columns);
#pragma omp for schedule(dynamic)
    for (long image = 0; image < conv.samples; ++image)
      for (long q = 0; q < down.places(); ++q) {
        std::fill(found.get(), found.get() + places * columns, 0.0f);
        for (long d = 0; d < most; ++d)
          if (q - d >= 0 && q - d < high)
            product({lines.at(image, q - d), count, 1}, right.get() + d * depth * columns, places, depth, columns,
                    found.get(), columns, true);
        for (long a = 0; a < step; ++a) {
          const long y = down.position(q, a);
          if (y < 0 || y >= conv.height) continue;
          float* line = out + (image * conv.height + y) * conv.width * channels;
          for (long p = 0; p < places; ++p)
            for (long b = 0; b < step; ++b) {
              const long x = across.position(p, b);
              const float* from = found.get() + p * columns + (a * step + b) * channels;
              if (x >= 0 && x < conv.width) std::copy(from, from + channels, line + x * channels);
            }
        }
      }
  }
}

// out = the gradient in the weight, which lies (outputs, side, side, channels).
void strided_weight_gradient(const float* x, const float* grad, float* out, Strided conv, int threads) {
  // Parts of the sum over images are taken side by side; how many there are does not depend on the threads.
  constexpr long MOST_PARTS = 8;
  const long depth = conv.row_of_taps(), count = conv.outputs, high = conv.high(), wide = conv.wide();
  const long parts = std::min(MOST_PARTS, conv.samples), whole = conv.side * depth * count;
  const Room sums(parts * whole);
#pragma omp parallel num_threads(threads)
  {
    Lines lines(x, conv.height, conv.width, conv.channels, conv.margin, conv.margin, conv.side);
    const Room right(wide * count);
#pragma omp for schedule(dynamic)
    for (long part = 0; part < parts; ++part) {
      float* sum = sums.get() + part * whole;
      std::fill(sum, sum + whole, 0.0f);
      for (long image = part * conv.samples / parts; image < (part + 1) * conv.samples / parts; ++image)
        for (long row = 0; row < high; ++row) {
          const float* from = grad + (image * high + row) * wide * count;
          for (long o = 0; o < count; o += LANES)
            for (long p = 0; p < wide; ++p) store(right.get() + packed(p, o, wide, count), load(from + p * count + o));
          for (long i = 0; i < conv.side; ++i) {
            const long y = row * conv.step - conv.margin + i;
            if (y >= 0 && y < conv.height)
              product({lines.at(image, y), 1, conv.step * conv.channels}, right.get(), depth, wide, count,
                      sum + i * depth * count, count, true);
          }
        }
    }
#pragma omp for schedule(static)
    for (long k = 0; k < conv.side * depth; ++k)
      for (long o = 0; o < count; o += LANES) {
        Lanes sum = load(sums.get() + k * count + o);
        for (long part = 1; part < parts; ++part) sum += load(sums.get() + part * whole + k * count + o);
        float found[LANES];
        store(found, sum);
        for (long l = 0; l < LANES; ++l) out[(o + l) * conv.side * depth + k] = found[l];
      }
  }
}

}  // namespace
