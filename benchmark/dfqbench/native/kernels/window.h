// The window of a 3x3 convolution.

#pragma once

namespace {

constexpr long TAPS = 9;

// A weight (outputs, inputs, 3, 3) in any memory order, or mirrored, as the gradient in a convolution's input takes it.
struct Window {
  long outputs, inputs, by_output, by_input, by_tap;
  bool mirrored;
  long place(long o, long k, long t) const {
    return o * by_output + k * by_input + (mirrored ? TAPS - 1 - t : t) * by_tap;
  }
};

}  // namespace
