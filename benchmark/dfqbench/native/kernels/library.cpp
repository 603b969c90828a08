// Passes over feature maps that torch has no single operation for, and convolutions with fewer multiplications.
//
// Maps are channels-last: `samples` blocks of `positions` rows of `channels` numbers, float32 or bfloat16; arithmetic
// is float32, and sums over positions that passes take are float64 from one segment to the next. What is computed as one
// piece (in passes a sample, in convolutions a strip of rows or a part of a sum) is the same for any number of threads,
// so that no result depends on it. Compiled without contraction: outside of convolutions, a * b + c is rounded twice, as
// torch does it, and `round_to_grid` equals torch's operations bit for bit. Loops over channels are free of dependences,
// and `omp simd` says so.
//
// Functions take tensors, then sizes, then numbers, then the number of threads, as `binding.py` has them.

#include "blocks.h"
#include "few.h"
#include "fused.h"
#include "grids.h"
#include "strided.h"
#include "upsampled.h"
#include "winograd.h"
#include "woven.h"

extern "C" {

#define FOR_TYPE(NAME, T)                                                                                             \
  void dfq_moments_##NAME(const T* x, float* mean, float* var, long samples, long positions, long channels,           \
                          int threads) {                                                                              \
    moments(x, mean, var, samples, positions, channels, threads);                                                     \
  }                                                                                                                   \
  void dfq_moments_backward_##NAME(const T* x, const float* slope, const float* offset, T* out, long samples,         \
                                   long positions, long channels, int threads) {                                      \
    moments_backward(x, slope, offset, out, samples, positions, channels, threads);                                   \
  }                                                                                                                   \
  void dfq_block_forward_##NAME(const T* x, const float* scale, const float* shift, const T* residual, T* out,        \
                                float* mean, float* var, long samples, long positions, long channels, float ceiling,  \
                                int threads) {                                                                        \
    as_block(residual != nullptr, ceiling, [=](auto block) {                                                          \
      block_forward(block, x, scale, shift, residual == nullptr ? x : residual, out, mean, var, samples, positions,   \
                    channels, threads);                                                                               \
    });                                                                                                               \
  }                                                                                                                   \
  void dfq_block_backward_##NAME(const T* x, const T* residual, const T* grad, const float* scale, const float* shift,\
                                 const float* slope, const float* offset, T* to_x, T* to_residual, long samples,      \
                                 long positions, long channels, float ceiling, int threads) {                         \
    as_block(residual != nullptr, ceiling, [=](auto block) {                                                          \
      block_backward(block, x, residual == nullptr ? x : residual, grad, scale, shift, slope, offset, to_x,           \
                     to_residual == nullptr ? to_x : to_residual, samples, positions, channels, threads);             \
    });                                                                                                               \
  }                                                                                                                   \
  void dfq_affine_backward_##NAME(const T* x, const T* residual, const T* grad, const float* scale,                    \
                                  const float* shift, const float* centre, T* to_x, T* to_residual, float* to_scale,  \
                                  float* to_shift, long samples, long positions, long channels, float ceiling,        \
                                  int threads) {                                                                      \
    as_block(residual != nullptr, ceiling, [=](auto block) {                                                          \
      affine_backward(block, x, residual == nullptr ? x : residual, grad, scale, shift, centre, to_x,                 \
                      to_residual == nullptr ? to_x : to_residual, to_scale, to_shift, samples, positions, channels,  \
                      threads);                                                                                       \
    });                                                                                                               \
  }                                                                                                                   \
  void dfq_woven_moments_##NAME(const T* phases, float* mean, float* var, long samples, long height, long width,      \
                                long channels, int threads) {                                                         \
    woven_moments(Woven{height, width, channels}, phases, mean, var, samples, threads);                               \
  }                                                                                                                   \
  void dfq_woven_forward_##NAME(const T* phases, const float* scale, const float* shift, T* out, long samples,        \
                                long height, long width, long channels, float slope, int threads) {                   \
    woven_forward(Woven{height, width, channels}, phases, scale, shift, out, slope, samples, threads);                \
  }                                                                                                                   \
  void dfq_woven_sums_##NAME(const T* phases, const T* grad, const float* scale, const float* shift,                  \
                             const float* centre, float* to_scale, float* to_shift, long samples, long height,        \
                             long width, long channels, float slope, int threads) {                                   \
    woven_sums(Woven{height, width, channels}, phases, grad, scale, shift, centre, to_scale, to_shift, slope,         \
               samples, threads);                                                                                     \
  }                                                                                                                   \
  void dfq_woven_backward_##NAME(const T* phases, const T* grad, const float* scale, const float* shift,              \
                                 const float* incline, const float* offset, T* to_phases, long samples, long height,  \
                                 long width, long channels, float slope, int threads) {                               \
    woven_backward(Woven{height, width, channels}, phases, grad, scale, shift, incline, offset, to_phases, slope,     \
                   samples, threads);                                                                                 \
  }

FOR_TYPE(float32, float)
FOR_TYPE(bfloat16, bfloat16)

void dfq_widen_scaled(const bfloat16* x, const float* factor, float* out, long rows, long channels, int threads) {
  scale_channels(x, factor, out, rows, channels, threads);
}

void dfq_narrow_scaled(const float* x, const float* factor, bfloat16* out, long rows, long channels, int threads) {
  scale_channels(x, factor, out, rows, channels, threads);
}

void dfq_round_to_grid(const float* x, float* out, bfloat16* codes, const float* scale, const float* shift, long count,
                       float low, float high, int threads) {
  round_to_grid(Grid{*scale, *shift, low, high}, x, out, codes, count, threads);
}

