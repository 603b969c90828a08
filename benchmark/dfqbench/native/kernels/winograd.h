// 3x3 convolutions over a margin of one, by Winograd's minimal filtering F(4x4, 3x3): Lavin and Gray, "Fast Algorithms
// for Convolutional Neural Networks", CVPR 2016.
//
// A tile of 4x4 outputs sees 6x6 inputs d. With B, G and A as there, A^T ((G g G^T) * (B^T d B)) A is what the window
// g gives, and * multiplies each of 36 points by itself: 36 multiplications where 144 are. Over channels that is a
// product of matrices for each point. The points at which polynomials are taken are not theirs (0, 1, -1, 2, -2 and
// infinity) but 0, 2/3, -2/3, 3/2, -3/2 and infinity: closer to one, and inverse to each other, so that rounding costs
// about twice what it does in a plain sum of products instead of four times.

#pragma once

#include "products.h"
#include "window.h"

namespace {

constexpr long SIDE = 4;          // outputs of a tile's row
constexpr long SEEN = SIDE + 2;   // inputs of a tile's row
constexpr long POINTS = SEEN * SEEN;
constexpr float NEAR = 2.0f / 3.0f, FAR = 1.5f;  // NEAR FAR = 1
constexpr float NEAR2 = NEAR * NEAR, FAR2 = FAR * FAR;
// One over the product of a point's distances to the other finite ones; that of 0 is one.
constexpr float OF_NEAR = 1.0f / (2.0f * NEAR2 * (NEAR2 - FAR2)), OF_FAR = 1.0f / (2.0f * FAR2 * (FAR2 - NEAR2));

// Maps of `samples` images, and the tiles that cover their positions; a row of tiles is worked on as a whole.
struct Tiled {
  long samples, height, width;

