// 3x3 convolutions over a margin of one, by Winograd's minimal filtering F(2x2, 3x3): Lavin and Gray, "Fast Algorithms
// for Convolutional Neural Networks", CVPR 2016.
//
// A tile of 2x2 outputs sees 4x4 inputs d. With B, G and A from there, A^T ((G g G^T) * (B^T d B)) A is what the window g
// gives, and * multiplies each of sixteen points by itself: 16 multiplications where 36 are. Over channels that is a
// product of matrices for each point. All factors are 1 or a half, so that transforming loses next to nothing; integers
// are convolved exactly while no sum on the way, in quarters, exceeds 2^24.

#pragma once

#include "products.h"
#include "window.h"

namespace {

constexpr long POINTS = 16;

// Maps of `samples` images, and the tiles that cover their positions; a row of tiles is worked on as a whole.
struct Tiled {
  long samples, height, width;

  long rows_of_image() const { return (height + 1) / 2; }
  long rows() const { return samples * rows_of_image(); }
  long columns() const { return (width + 1) / 2; }
  long positions() const { return height * width; }
  // Positions before a row of tiles.
  long begin(long row) const { return row / rows_of_image() * positions() + 2 * (row % rows_of_image()) * width; }
  // Rows of tiles that are worked on at once: few enough to stay in cache, enough for products to be worth it.
  long strip(long channels) const {
    const long tiles = std::max(16L, std::min(48L, (1L << 14) / channels));
    return std::max(1L, tiles / columns());
  }
};

// Where an operand of a product of matrices is written: the element of a point, tile and channel.
struct ByRows {  // one tile after another
  long tiles, channels;
  long by_point() const { return tiles * channels + APART; }
  long place(long tile, long channel) const { return tile * channels + channel; }
  long by_tile(long) const { return channels; }
};

struct Packed {
  long tiles, channels;
  long by_point() const { return tiles * channels + APART; }
  long place(long tile, long channel) const { return packed(tile, channel, tiles, channels); }
  long by_tile(long channel) const { return std::min(PANEL, channels - channel / PANEL * PANEL); }
};

// A column of B^T d.
inline void input_column(const float* const* rows, long at, Lanes* out) {
  const Lanes a = load(rows[0] + at), b = load(rows[1] + at), c = load(rows[2] + at), d = load(rows[3] + at);
  out[0] = a - c;
  out[1] = b + c;
  out[2] = c - b;
  out[3] = b - d;
}

inline void cleared(Lanes* column) {
  for (int i = 0; i < 4; ++i) column[i] = repeated(0.0f);
}

// Channels of a map, all or some that lie side by side: `first` is that of its first position, and there are `all`.
struct Channels {
  const float* first;
  long all;
};

// B^T d B of the rows of tiles from begin to end; `zeros` is a row of positions beyond the image.
template <class Places>
void input_points(Channels x, Tiled map, Places places, long begin, long end, const float* zeros, float* out) {
  const long channels = x.all, columns = map.columns(), by_point = places.by_point();
  for (long row = begin; row < end; ++row) {
    const long y = 2 * (row % map.rows_of_image()) - 1;
    const float* image = x.first + row / map.rows_of_image() * map.positions() * channels;
    const float* rows[4];
    for (int i = 0; i < 4; ++i)
      rows[i] = y + i >= 0 && y + i < map.height ? image + (y + i) * map.width * channels : zeros;
    for (long c = 0; c < places.channels; c += LANES) {
      // Of a tile's four columns two were its neighbour's.
      Lanes first[4], second[4], third[4], fourth[4];
      cleared(first);
      input_column(rows, c, second);
      float* to = out + places.place((row - begin) * columns, c);
      const long step = places.by_tile(c);
      for (long t = 0; t < columns; ++t, to += step) {
        if (2 * t + 1 < map.width) input_column(rows, (2 * t + 1) * channels + c, third);
        else cleared(third);
        if (2 * t + 2 < map.width) input_column(rows, (2 * t + 2) * channels + c, fourth);
        else cleared(fourth);
        for (int i = 0; i < 4; ++i) {
          float* at = to + 4 * i * by_point;
          store(at, first[i] - third[i]);
          store(at + by_point, second[i] + third[i]);
          store(at + 2 * by_point, third[i] - second[i]);
          store(at + 3 * by_point, second[i] - fourth[i]);
          first[i] = third[i];
          second[i] = fourth[i];
        }
      }
    }
  }
}

// Calls visit(tile, positions of its outputs (i, j), -1 beyond the image) for each tile of a row.
template <class Visit>
void outputs_of(Tiled map, long row, Visit visit) {
  const long y = 2 * (row % map.rows_of_image()), image = row / map.rows_of_image() * map.positions();
  for (long t = 0; t < map.columns(); ++t) {
    long at[2][2];
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j)
        at[i][j] = y + i < map.height && 2 * t + j < map.width ? image + (y + i) * map.width + 2 * t + j : -1;
    visit(t, at);
  }
}

