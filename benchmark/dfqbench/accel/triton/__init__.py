"""Triton kernels for CUDA; importing this package registers them for the operators of `quant` and `synth`.

Maps are channels-last, (samples, positions, channels) in memory, and are computed in float32. Kernels that sum over
positions run a program for each sample, block of channels and slice of positions; the others take elements in a row.
Counts of elements and channels are left for Triton to specialise on: it reads several elements at once only where it
knows the counts to be multiples of 16.
"""

from dfqbench.accel.triton import batch_norm_act, conv, fake_quantize, statistics, sub_pixel

__all__ = ["batch_norm_act", "conv", "fake_quantize", "statistics", "sub_pixel"]
