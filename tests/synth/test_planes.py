from __future__ import annotations

import torch
from torch import Tensor, nn

from dfqbench.synth.planes import standardised


def test_values_and_gradients_are_batchnorms() -> None:
    layer = nn.BatchNorm2d(3, affine=False, track_running_stats=False).double()
    x = 2 * torch.randn(4, 3, 5, 6, dtype=torch.float64) + torch.tensor([5.0, -3.0, 0.1]).view(1, 3, 1, 1)
    grad = torch.randn_like(x)

    def found(of: nn.Module | None) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        out = standardised(leaf, layer.eps) if of is None else of(leaf)
        out.backward(grad)
        assert leaf.grad is not None
        return [out.detach(), leaf.grad]

    for one, other in zip(found(None), found(layer), strict=True):
        torch.testing.assert_close(one, other)