// out = factor A^T m A for the rows of tiles from begin to end; `nowhere` takes what is beyond the image.
void outputs(const float* m, Tiled map, ByRows places, const float* factor, long begin, long end, float* nowhere,
             float* out) {
  const long channels = places.channels, by_point = places.by_point();
  for (long row = begin; row < end; ++row)
    outputs_of(map, row, [&](long t, const long(&at)[2][2]) {
      const float* tile = m + places.place((row - begin) * map.columns() + t, 0);
      for (long c = 0; c < channels; c += LANES) {
        Lanes s[2][4];
        for (int j = 0; j < 4; ++j) {
          const float* from = tile + j * by_point + c;
          const Lanes a = load(from), b = load(from + 4 * by_point), d = load(from + 8 * by_point),
                      e = load(from + 12 * by_point);
          s[0][j] = a + b + d;
          s[1][j] = b - d - e;
        }
        const Lanes by = factor == nullptr ? repeated(1.0f) : load(factor + c);
        for (int i = 0; i < 2; ++i) {
          store((at[i][0] < 0 ? nowhere : out + at[i][0] * channels) + c, by * (s[i][0] + s[i][1] + s[i][2]));
          store((at[i][1] < 0 ? nowhere : out + at[i][1] * channels) + c, by * (s[i][1] - s[i][2] - s[i][3]));
        }
      }
    });
}

// A y A^T of the rows of tiles from begin to end; `zeros` is a position beyond the image.
void gradient_points(Channels grad, Tiled map, ByRows places, long begin, long end, const float* zeros, float* out) {
  const long by_point = places.by_point();
  for (long row = begin; row < end; ++row)
    outputs_of(map, row, [&](long t, const long(&at)[2][2]) {
      float* tile = out + places.place((row - begin) * map.columns() + t, 0);
      const auto place = [&](long position) { return position < 0 ? zeros : grad.first + position * grad.all; };
      for (long c = 0; c < places.channels; c += LANES) {
        Lanes s[4][2];
        for (int j = 0; j < 2; ++j) {
          const Lanes a = load(place(at[0][j]) + c), b = load(place(at[1][j]) + c);
          s[0][j] = a;
          s[1][j] = a + b;
          s[2][j] = a - b;
          s[3][j] = repeated(0.0f) - b;
        }
        for (int i = 0; i < 4; ++i) {
          float* to = tile + 4 * i * by_point + c;
          store(to, s[i][0]);
          store(to + by_point, s[i][0] + s[i][1]);
          store(to + 2 * by_point, s[i][0] - s[i][1]);
          store(to + 3 * by_point, repeated(0.0f) - s[i][1]);
        }
      }
    });
}

