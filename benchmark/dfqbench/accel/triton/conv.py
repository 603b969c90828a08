"""3x3 convolutions between few channels on GPUs, by products in bfloat16 that are summed in float32."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from dfqbench.accel.triton import conv_kernels
from dfqbench.accel.triton.launch import MOST_ELEMENTS, TYPES, like, register, vector
from dfqbench.quant.integer_conv import int_repr, integer_conv2d

MOST_CHANNELS = 64
"""With more channels libraries' convolutions are as fast."""
FEW_INPUTS, FEWEST_OUTPUTS = 32, 16
"""With more inputs and fewer outputs the library computes the gradient in the weight as fast."""
FEWEST_OF_PRODUCT = 16
"""Fewest rows and columns of a matrix product's operands."""
MUCH_SHARED_MEMORY = 1 << 17
"""Bytes of shared memory of large GPUs."""
CONV_POSITIONS, CONV_SLICES = 128, 128
"""Positions of a program; slices of positions for the gradient in the weight."""


def _supports(x: Tensor, weight: Tensor, *geometry: Any) -> bool:
    """Check for a 3x3 convolution with stride 1 and padding 1 between few channels of a channels-last map."""
    *pairs, groups = geometry
    return (
        x.dtype in TYPES
        and weight.dtype in TYPES
        and x.ndim == weight.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and max(weight.shape[:2]) <= MOST_CHANNELS
        and all(pair == 1 or (isinstance(pair, Sequence) and tuple(pair) == (1, 1)) for pair in pairs)
        and groups == 1
        and any(weight.is_contiguous(memory_format=order) for order in (torch.channels_last, torch.contiguous_format))
        and 0 < x.numel() // x.shape[1] * MOST_CHANNELS < MOST_ELEMENTS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class _IntegerConv(torch.autograd.Function):
    """A convolution of integers that rounds nothing but the gradients to bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, x_scale: Tensor, w_scale: Tensor, *_geometry: Any) -> Tensor:
        n_x, n_w = int_repr(x, x_scale), int_repr(weight, w_scale)
        w_scale = w_scale.flatten()
        ctx.save_for_backward(n_x, n_w, x_scale, w_scale)
        return convolved(n_x, n_w, factor=(x_scale * w_scale).reciprocal(), dtype=torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        n_x, n_w, x_scale, w_scale = ctx.saved_tensors
        grad = like(grads[0] * w_scale.reciprocal().view(1, -1, 1, 1), n_x)
        to_x = convolved(grad, n_w, dtype=torch.float32, back=True) if ctx.needs_input_grad[0] else None
        to_w = None
        if ctx.needs_input_grad[1]:
            to_w = weight_gradient(n_x, grad, n_w) * (w_scale / x_scale).view(-1, 1, 1, 1)
        return to_x, to_w, *(None,) * 6


integer_conv2d_form = register(
    integer_conv2d,
    lambda x, weight, x_scale, w_scale, *geometry: _supports(x, weight, *geometry),  # noqa: ARG005
    _IntegerConv.apply,
)


class NarrowConvolutions(TorchFunctionMode):
    """Computes `torch.conv2d` by the kernels where they support it and autocast would cast the operands to bfloat16.

    Args:
        device: type of the devices.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7 and self._supports(*args):
            x, weight, bias, *_ = args
            out = _Conv.apply(x.to(torch.bfloat16), weight)
            return out if bias is None else out + bias.to(out.dtype).view(-1, 1, 1)
        return func(*args, **(kwargs or {}))

    def _supports(self, x: Any, weight: Any, bias: Any, *geometry: Any) -> bool:  # noqa: ARG002 - as conv2d
        return (
            # No proxy of a tracer and no subclass.
            {type(x), type(weight)} <= {Tensor, Parameter}
            and x.device.type == self._device
            and torch.is_autocast_enabled(self._device)
            and torch.get_autocast_dtype(self._device) == torch.bfloat16
            and not torch._C._are_functorch_transforms_active()
            and _supports(x, weight, *geometry)
        )


class _Conv(torch.autograd.Function):
    """conv2d(x, weight, padding=1), in the type of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolved(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            # For second derivatives.
            return _library_gradients(grads[0], x, weight, [*ctx.needs_input_grad, False])
        grad = like(grads[0], x)
        to_x = convolved(grad, weight, back=True) if ctx.needs_input_grad[0] else None
        to_weight = weight_gradient(x, grad, weight).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return to_x, to_weight


def convolved(
    x: Tensor, weight: Tensor, *, factor: Tensor | None = None, dtype: torch.dtype | None = None, back: bool = False
) -> Tensor:
    """Return conv2d(x, weight, padding=1), summed in float32 and rounded once; channels-last.

    Args:
        x: (N, C, H, W), channels-last; with `back` the gradient at the output, (N, O, H, W).
        weight: (O, C, 3, 3); taken in the type of `x`.
        factor: (O,) or (1,) float32, multiplied with the sums.
        dtype: of the result; None: that of `x`.
        back: compute the gradient in the convolution's input instead.
    """
    samples, channels, height, width = x.shape
    outer, by_outer, by_inner = weight.shape[0], weight.stride(0), weight.stride(1)
    if back:
        outer, by_outer, by_inner = weight.shape[1], by_inner, by_outer
    shape = samples, outer, height, width
    out = torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=torch.channels_last)
    by_rows = channels < FEWEST_OF_PRODUCT
    positions = samples * height * width
    conv_kernels.convolved[(triton.cdiv(positions, CONV_POSITIONS),)](
        x, weight, x if factor is None else vector(factor.expand(outer)), out, positions, height, width, channels,
        outer, by_outer, by_inner, weight.stride(3), BACK=back, SCALED=factor is not None, ROWS=by_rows,
        P=CONV_POSITIONS, C=_of_product(3 * channels if by_rows else channels), OUT=_of_product(outer),
        num_stages=_stages(channels, outer, out.device),
    )  # fmt: skip
    return out


def _stages(channels: int, outer: int, device: torch.device) -> int:
    """Return the number of concurrent loads, by trial on an H200, if a program has the memory for them."""
    if channels <= 32:
        return 1
    return 4 if outer > 16 and _shared_memory(device) >= MUCH_SHARED_MEMORY else 2


@cache
def _shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory of a program."""
    if device.type != "cuda":
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0))


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient in the weight (O, C, 3, 3) of `convolved`, float32; the library's where that is as fast.

    Args:
        x: as given to `convolved`.
        grad: (N, O, H, W), in type and order of `x`.
        weight: as given to `convolved`.
    """
    if weight.shape[1] > FEW_INPUTS and weight.shape[0] < FEWEST_OUTPUTS:
        to_weight: Tensor = _library_gradients(grad, x, weight, [False, True, False])[1]
        return to_weight.to(torch.float32)
    out = torch.empty_like(weight, dtype=torch.float32)
    samples, channels, height, width = x.shape
    outer, positions, tile = weight.shape[0], samples * height * width, 64
    length = triton.cdiv(max(1, positions // CONV_SLICES), tile) * tile
    slices = triton.cdiv(positions, length)
    partial = out.new_empty(slices, 9 * channels * outer)
    conv_kernels.weight_sums[slices, 3](
        x, grad, partial, positions, height, width, length, channels, outer, P=tile,
        J=_of_product(3 * channels), OUT=_of_product(outer), num_stages=1 if channels > 32 else 3,
    )  # fmt: skip
    at_once = min(CONV_SLICES, triton.next_power_of_2(slices))
    numbers_at_once = 2048 // at_once
    conv_kernels.weight_total[(triton.cdiv(9 * channels * outer, numbers_at_once),)](
        partial, out, slices, channels, outer, out.stride(0), out.stride(1), out.stride(3), S=at_once, B=numbers_at_once
    )
    return out


def _library_gradients(grad: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Any, Any]:
    ones = [1, 1]
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), None, ones, ones, ones, False, [0, 0], 1, needed
    )
    return to_x, to_weight


def _of_product(number: int) -> int:
    return int(max(FEWEST_OF_PRODUCT, triton.next_power_of_2(number)))
