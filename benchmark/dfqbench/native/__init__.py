"""Compiled passes over feature maps: for CPUs built where a C++ compiler is at hand, for GPUs written in Triton.

Everything here has a twin in torch operations, which is the reference; each place that calls a compiled pass falls back
on its twin. Results are equal up to the order of sums and the rounding of convolutions, those of rounding to a grid bit
for bit; but a student's convolutions on GPUs keep the sums of its integers, which their twin rounds to bfloat16.
"""

from dfqbench.native.build import Built, built, built_for_gpus

__all__ = ["Built", "built", "built_for_gpus"]