// G g G^T, packed for each point.
void weight_points(const float* weight, Window window, float* out, int threads) {
  constexpr long BLOCK = 16;
  const long inputs = window.inputs, outputs = window.outputs, by_point = inputs * outputs;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
  for (long first = 0; first < outputs; first += PANEL)
    for (long begin = 0; begin < inputs; begin += BLOCK) {
      // Gathered block by block: one of its two orders runs across memory.
      float g[BLOCK][TAPS][PANEL];
      const long width = std::min(PANEL, outputs - first), count = std::min(BLOCK, inputs - begin);
      for (long o = 0; o < width; ++o)
        for (long t = 0; t < TAPS; ++t)
          for (long k = 0; k < count; ++k) g[k][t][o] = weight[window.place(first + o, begin + k, t)];
      const Lanes half = repeated(0.5f);
      for (long k = 0; k < count; ++k)
        for (long o = 0; o < width; o += LANES) {
          Lanes h[4][3];
          for (int j = 0; j < 3; ++j) {
            const Lanes a = load(g[k][j] + o), b = load(g[k][3 + j] + o), c = load(g[k][6 + j] + o);
            h[0][j] = a;
            h[1][j] = half * (a + c + b);
            h[2][j] = half * (a + c - b);
            h[3][j] = c;
          }
          float* to = out + packed(begin + k, first + o, inputs, outputs);
          for (int i = 0; i < 4; ++i, to += 4 * by_point) {
            store(to, h[i][0]);
            store(to + by_point, half * (h[i][0] + h[i][2] + h[i][1]));
            store(to + 2 * by_point, half * (h[i][0] + h[i][2] - h[i][1]));
            store(to + 3 * by_point, h[i][2]);
          }
        }
    }
}

// Asks for a share of the numbers from begin to end ahead of their use, for each point one: while products are computed.
template <int WRITES>
inline void fetch(const float* map, long begin, long end, long point) {
  constexpr long LINE = 16;
  const long share = (end - begin + POINTS - 1) / POINTS, last = std::min(end, begin + (point + 1) * share);
  for (long i = begin + point * share; i < last; i += LINE) __builtin_prefetch(map + i, WRITES, 2);
}

// out = factor conv(x, weight).
void convolved(const float* x, const float* weight, const float* factor, float* out, Tiled map, Window window,
               int threads) {
  const long inputs = window.inputs, count = window.outputs, columns = map.columns();
  const Room u(POINTS * inputs * count);
  weight_points(weight, window, u.get(), threads);
  const long step = map.strip(inputs + count);
#pragma omp parallel num_threads(threads)
  {
    const ByRows most{step * columns, inputs}, most_out{step * columns, count};
    const Room v(POINTS * most.by_point()), m(POINTS * most_out.by_point()), zeros(map.width * inputs), nowhere(count);
    std::fill(zeros.get(), zeros.get() + map.width * inputs, 0.0f);
#pragma omp for schedule(dynamic, 8)
    for (long begin = 0; begin < map.rows(); begin += step) {
      const long end = std::min(map.rows(), begin + step), tiles = (end - begin) * columns;
      const ByRows in{tiles, inputs}, back{tiles, count};
      input_points({x, inputs}, map, in, begin, end, zeros.get(), v.get());
      const long next = std::min(map.rows(), end + step);
      for (long p = 0; p < POINTS; ++p) {
        fetch<0>(x, map.begin(end) * inputs, map.begin(next) * inputs, p);
        fetch<1>(out, map.begin(begin) * count, map.begin(end) * count, p);
        product({v.get() + p * in.by_point(), inputs, 1}, u.get() + p * inputs * count, tiles, inputs, count,
                m.get() + p * back.by_point(), count);
      }
      outputs(m.get(), map, back, factor, begin, end, nowhere.get(), out);
    }
  }
}

