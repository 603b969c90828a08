"""Triton's compiler accepts every kernel, as the forms launch it, for an H100 or H200; no GPU is needed for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.mark.slow
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton.backends.nvidia", reason="Triton's compiler for CUDA is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len({path.stem for path in tmp_path.rglob("*.cubin")}) == 14


def compile_kernels() -> None:
    """Call forms on tensors of the CPU, with launches that compile and do not run."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Driver:
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda _device: 0)

    launch = JITFunction.run
    driver.set_active(Driver())
    JITFunction.run = lambda self, *args, **options: launch(self, *args, **options | {"warmup": True})

    from dfqbench.accel.triton import batch_norm_act, conv, fake_quantize, statistics, sub_pixel

    def leaf(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.zeros(size, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()

    def train(form: Any, *args: Any) -> None:
        out = form.__wrapped__(*args)
        (out if isinstance(out, Tensor) else out[0]).float().sum().backward()

    x, vector, scale = leaf(2, 24, 32, 32), torch.ones(24), torch.tensor(2.0)
    train(batch_norm_act.batch_norm_act_form, x, x, vector, vector, vector, vector, 1e-5, 6.0)
    train(statistics.batch_norm_stats_form, x)
    train(sub_pixel.sub_pixel_norm_form, x, torch.ones(1, 6), torch.ones(1, 6), 0.8, 0.2)
    train(fake_quantize.fake_quantize_form, x.float(), scale, scale, 4)
    train(fake_quantize.fake_quantize_channels_form, leaf(4, 3, 3, 3, dtype=torch.float32), 4)
    for channels in (3, 64):  # fewer channels than a product takes, and many
        x, weight = leaf(2, channels, 8, 8, dtype=torch.float32), leaf(16, channels, 3, 3, dtype=torch.float32)
        train(conv.integer_conv2d_form, x, weight, scale, scale, [1, 1], [1, 1], [1, 1], 1)


if __name__ == "__main__":
    compile_kernels()
