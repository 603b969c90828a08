"""Autocast in training, and the compiled convolutions where they are in use."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dfqbench.native import binding, convolve


class Autocast(AbstractContextManager[None]):
    """Within it convolutions and products are computed in bfloat16, or convolutions as `Convolutions` does it.

    It can be entered again and again.

    Args:
        device: where.
        enabled: whether in bfloat16.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self._device = device
        self._enabled = enabled
        self._entered: list[ExitStack] = []

    def __enter__(self) -> None:
        """Begins it."""
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self._device.type, torch.bfloat16, enabled=self._enabled))
            stack.enter_context(convolutions(self._device))
            self._entered.append(stack.pop_all())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        self._entered.pop().__exit__(kind, error, trace)


def convolutions(device: torch.device) -> AbstractContextManager[Any]:
    """Within it convolutions that fit are computed by the compiled passes, where some are in use."""
    return _Convolutions() if binding.takes(device.type) else nullcontext()


class _Convolutions(TorchFunctionMode):
    """Within it the compiled passes compute 2-d convolutions that fit them; everything else is as ever.

    On a GPU under autocast, which makes bfloat16 of operands, on a CPU without.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7 and _are_plain(args[:2]):
            x, weight, bias, *numbers = args
            dtype = _dtype(x.device.type)
            if dtype is not None and convolve.fits(x, weight, numbers):
                found: Tensor = _Conv.apply(x.to(dtype), weight)
                return found if bias is None else found + bias.to(dtype).view(-1, 1, 1)
        return func(*args, **(kwargs or {}))


def _are_plain(tensors: Any) -> bool:
    """Whether these are tensors with memory, and not what a transformation or a tracer puts in their place."""
    return all(
        type(one) in {Tensor, nn.Parameter} and not torch._C._functorch.is_functorch_wrapped_tensor(one)
        for one in tensors
    )


def _dtype(device: str) -> torch.dtype | None:
    """The type in which the passes in use compute convolutions; None: not what autocast asks for."""
    if binding.saves_launches(device):
        narrow = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        return torch.bfloat16 if narrow else None
    return None if torch.is_autocast_enabled(device) else torch.float32


class _Conv(torch.autograd.Function):
    """conv2d(x, weight, padding=1), in the type of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve.convolved(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Whoever asks for a second derivative gets torch's own.
            to_x, to_weight, _ = torch.ops.aten.convolution_backward(
                grads[0], x, weight.to(x.dtype), None, *[[1, 1]] * 3, False, [0, 0], 1, [*ctx.needs_input_grad, False]
            )
        else:
            to_x, to_weight = convolve.gradients(grads[0], x, weight, ctx.needs_input_grad)
        return to_x, None if to_weight is None else to_weight.to(weight.dtype)