// out = factor G^T u G, where u, (point, output, input), is the sum of `parts` matrices.
void weight_of_points(const float* u, long parts, Window window, const float* factor, float* out, int threads) {
  const long inputs = window.inputs, by_point = window.outputs * inputs;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long o = 0; o < window.outputs; ++o)
    for (long k = 0; k < inputs; k += LANES) {
      Lanes h[3][4];
      const Lanes half = repeated(0.5f), by = repeated(factor == nullptr ? 1.0f : factor[o]);
      const auto at = [&](long point) {
        Lanes sum = load(u + point * by_point + o * inputs + k);
        for (long part = 1; part < parts; ++part) sum += load(u + (part * POINTS + point) * by_point + o * inputs + k);
        return sum;
      };
      for (int j = 0; j < 4; ++j) {
        const Lanes a = at(j), b = at(4 + j), c = at(8 + j), d = at(12 + j);
        h[0][j] = a + half * (b + c);
        h[1][j] = half * (b - c);
        h[2][j] = half * (b + c) + d;
      }
      for (int i = 0; i < 3; ++i) {
        const Lanes taps[3] = {h[i][0] + half * (h[i][1] + h[i][2]), half * (h[i][1] - h[i][2]),
                               half * (h[i][1] + h[i][2]) + h[i][3]};
        for (int j = 0; j < 3; ++j) {
          float row[LANES];
          store(row, by * taps[j]);
          for (long l = 0; l < LANES; ++l) out[window.place(o, k + l, 3 * i + j)] = row[l];
        }
      }
    }
}

// out = factor times the gradient in the weight.
void weight_gradient(const float* x, const float* grad, const float* factor, float* out, Tiled map, Window window,
                     int threads) {
  // The sums of a block of outputs and inputs stay in cache. Where there are few blocks, parts of a sum are taken side
  // by side; how many there are does not depend on the threads, so that no result does.
  constexpr long SHARE = 64, FEWEST = 8;
  const long inputs = window.inputs, count = window.outputs, whole = POINTS * inputs * count, columns = map.columns();
  const long step = map.strip(2 * SHARE), strips = (map.rows() + step - 1) / step;
  const long down = (count + SHARE - 1) / SHARE, across = (inputs + SHARE - 1) / SHARE;
  const long blocks = down * across, parts = std::min(strips, std::max(1L, FEWEST / blocks));
  const Room u(parts * whole);
#pragma omp parallel num_threads(threads)
  {
    const ByRows most{step * columns, SHARE};
    const Room v(POINTS * most.by_point()), z(POINTS * most.by_point()), zeros(map.width * inputs + SHARE);
    std::fill(zeros.get(), zeros.get() + map.width * inputs + SHARE, 0.0f);
#pragma omp for schedule(dynamic) collapse(3)
    for (long part = 0; part < parts; ++part)
      for (long i = 0; i < down; ++i)
        for (long j = 0; j < across; ++j) {
          const long o = i * SHARE, k = j * SHARE, rows = std::min(SHARE, count - o), width = std::min(SHARE, inputs - k);
          float* sums = u.get() + part * whole + o * inputs + k;
          const long beginning = part * strips / parts, ending = (part + 1) * strips / parts;
          for (long strip = beginning; strip < ending; ++strip) {
            const long begin = strip * step, end = std::min(map.rows(), begin + step), tiles = (end - begin) * columns;
            const Packed in{tiles, width};
            const ByRows back{tiles, rows};
            input_points({x + k, inputs}, map, in, begin, end, zeros.get(), v.get());
            gradient_points({grad + o, count}, map, back, begin, end, zeros.get(), z.get());
            const long next = std::min(map.rows(), end + step);
            for (long p = 0; p < POINTS; ++p) {
              if (blocks == 1) {
                fetch<0>(x, map.begin(end) * inputs, map.begin(next) * inputs, p);
                fetch<0>(grad, map.begin(end) * count, map.begin(next) * count, p);
              }
              const Left left{z.get() + p * back.by_point(), 1, rows};
              const float* right = v.get() + p * in.by_point();
              product(left, right, rows, tiles, width, sums + p * inputs * count, inputs, strip > beginning);
            }
          }
        }
  }
  weight_of_points(u.get(), parts, window, factor, out, threads);
}

}  // namespace
