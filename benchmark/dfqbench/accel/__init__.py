"""Fast forms for GPUs, added from outside: Triton kernels for the operators of `quant` and `synth`, and CUDA graphs.

Only the processes of a run import this package. `quant`, `synth`, `quantizers` and the methods are complete without it.
"""
