"""Autocast in training, and the compiled convolutions where they are in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from dfqbench.native import binding, convolve, strided
from dfqbench.native.operands import are_plain

_ALLOWED = ContextVar("_ALLOWED", default=True)


class Autocast(AbstractContextManager[None]):
    """Within it convolutions and products are computed in bfloat16, or convolutions as within `convolutions`.

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
            if self._enabled == binding.saves_launches(self._device.type):
                # The kernels for GPUs compute in bfloat16, the library for CPUs in float32.
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
        if func is torch.conv2d and not kwargs and len(args) == 7 and _ALLOWED.get():
            x, weight, bias, *numbers = args
            if are_plain(x, weight, *(() if bias is None else (bias,))) and _is_bias(bias, weight):
                found = _found(x, weight, numbers)
                if found is not None:
                    return found if bias is None else found + bias.to(found.dtype).view(-1, 1, 1)
        return func(*args, **(kwargs or {}))


def _found(x: Tensor, weight: Tensor, numbers: Sequence[object]) -> Tensor | None:
    """The convolution by the passes in use; None where it does not fit them, or autocast asks for another type."""
    device, found = x.device.type, None
    dtype = _dtype(device) if binding.takes(device) else None
    if dtype is not None and convolve.fits(x, weight, numbers):
        found = _Conv.apply(x.to(dtype), weight)
    elif dtype is not None and (steps := strided.fits(x, weight, numbers)) is not None:
        found = _Strided.apply(x, weight, steps)
    return found


@contextmanager
def torchs_convolutions() -> Iterator[None]:
    """Within it convolutions are torch's, whatever was entered before."""
    before = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(before)


def are_compiled(device: torch.device) -> bool:
    """Whether the library for CPUs computes float32 convolutions here and now, and nobody is asked before it."""
    return (
        isinstance(_get_current_function_mode(), _Convolutions)  # type: ignore[no-untyped-call]
        and _ALLOWED.get()
        and binding.takes(device.type)
        and _dtype(device.type) == torch.float32
    )


def _is_bias(bias: Tensor | None, weight: Tensor) -> bool:
    """Whether torch would take it; an error is torch's to tell."""
    return bias is None or (bias.shape == weight.shape[:1] and bias.dtype == weight.dtype)


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
            to_x, to_weight = convolve.torchs_gradients(grads[0], x, weight, ctx.needs_input_grad)
        else:
            to_x, to_weight = convolve.gradients(grads[0], x, weight, ctx.needs_input_grad)
        return to_x, None if to_weight is None else to_weight.to(weight.dtype)


class _Strided(torch.autograd.Function):
    """conv2d(x, weight, None, step, margin)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, steps: strided.Steps) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        return strided.convolved(x, weight, steps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        steps, wanted = ctx.steps, ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            found = convolve.torchs_gradients(grads[0], x, weight, wanted, step=steps.step, margin=steps.margin)
        else:
            found = strided.gradients(grads[0], x, weight, steps, wanted)
        return *found, None
