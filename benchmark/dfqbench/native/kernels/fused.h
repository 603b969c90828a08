// 3x3 convolutions with the BatchNorm layer, the residual, the ReLU and the rounding that follow, strip by strip: what
// one writes the next reads from cache, and the gradient between them is never in memory as a whole.

#pragma once

#include "grids.h"
#include "winograd.h"

namespace {

// y = conv(x, weight) and out, its block on a grid.
template <class B>
void fused_forward(B block, Grid grid, const float* x, const float* weight, const float* scale, const float* shift,
                   const float* residual, float* y, float* out, Tiled map, Window window, int threads) {
  const long channels = window.outputs;
  convolved(x, weight, nullptr, y, map, window, threads, [=](long begin, long end) {
    const long first = begin * channels;
    rounded_rows<false>(block, grid, y + first, scale, shift, residual + first, out + first, nullptr, end - begin,
                        channels);
  });
}

// Channels come in multiples of it.
constexpr long GROUP = 16;
constexpr int WIDE = GROUP / LANES;

// Of a block: input y, residual, the gradient at its output, and what BatchNorm amounts to; all over `channels`.
struct Passed {
  const float *y, *residual, *grad, *scale, *shift, *centre;
  long channels;
};

// The gradient at y of `rows` positions from `begin` into `out`; with OWN also that in the residual, where one is
// added, and sums over positions of the gradient that ReLU lets through, and of that times (y - centre).
template <bool ADD, bool OWN>
void passed_rows(const Passed& from, long begin, long rows, float* out, float* to_residual, double* slopes,
                 double* shifts) {
  const long channels = from.channels;
  for (long c = 0; c < channels; c += GROUP) {
    Lanes scale[WIDE], shift[WIDE], centre[WIDE];
    for (int j = 0; j < WIDE; ++j) {
      scale[j] = load(from.scale + c + j * LANES);
      shift[j] = load(from.shift + c + j * LANES);
      centre[j] = load(from.centre + c + j * LANES);
    }
    for (long first = 0; first < rows; first += SEGMENT) {
      Lanes slope[WIDE], total[WIDE];
      for (int j = 0; j < WIDE; ++j) slope[j] = total[j] = repeated(0.0f);
      const long last = std::min(rows, first + SEGMENT);
      for (long p = first; p < last; ++p) {
        const long at = (begin + p) * channels + c;
#pragma GCC unroll 4
        for (int j = 0; j < WIDE; ++j) {
          const Lanes x = load(from.y + at + j * LANES), got = load(from.grad + at + j * LANES);
          Lanes sum = x * scale[j] + shift[j];
          if (ADD) sum += load(from.residual + at + j * LANES);
          // In this order NaN passes, as in torch.
          const Lanes passed = sum <= repeated(0.0f) ? repeated(0.0f) : got;
          store(out + p * channels + c + j * LANES, passed * scale[j]);
          if (OWN) {
            total[j] += passed;
            slope[j] += passed * (x - centre[j]);
            if (ADD) store(to_residual + at + j * LANES, passed);
          }
        }
      }
      if (OWN)
        for (int j = 0; j < WIDE; ++j) {
          float numbers[2][LANES];
          store(numbers[0], slope[j]);
          store(numbers[1], total[j]);
          for (long l = 0; l < LANES; ++l) {
            slopes[c + j * LANES + l] += numbers[0][l];
            shifts[c + j * LANES + l] += numbers[1][l];
          }
        }
    }
  }
}

// The gradient at y of the rows of tiles from begin to end, with a row of positions of their image on either side.
template <bool ADD>
Channels passed_strip(const Passed& from, Tiled map, long begin, long end, float* out, float* to_residual,
                      double* slopes, double* shifts) {
  const long first = map.begin(begin), last = map.begin(end);
  const long above = begin % map.rows_of_image() == 0 ? 0 : map.width;
  const long below = end % map.rows_of_image() == 0 ? 0 : map.width;
  float* own = out + above * from.channels;
  passed_rows<ADD, false>(from, first - above, above, out, nullptr, nullptr, nullptr);
  passed_rows<ADD, true>(from, first, last - first, own, to_residual, slopes, shifts);
  passed_rows<ADD, false>(from, last, below, own + (last - first) * from.channels, nullptr, nullptr, nullptr);
  return {own, from.channels, first};
}

// Where gradients go; those in x and weight are left out where null, that in x adds to what is there where `adds`.
struct Gradients {
  float *to_x, *to_residual, *to_weight, *to_scale, *to_shift;
  bool adds;
};

// Gradients of `fused_forward`; of more than SHARE inputs or outputs it would be slow. A strip's gradient at y, with a
// row of its neighbours on either side, stays in cache for both products.
template <bool ADD>
void fused_backward(const float* x, const float* weight, const Passed& from, const float* inverse, Gradients to,
                    Tiled map, Window window, int threads) {
  const long inputs = window.inputs, count = window.outputs, whole = POINTS * inputs * count, columns = map.columns();
  const long step = strip_of_sums(map, inputs), strips = (map.rows() + step - 1) / step;
  const long part_step = std::min(step, strip_of_products(map, count, inputs));
  const long parts = std::min(strips, FEWEST), beyond = map.width * std::max(inputs, count);
  const Window mirrored{inputs, count, window.by_input, window.by_output, window.by_tap, true};
  const Room u(to.to_x == nullptr ? 0 : whole), sums(to.to_weight == nullptr ? 0 : parts * whole);
  if (to.to_x != nullptr) weight_points(weight, mirrored, u.get(), threads);
  std::vector<double> slopes(parts * count), shifts(parts * count);
#pragma omp parallel num_threads(threads)
  {
    const ByRows most{step * columns, std::max(inputs, count)};
    const Room v(POINTS * most.by_point()), z(POINTS * most.by_point()), zeros(beyond), nowhere(inputs);
    const Room own((SIDE * step + 2) * map.width * count);
    std::fill(zeros.get(), zeros.get() + beyond, 0.0f);
    std::fill(nowhere.get(), nowhere.get() + inputs, 0.0f);
#pragma omp for schedule(dynamic)
    for (long part = 0; part < parts; ++part) {
      float* sum = sums.get() + part * whole;
      double* slope = slopes.data() + part * count;
      double* total = shifts.data() + part * count;
      const long beginning = part * strips / parts, ending = (part + 1) * strips / parts;
      for (long strip = beginning; strip < ending; ++strip) {
        const long begin = strip * step, end = std::min(map.rows(), begin + step), tiles = (end - begin) * columns;
        const Channels grad = passed_strip<ADD>(from, map, begin, end, own.get(), to.to_residual, slope, total);
        const long last = map.begin(end), after = map.begin(std::min(map.rows(), end + step));
        if (to.to_weight != nullptr) {
          const Packed in{tiles, inputs};
          const ByRows back{tiles, count};
          input_points({x, inputs}, map, in, begin, end, zeros.get(), v.get());
          gradient_points(grad, map, back, begin, end, zeros.get(), z.get());
          for (long p = 0; p < POINTS; ++p) {
            fetch<0>(x, last * inputs, after * inputs, p);
            fetch<0>(from.y, last * count, after * count, p);
            product({z.get() + p * back.by_point(), 1, count}, v.get() + p * in.by_point(), count, tiles, inputs,
                    sum + p * inputs * count, inputs, strip > beginning);
          }
        }
        if (to.to_x != nullptr) {
          for (long some = begin; some < end; some += part_step) {
            const long until = std::min(end, some + part_step), few = (until - some) * columns;
            const ByRows in{few, count}, back{few, inputs};
            input_points(grad, map, in, some, until, zeros.get(), v.get());
            for (long p = 0; p < POINTS; ++p) {
              fetch<1>(to.to_x, map.begin(some) * inputs, map.begin(until) * inputs, p);
              if (some == begin) fetch<0>(from.grad, last * count, after * count, p);
              product({v.get() + p * in.by_point(), count, 1}, u.get() + p * inputs * count, few, count, inputs,
                      z.get() + p * back.by_point(), inputs);
            }
            if (to.adds) outputs<true>(z.get(), map, back, nullptr, some, until, nowhere.get(), to.to_x);
            else outputs<false>(z.get(), map, back, nullptr, some, until, nowhere.get(), to.to_x);
          }
        }
      }
    }
  }
  if (to.to_weight != nullptr) weight_of_points(sums.get(), parts, window, nullptr, to.to_weight, threads);
  for (long i = 0; i < count; ++i) {
    double slope = 0, total = 0;
    for (long part = 0; part < parts; ++part) {
      slope += slopes[part * count + i];
      total += shifts[part * count + i];
    }
    to.to_scale[i] = static_cast<float>(slope) * inverse[i];
    to.to_shift[i] = static_cast<float>(total);
  }
}

}  // namespace
