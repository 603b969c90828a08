"""Triton's interpreter, which runs kernels on tensors of the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def interpreter() -> Iterator[None]:
    """Run Triton kernels in its interpreter, with the two differences from a GPU mended that results depend on."""
    module = pytest.importorskip("triton.runtime.interpreter", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles its kernels for a GPU in this process")
    import triton.language as tl

    convert = module._convert_float

    def convert_float(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, rounding)
        # A GPU rounds to the nearest; the interpreter rounds towards zero.
        rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    def create_dot(_builder: Any, a: Any, b: Any, total: Any, *_: Any) -> Any:
        # The interpreter multiplies bfloat16, which it keeps as the upper half of a float32, as integers.
        wide = [_to_float32(first.data) if first.dtype.scalar == tl.bfloat16 else first.data for first in (a, b)]
        return module.TensorHandle(np.matmul(*wide, dtype=np.float32) + total.data, total.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(module, "_convert_float", convert_float)
        patch.setattr(module.InterpreterBuilder, "create_dot", create_dot)
        yield


def _to_float32(halves: Any) -> Any:
    return (np.ascontiguousarray(halves).astype(np.uint32) << 16).view(np.float32)
