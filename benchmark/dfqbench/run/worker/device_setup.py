"""Where a process computes, and what float32 means there."""

from __future__ import annotations

import torch


def compute_on(device: torch.device) -> None:
    """Makes a GPU this thread's own, and lets float32 be float32 there, too.

    Kernels that are not torch's are launched on the thread's current device. By default torch gives a float32
    convolution to cuDNN's TensorFloat-32, which keeps ten bits of each number: the sums of a student's grid points
    would no longer be those of its integers.
    """
    if device.type == "cuda" and device.index is not None and torch.cuda.is_available():
        torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
