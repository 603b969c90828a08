"""Convolutions of a student in training, computed on the integers of its quantization levels in bfloat16.

A quantized tensor is integers over a scale, x = n / S. bfloat16 holds integers up to 256 exactly, so where the range
contains zero no operand is rounded. (The integers of a range far from zero are larger; bfloat16 rounds them by 0.2 % at
most.) Sums are accumulated in float32; only the result and the gradients are rounded to bfloat16. Evaluation never
computes this way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.quant.fake_quantize_modules import FakeQuantize, FakeQuantizeWeight
from dfqbench.quant.operators import operator


def int_repr(x: Tensor, scale: Tensor) -> Tensor:
    """Return the integers S x in bfloat16, whose rounding also removes the error of float32's division."""
    return (x.detach() * scale).to(torch.bfloat16)


@operator
def integer_conv2d(  # noqa: PLR0917 - operators take their arguments by position
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Convolve quantized tensors: conv(S_x x, S_w w) / (S_x S_w), with the integers in bfloat16.

    Args:
        x: (N, C, H, W), S_x x are integers.
        weight: (O, C / groups, ...), S_w w are integers.
        x_scale: S_x, 0-d.
        w_scale: S_w, 0-d or (O, 1, 1, 1).
        stride: as of `torch.nn.functional.conv2d`.
        padding: as there.
        dilation: as there.
        groups: as there.

    Returns:
        (N, O, ...), float32.
    """
    out: Tensor = _IntegerConv.apply(x, weight, x_scale, w_scale, (stride, padding, dilation, groups))
    return out


class _IntegerConv(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - apply takes no keywords
        ctx: Any, x: Tensor, weight: Tensor, x_scale: Tensor, w_scale: Tensor, geometry: Any
    ) -> Tensor:
        n_x, n_w = int_repr(x, x_scale), int_repr(weight, w_scale)
        w_scale = w_scale.view(1, -1, 1, 1)
        ctx.save_for_backward(n_x, n_w, x_scale, w_scale)
        ctx.geometry = geometry
        stride, padding, dilation, groups = geometry
        return torch.conv2d(n_x, n_w, None, stride, padding, dilation, groups) * (x_scale * w_scale).reciprocal()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        n_x, n_w, x_scale, w_scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        # d out / d x = conv'(n_w) S_x / (S_x S_w), so the gradient is divided by S_w before the convolution; that of
        # the weight then lacks S_w / S_x.
        grad = (grads[0] * w_scale.reciprocal()).to(torch.bfloat16)
        if groups > 1 and max(stride) > 1 and grad.device.type == "cpu":
            # torch's bfloat16 gradient of a strided depthwise convolution takes 20 times as long as the float32 one.
            grad, n_x, n_w = grad.float(), n_x.float(), n_w.float()
        to_x, to_w, _ = torch.ops.aten.convolution_backward(
            grad, n_x, n_w, None, stride, padding, dilation, False, [0, 0], groups, needs
        )
        to_x = to_x.to(torch.float32) if needs[0] else None
        to_w = to_w * (w_scale / x_scale).view(-1, 1, 1, 1) if needs[1] else None
        return to_x, to_w, None, None, None


class QuantizedConv2d(nn.Conv2d):
    """A convolution whose weight is quantized; where its input is, too, it can compute on the integers of both.

    Attributes:
        integer: whether passes that will be differentiated compute on integers.
    """

    integer = False
    _input: tuple[FakeQuantize, ...] = ()

    @classmethod
    def from_float(cls, conv: nn.Conv2d) -> QuantizedConv2d:
        """Return a layer that shares the parameters of `conv`."""
        layer = cls.__new__(cls)
        layer.__dict__ = dict(conv.__dict__)
        return layer

    def feed_from(self, quantizer: FakeQuantize) -> None:
        """Set the `FakeQuantize` whose output is the input of every call of this layer."""
        # In a tuple, so that the layer does not own it: its buffers are saved once.
        self._input = (quantizer,)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (N, C, H, W)."""
        if not self.integer or not self._input or not torch.is_grad_enabled() or isinstance(self.padding, str):
            return super().forward(x)
        parametrization: Any = self.parametrizations
        quantizer: FakeQuantizeWeight = parametrization.weight[0]
        if quantizer.residual_scales is not None:
            return super().forward(x)  # a sum of several terms has no integers
        weight, w_scale = quantizer.rounded(parametrization.weight.original)
        x_scale = self._input[0].inverse_step()
        geometry = [*self.stride], [*self.padding], [*self.dilation], self.groups
        out = integer_conv2d(x, weight, x_scale, w_scale, *geometry)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)
