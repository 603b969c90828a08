"""The compiled passes for GPUs, in Triton; each computes what its namesake in `kernels/` does.

Counts of elements and channels are left for Triton to specialise on: only where it knows them to be multiples of 16
does it read several elements at once.

Maps are channels-last, (samples, positions, channels) in memory, and are computed in float32. Those that sum over
positions run a program for each sample, block of channels and slice of positions; the others take elements in a row.
"""

from dfqbench.native.gpu.launches import call

__all__ = ["call"]
