"""What float32 means in a process that measures."""

from __future__ import annotations

import torch


def plain_float32() -> None:
    """Lets float32 be float32 on GPUs, too.

    By default torch gives a float32 convolution to cuDNN's TensorFloat-32, which keeps ten bits of each number: the
    sums of a student's grid points would no longer be those of its integers.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
