"""Triton kernels for CUDA; importing this package registers them for the operators of `quant` and `synth`.

Maps are channels-last, (samples, positions, channels) in memory, and are computed in float32. Kernels that sum over
positions run a program for each sample, block of channels and slice of positions; the others take elements in a row.
Triton specialises on counts of elements and channels: it reads several elements at once where they are multiples of 16.
"""

from dfqbench.accel.triton import batch_norm_act, conv, fake_quantize, statistics, sub_pixel  # noqa: F401
