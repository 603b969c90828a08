"""BatchNorm with frozen statistics, and the residual sum and activation that follow it, as one operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.quant.operators import operator


@operator
def batch_norm_act(  # noqa: PLR0917 - operators take their arguments by position
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    upper: float,
) -> Tensor:
    """Return clip(BatchNorm(x) + residual, 0, upper), with BatchNorm's running statistics.

    Args:
        x: (N, C, H, W).
        residual: added before the activation; of the same shape, or broadcastable to it.
        weight: (C,), or None: 1.
        bias: (C,), or None: 0.
        mean: running mean (C,).
        var: running variance (C,).
        eps: added to the variance.
        upper: where the activation clips from above: 6 for ReLU6, infinity for ReLU.
    """
    # BatchNorm's output is new memory that no gradient needs, so the rest is computed in place.
    out = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    if residual is not None:
        out = out.add_(residual)
    return torch.relu_(out) if upper == torch.inf else F.hardtanh(out, 0.0, upper, inplace=True)


class BatchNormAct2d(nn.BatchNorm2d):
    """A BatchNorm layer in eval mode, with the residual sum and the activation that follow it.

    Attributes:
        upper: where the activation clips from above: 6 for ReLU6, infinity for ReLU.
    """

    upper = torch.inf

    @classmethod
    def from_batch_norm(cls, layer: nn.BatchNorm2d, upper: float) -> BatchNormAct2d:
        """Return a layer that shares parameters and buffers with `layer`."""
        fused = cls.__new__(cls)
        fused.__dict__ = dict(layer.__dict__)
        fused.upper = upper
        return fused

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the activation of BatchNorm(x) + residual, (N, C, H, W)."""
        if self.running_mean is None or self.running_var is None:
            raise ValueError("the layer keeps no running statistics")
        statistics = self.running_mean, self.running_var
        return batch_norm_act(x, residual, self.weight, self.bias, *statistics, self.eps, self.upper)