void dfq_rounded_block(const float* x, const float* scale, const float* shift, const float* residual, float* out,
                       bfloat16* codes, const float* grid_scale, const float* grid_shift, long rows, long channels,
                       float low, float high, int threads) {
  const Grid grid{*grid_scale, *grid_shift, low, high};
  // Which ceiling does not matter: the grid clips.
  as_block(residual != nullptr, INFINITY, [=](auto block) {
    const float* r = residual == nullptr ? x : residual;
    if (codes == nullptr)
      rounded_block<false>(block, grid, x, scale, shift, r, out, nullptr, rows, channels, threads);
    else
      rounded_block<true>(block, grid, x, scale, shift, r, out, codes, rows, channels, threads);
  });
}

void dfq_rounded_weight(const float* x, float* out, bfloat16* codes, float* scale, long rows, long count, float low,
                        float high, float half, float smallest, int threads) {
  rounded_weight(x, out, codes, scale, rows, count, low, high, half, smallest, threads);
}

void dfq_units(const float* x_scale, const float* w_scale, float* unit, float* inner, float* ratio, long channels,
               int) {
  units(x_scale, w_scale, unit, inner, ratio, channels);
}

void dfq_affine(const float* weight, const float* bias, const float* mean, const float* var, float* scale,
                float* shift, float* inverse, long channels, float eps, int) {
  affine(weight, bias, mean, var, scale, shift, inverse, channels, eps);
}

void dfq_convolved(const float* x, const float* weight, const float* factor, float* out, long positions, long height,
                   long width, long channels, long outputs, long by_output, long by_input, long by_tap, long mirrored,
                   int threads) {
  const Window window{outputs, channels, by_output, by_input, by_tap, mirrored != 0};
  const long samples = positions / (height * width);
  if (outputs <= FEW)
    convolved_to_few(x, weight, factor, out, Strips{samples, height, width}, window, threads);
  else
    convolved(x, weight, factor, out, Tiled{samples, height, width}, window, threads, [](long, long) {});
}

void dfq_weight_gradient(const float* x, const float* grad, const float* factor, float* out, long positions,
                         long height, long width, long channels, long outputs, long by_output, long by_input,
                         long by_tap, int threads) {
  const Window window{outputs, channels, by_output, by_input, by_tap, false};
  const long samples = positions / (height * width);
  if (outputs <= FEW)
    weight_gradient_of_few(x, grad, factor, out, Strips{samples, height, width}, window, threads);
  else
    weight_gradient(x, grad, factor, out, Tiled{samples, height, width}, window, threads);
}

void dfq_fused_forward(const float* x, const float* weight, const float* scale, const float* shift, const float* residual,
                       const float* grid_scale, const float* grid_shift, float* y, float* out, long positions,
                       long height, long width, long channels, long outputs, long by_output, long by_input, long by_tap,
                       float low, float high, int threads) {
  const Window window{outputs, channels, by_output, by_input, by_tap, false};
  const Tiled map{positions / (height * width), height, width};
  // Which ceiling does not matter: the grid clips.
  as_block(residual != nullptr, INFINITY, [=](auto block) {
    fused_forward(block, Grid{*grid_scale, *grid_shift, low, high}, x, weight, scale, shift,
                  residual == nullptr ? y : residual, y, out, map, window, threads);
  });
}

void dfq_fused_backward(const float* x, const float* weight, const float* y, const float* residual, const float* grad,
                        const float* scale, const float* shift, const float* centre, const float* inverse, float* to_x,
                        float* to_residual, float* to_weight, float* to_scale, float* to_shift, long positions,
                        long height, long width, long channels, long outputs, long by_output, long by_input,
                        long by_tap, long adds, int threads) {
  const Window window{outputs, channels, by_output, by_input, by_tap, false};
  const Tiled map{positions / (height * width), height, width};
  const Passed from{y, residual, grad, scale, shift, centre, outputs};
  const Gradients to{to_x, to_residual, to_weight, to_scale, to_shift, adds != 0};
  if (residual == nullptr) fused_backward<false>(x, weight, from, inverse, to, map, window, threads);
  else fused_backward<true>(x, weight, from, inverse, to, map, window, threads);
}

void dfq_strided(const float* x, const float* weight, float* out, long samples, long height, long width, long channels,
                 long outputs, long side, long step, long margin, int threads) {
  strided(x, weight, out, Strided{samples, height, width, channels, outputs, side, step, margin}, threads);
}

void dfq_strided_data_gradient(const float* grad, const float* weight, float* out, long samples, long height,
                               long width, long channels, long outputs, long side, long step, long margin,
                               int threads) {
  const Strided conv{samples, height, width, channels, outputs, side, step, margin};
  if (channels <= FEW)
    strided_data_gradient_of_few(grad, weight, out, conv, threads);
  else
    strided_data_gradient(grad, weight, out, conv, threads);
}

void dfq_strided_weight_gradient(const float* x, const float* grad, float* out, long samples, long height, long width,
                                 long channels, long outputs, long side, long step, long margin, int threads) {
  const Strided conv{samples, height, width, channels, outputs, side, step, margin};
  strided_weight_gradient(x, grad, out, conv, threads);
}

void dfq_upsampled_forward(const float* x, const float* weight, float* phases, long samples, long height, long width,
                           long channels, long outputs, int threads) {
  upsampled_forward(x, weight, phases, Upsampled{samples, height, width, channels, outputs}, threads);
}

void dfq_upsampled_backward(const float* x, const float* weight, const float* grad, float* to_x, float* to_weight,
                            long samples, long height, long width, long channels, long outputs, int threads) {
  upsampled_backward(x, weight, grad, to_x, to_weight, Upsampled{samples, height, width, channels, outputs}, threads);
}

}  // extern "C"
