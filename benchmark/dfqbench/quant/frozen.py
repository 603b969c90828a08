"""BatchNorm of a student: frozen statistics, trained scale and shift, one pass over the map for all its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.native import passes
from dfqbench.quant.trace import is_hooked


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm layer that stays in eval mode; same parameters, same values, gradients equal up to rounding.

    First derivatives only, where the compiled passes are in use.
    """

    @classmethod
    def of(cls, layer: nn.BatchNorm2d) -> FrozenBatchNorm2d:
        """The same layer: it shares parameters and buffers with `layer`."""
        found = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        found.weight, found.bias = layer.weight, layer.bias
        found.running_mean, found.running_var = layer.running_mean, layer.running_var
        found.num_batches_tracked = layer.num_batches_tracked
        return found.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (N, C, H, W) by the running statistics."""
        if not torch.is_grad_enabled() or not self.can_join(x):
            return super().forward(x)
        out: Tensor = _FrozenBatchNorm.apply(x, self.weight, self.bias, self.frozen())
        return out

    def can_join(self, x: Tensor) -> bool:
        """Whether the compiled passes compute what the layer does with x (N, C, H, W)."""
        return self.is_frozen() and passes.fits(x)

    def is_frozen(self) -> bool:
        """Whether the layer uses running statistics, and has a scale and a shift."""
        return not self.training and self.affine and self.running_mean is not None

    def frozen(self) -> tuple[Tensor, Tensor, float]:
        """Running mean and variance (C,), and what is added to the variance.

        Raises:
            ValueError: the layer keeps no running statistics.
        """
        if self.running_mean is None or self.running_var is None:
            raise ValueError("the layer keeps no running statistics")
        return self.running_mean, self.running_var, self.eps


def affine_of(weight: Tensor, bias: Tensor, frozen: tuple[Tensor, Tensor, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift (C,) that a BatchNorm layer in eval mode amounts to, and one over its running deviation.

    Args:
        weight: (C,).
        bias: (C,).
        frozen: as of `FrozenBatchNorm2d.frozen`.
    """
    mean, var, eps = frozen
    if passes.fits_affine(weight, bias, mean, var):
        return passes.affine((weight.detach(), bias.detach(), mean, var), eps)
    inverse = torch.rsqrt(var + eps)
    scale = inverse * weight
    return scale, torch.addcmul(bias, mean, scale, value=-1), inverse


class _FrozenBatchNorm(torch.autograd.Function):
    """torch's forward pass; all three gradients in one pass over the map."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, frozen: tuple[Tensor, Tensor, float]) -> Tensor:
        mean, var, eps = frozen
        ctx.save_for_backward(x, mean, *affine_of(weight, bias, frozen)[::2])
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, inverse = ctx.saved_tensors
        # Nothing is clipped, so that no shift is looked at.
        to_x, _, to_scale, to_shift = passes.affine_backward(x, grads[0], (scale, mean), mean, inverse=inverse)
        return to_x, to_scale, to_shift, None


def freeze_batchnorm(network: nn.Module) -> None:
    """Replaces the plain BatchNorm layers that keep running statistics by `FrozenBatchNorm2d`, in place."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.BatchNorm2d and module.track_running_stats and name:
            parent, _, child = name.rpartition(".")
            if not is_hooked(module) and "forward" not in vars(module):
                setattr(network.get_submodule(parent), child, FrozenBatchNorm2d.of(module))
