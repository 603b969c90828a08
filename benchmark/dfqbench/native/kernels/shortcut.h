// Shortcuts without parameters: every n-th position of a map, and zeros for new channels.

#pragma once

#include <algorithm>
#include <cstring>

namespace {

// `before` and `after` are the new channels on either side of the map's own.
struct Shortcut {
  long samples, height, width, channels, step, before, after;

  long outer_height() const { return (height + step - 1) / step; }
  long outer_width() const { return (width + step - 1) / step; }
  long outer_channels() const { return before + channels + after; }
};

template <class T>
void shortcut(const T* x, T* out, Shortcut cut, int threads) {
  const long wide = cut.outer_channels(), rows = cut.outer_height(), columns = cut.outer_width();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long row = 0; row < cut.samples * rows; ++row) {
    const T* from = x + (row / rows * cut.height + cut.step * (row % rows)) * cut.width * cut.channels;
    T* to = out + row * columns * wide;
    for (long i = 0; i < columns; ++i, from += cut.step * cut.channels, to += wide) {
      std::fill(to, to + cut.before, T{});
      std::copy(from, from + cut.channels, to + cut.before);
      std::fill(to + cut.before + cut.channels, to + wide, T{});
    }
  }
}

// The gradient in x.
template <class T>
void shortcut_gradient(const T* grad, T* to_x, Shortcut cut, int threads) {
  const long wide = cut.outer_channels(), rows = cut.outer_height(), columns = cut.outer_width();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long row = 0; row < cut.samples * cut.height; ++row) {
    const long sample = row / cut.height, y = row % cut.height;
    T* to = to_x + row * cut.width * cut.channels;
    std::fill(to, to + cut.width * cut.channels, T{});
    if (y % cut.step != 0) continue;
    const T* from = grad + (sample * rows + y / cut.step) * columns * wide + cut.before;
    for (long i = 0; i < columns; ++i, from += wide, to += cut.step * cut.channels)
      std::copy(from, from + cut.channels, to);
  }
}

}  // namespace