  long rows_of_image() const { return (height + SIDE - 1) / SIDE; }
  long rows() const { return samples * rows_of_image(); }
  long columns() const { return (width + SIDE - 1) / SIDE; }
  long positions() const { return height * width; }
  // Positions before a row of tiles.
  long begin(long row) const { return row / rows_of_image() * positions() + SIDE * (row % rows_of_image()) * width; }
  // Rows of tiles that are worked on at once, about as many tiles as are wanted.
  long strip(long tiles) const { return std::max(1L, tiles / columns()); }
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

// Of polynomials in even and odd parts, at the near and at the far points: their values at both signs.
inline void at_opposite_points(Lanes even, Lanes odd, Lanes other, Lanes last, Lanes* out) {
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = other + last;
  out[4] = other - last;
}

// B^T d of six numbers.
inline void seen(const Lanes* d, Lanes* out) {
  const Lanes near = repeated(NEAR), far = repeated(FAR), both = repeated(-(NEAR2 + FAR2));
  const Lanes near2 = repeated(-NEAR2), far2 = repeated(-FAR2);
  const Lanes even = multiplied(far2, d[2], d[4]), odd = near * multiplied(far2, d[1], d[3]);
  const Lanes other = multiplied(near2, d[2], d[4]), last = far * multiplied(near2, d[1], d[3]);
  out[0] = multiplied(both, d[2], d[0] + d[4]);
  at_opposite_points(even, odd, other, last, out);
  out[5] = multiplied(both, d[3], d[1] + d[5]);
}

// A^T m of six numbers: four.
inline void filtered(const Lanes* m, Lanes* out) {
  const Lanes near = m[1] + m[2], odd = m[1] - m[2], far = m[3] + m[4], last = m[3] - m[4];
  out[0] = m[0] + (near + far);
  out[1] = multiplied(repeated(NEAR), odd, repeated(FAR) * last);
  out[2] = multiplied(repeated(NEAR2), near, repeated(FAR2) * far);
  out[3] = m[5] + multiplied(repeated(NEAR * NEAR2), odd, repeated(FAR * FAR2) * last);
}

// A y of four numbers: six.
inline void spread(const Lanes* y, Lanes* out) {
  const Lanes even = multiplied(repeated(NEAR2), y[2], y[0]);
  const Lanes odd = repeated(NEAR) * multiplied(repeated(NEAR2), y[3], y[1]);
  const Lanes other = multiplied(repeated(FAR2), y[2], y[0]);
  const Lanes last = repeated(FAR) * multiplied(repeated(FAR2), y[3], y[1]);
  out[0] = y[0];
  at_opposite_points(even, odd, other, last, out);
  out[5] = y[3];
}

// G g of three numbers: six.
inline void of_window(const Lanes* g, Lanes* out) {
  const Lanes even = repeated(OF_NEAR) * multiplied(repeated(NEAR2), g[2], g[0]);
  const Lanes other = repeated(OF_FAR) * multiplied(repeated(FAR2), g[2], g[0]);
  const Lanes odd = repeated(OF_NEAR * NEAR) * g[1], last = repeated(OF_FAR * FAR) * g[1];
  out[0] = g[0];
  at_opposite_points(even, odd, other, last, out);
  out[5] = g[2];
}

// G^T u of six numbers: three.
inline void to_window(const Lanes* u, Lanes* out) {
  const Lanes near = repeated(OF_NEAR) * (u[1] + u[2]), far = repeated(OF_FAR) * (u[3] + u[4]);
  const Lanes odd = repeated(OF_NEAR * NEAR) * (u[1] - u[2]), last = repeated(OF_FAR * FAR) * (u[3] - u[4]);
  out[0] = u[0] + (near + far);
  out[1] = odd + last;
  out[2] = u[5] + multiplied(repeated(NEAR2), near, repeated(FAR2) * far);
}

// Channels of a map, all or some that lie side by side, of which there are `all`: `first` is that of position `origin`.
struct Channels {
  const float* first;
  long all, origin = 0;
  const float* at(long position) const { return first + (position - origin) * all; }
};

// B^T d B of the rows of tiles from begin to end; `zeros` is a row of positions beyond the image.
template <class Places>
void input_points(Channels x, Tiled map, Places places, long begin, long end, const float* zeros, float* out) {
  const long channels = x.all, columns = map.columns(), by_point = places.by_point();
  for (long row = begin; row < end; ++row) {
    const long y = SIDE * (row % map.rows_of_image()) - 1;
    const long image = row / map.rows_of_image() * map.positions();
    const float* rows[SEEN];
    for (int i = 0; i < SEEN; ++i)
      rows[i] = y + i >= 0 && y + i < map.height ? x.at(image + (y + i) * map.width) : zeros;
    for (long c = 0; c < places.channels; c += LANES) {
      // (row of B^T d, column); of a tile's six columns two were its neighbour's.
      Lanes s[SEEN][SEEN];
      const auto column = [&](long at, int j) {
        Lanes d[SEEN], to[SEEN];
        for (int i = 0; i < SEEN; ++i) d[i] = at < map.width ? load(rows[i] + at * channels + c) : repeated(0.0f);
        seen(d, to);
        for (int i = 0; i < SEEN; ++i) s[i][j] = to[i];
      };
      for (int i = 0; i < SEEN; ++i) s[i][0] = repeated(0.0f);
      column(0, 1);
      float* to = out + places.place((row - begin) * columns, c);
      const long step = places.by_tile(c);
      for (long t = 0; t < columns; ++t, to += step) {
        for (int j = 2; j < SEEN; ++j) column(SIDE * t + j - 1, j);
        for (int i = 0; i < SEEN; ++i) {
          Lanes v[SEEN];
          seen(s[i], v);
          float* at = to + SEEN * i * by_point;
          for (int j = 0; j < SEEN; ++j) store(at + j * by_point, v[j]);
          s[i][0] = s[i][4];
          s[i][1] = s[i][5];
        }
      }
    }
  }
}

// Calls visit(tile, positions of its outputs (i, j), -1 beyond the image) for each tile of a row.
template <class Visit>
void outputs_of(Tiled map, long row, Visit visit) {
  const long y = SIDE * (row % map.rows_of_image()), image = row / map.rows_of_image() * map.positions();
  for (long t = 0; t < map.columns(); ++t) {
    long at[SIDE][SIDE];
    for (int i = 0; i < SIDE; ++i)
      for (int j = 0; j < SIDE; ++j)
        at[i][j] = y + i < map.height && SIDE * t + j < map.width ? image + (y + i) * map.width + SIDE * t + j : -1;
    visit(t, at);
  }
}

// out = factor A^T m A for the rows of tiles from begin to end, or with ADD that more; `nowhere` takes what is beyond the
// image.
template <bool ADD>
void outputs(const float* m, Tiled map, ByRows places, const float* factor, long begin, long end, float* nowhere,
             float* out) {
  const long channels = places.channels, by_point = places.by_point();
  for (long row = begin; row < end; ++row)
    outputs_of(map, row, [&](long t, const long(&at)[SIDE][SIDE]) {
      const float* tile = m + places.place((row - begin) * map.columns() + t, 0);
      for (long c = 0; c < channels; c += LANES) {
        Lanes s[SIDE][SEEN];
        for (int j = 0; j < SEEN; ++j) {
          Lanes d[SEEN], y[SIDE];
          for (int i = 0; i < SEEN; ++i) d[i] = load(tile + (SEEN * i + j) * by_point + c);
          filtered(d, y);
          for (int i = 0; i < SIDE; ++i) s[i][j] = y[i];
        }
        const Lanes by = factor == nullptr ? repeated(1.0f) : load(factor + c);
        for (int i = 0; i < SIDE; ++i) {
          Lanes y[SIDE];
          filtered(s[i], y);
          for (int j = 0; j < SIDE; ++j) {
            float* to = (at[i][j] < 0 ? nowhere : out + at[i][j] * channels) + c;
            store(to, ADD ? load(to) + by * y[j] : by * y[j]);
          }
        }
      }
    });
}

// A y A^T of the rows of tiles from begin to end; `zeros` is a position beyond the image.
void gradient_points(Channels grad, Tiled map, ByRows places, long begin, long end, const float* zeros, float* out) {
  const long by_point = places.by_point();
  for (long row = begin; row < end; ++row)
    outputs_of(map, row, [&](long t, const long(&at)[SIDE][SIDE]) {
      float* tile = out + places.place((row - begin) * map.columns() + t, 0);
      const auto place = [&](long position) { return position < 0 ? zeros : grad.at(position); };
      for (long c = 0; c < places.channels; c += LANES) {
        Lanes s[SEEN][SIDE];
        for (int j = 0; j < SIDE; ++j) {
          Lanes y[SIDE], to[SEEN];
          for (int i = 0; i < SIDE; ++i) y[i] = load(place(at[i][j]) + c);
          spread(y, to);
          for (int i = 0; i < SEEN; ++i) s[i][j] = to[i];
        }
        for (int i = 0; i < SEEN; ++i) {
          Lanes to[SEEN];
          spread(s[i], to);
          for (int j = 0; j < SEEN; ++j) store(tile + (SEEN * i + j) * by_point + c, to[j]);
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
      for (long k = 0; k < count; ++k)
        for (long o = 0; o < width; o += LANES) {
          Lanes h[SEEN][3];
          for (int j = 0; j < 3; ++j) {
            const Lanes taps[3] = {load(g[k][j] + o), load(g[k][3 + j] + o), load(g[k][6 + j] + o)};
            Lanes to[SEEN];
            of_window(taps, to);
            for (int i = 0; i < SEEN; ++i) h[i][j] = to[i];
          }
          float* to = out + packed(begin + k, first + o, inputs, outputs);
          for (int i = 0; i < SEEN; ++i) {
            Lanes u[SEEN];
            of_window(h[i], u);
            for (int j = 0; j < SEEN; ++j, to += by_point) store(to, u[j]);
          }
        }
    }
}

// Asks for a share of the numbers from begin to end ahead of their use, for each point one: amid products.
template <int WRITES>
inline void fetch(const float* map, long begin, long end, long point) {
  constexpr long LINE = 16;
  const long share = (end - begin + POINTS - 1) / POINTS, last = std::min(end, begin + (point + 1) * share);
  for (long i = begin + point * share; i < last; i += LINE) __builtin_prefetch(map + i, WRITES, 2);
}

// Of a gradient in the weight: outputs and inputs of a block, and how many parts of sums over strips there are at least,
// where there are as many strips.
constexpr long SHARE = 64, FEWEST = 8;

// Rows of tiles of which a product with the weight's points is taken at once, and of those summed up for its gradient.
inline long strip_of_products(Tiled map, long inputs, long outputs) {
  return map.strip(std::max(24L, (inputs + outputs) / 8));
}
inline long strip_of_sums(Tiled map, long inputs) { return map.strip(inputs < SHARE ? 24 : SHARE); }

// out = factor conv(x, weight); after(begin, end) is called where the positions between are written, and in cache.
template <class After>
void convolved(const float* x, const float* weight, const float* factor, float* out, Tiled map, Window window,
               int threads, After after) {
  const long inputs = window.inputs, count = window.outputs, columns = map.columns();
  const Room u(POINTS * inputs * count);
  weight_points(weight, window, u.get(), threads);
  // Few enough tiles to stay in cache, enough for products to be worth it: weights are read anew for each strip.
  const long step = strip_of_products(map, inputs, count);
  // Strips that lie side by side, as far as all threads have some.
  const long at_once = std::max(1L, std::min(8L, map.rows() / (4 * threads * step)));
#pragma omp parallel num_threads(threads)
  {
    const ByRows most{step * columns, inputs}, most_out{step * columns, count};
    const Room v(POINTS * most.by_point()), m(POINTS * most_out.by_point()), zeros(map.width * inputs), nowhere(count);
    std::fill(zeros.get(), zeros.get() + map.width * inputs, 0.0f);
#pragma omp for schedule(dynamic, at_once)
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
      outputs<false>(m.get(), map, back, factor, begin, end, nowhere.get(), out);
      after(map.begin(begin), map.begin(end));
    }
  }
}

// out = factor G^T u G, where u, (point, output, input), is the sum of `parts` matrices.
void weight_of_points(const float* u, long parts, Window window, const float* factor, float* out, int threads) {
  const long inputs = window.inputs, by_point = window.outputs * inputs;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long o = 0; o < window.outputs; ++o)
    for (long k = 0; k < inputs; k += LANES) {
      Lanes h[3][SEEN];
      const Lanes by = repeated(factor == nullptr ? 1.0f : factor[o]);
      const auto at = [&](long point) {
        Lanes sum = load(u + point * by_point + o * inputs + k);
        for (long part = 1; part < parts; ++part) sum += load(u + (part * POINTS + point) * by_point + o * inputs + k);
        return sum;
      };
      for (int j = 0; j < SEEN; ++j) {
        Lanes points[SEEN], to[3];
        for (int i = 0; i < SEEN; ++i) points[i] = at(SEEN * i + j);
        to_window(points, to);
        for (int i = 0; i < 3; ++i) h[i][j] = to[i];
      }
      for (int i = 0; i < 3; ++i) {
        Lanes taps[3];
        to_window(h[i], taps);
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
  const long inputs = window.inputs, count = window.outputs, whole = POINTS * inputs * count, columns = map.columns();
  const long step = strip_of_sums(map, inputs), strips = (map.rows() + step - 1) / step;
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
