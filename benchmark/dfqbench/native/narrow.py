"""Autocast in training, with the kernels for convolutions between few channels where they are in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dfqbench.native import binding, convolve
from dfqbench.native.prepared import Prepared


@contextmanager
def autocast(device: torch.device, *, enabled: bool) -> Iterator[None]:
    """Within it convolutions and products are computed in bfloat16.

    Args:
        device: where.
        enabled: whether anything is different at all.
    """
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        if enabled and binding.saves_launches(device.type):
            with _NarrowConvolutions():
                yield
        else:
            yield


class _NarrowConvolutions(TorchFunctionMode):
    """Within it the kernels compute 2-d convolutions that fit them, under autocast; everything else is as ever."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, *numbers = args
            if _is_narrow(x.device.type) and convolve.fits(x, weight, numbers):
                found: Tensor = _NarrowConv.apply(x.to(torch.bfloat16), _narrowed(weight))
                return found if bias is None else found + bias.to(torch.bfloat16).view(-1, 1, 1)
        return func(*args, **(kwargs or {}))


def _is_narrow(device: str) -> bool:
    """Whether autocast makes bfloat16 of a convolution's operands."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16


def _narrowed(weight: Tensor) -> Tensor:
    """A weight that does not change, in bfloat16; one that does as it is: the kernels round it."""
    if weight.requires_grad or weight.dtype == torch.bfloat16:
        return weight
    return _narrow_weights.get((weight,), lambda: weight.to(torch.bfloat16))


_narrow_weights: Prepared[Tensor] = Prepared()


class _NarrowConv(torch.autograd.Function):
    """conv2d(x, weight, padding=1) of x in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve.convolved(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        if torch.is_grad_enabled():
            # Whoever asks for a second derivative gets torch's own.
            return _gradients(grads[0], x, weight, of_x=of_x, of_weight=of_weight)
        to_x = convolve.data_gradient(grads[0], weight) if of_x else None
        if of_weight and convolve.fits_weight_gradient(weight):
            return to_x, convolve.weight_gradient(x, grads[0], weight).to(weight.dtype)
        return to_x, _gradients(grads[0], x, weight, of_x=False, of_weight=of_weight)[1]


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, *, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Those in input and weight, as torch computes them."""
    if not of_x and not of_weight:
        return None, None
    numbers = [[1, 1]] * 3
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), None, *numbers, False, [0, 0], 1, [of_x, of_weight, False]
    )
    return to_x, None if to_weight is None else to_weight.to(weight.dtype)
