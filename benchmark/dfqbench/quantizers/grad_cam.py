"""Grad-CAM: the student explains its largest logit by the same positions as the teacher (SynQ)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api.errors import Unavailable
from dfqbench.api.precision import to_float32
from dfqbench.synth.attention import NORMALISER_EPS

SMALLEST_WEIGHT = 1e-10
"""Lower bound of a channel's weight (SynQ, released code); Grad-CAM itself keeps negative weights."""


def grad_cam(logits: Tensor, features: Tensor, size: tuple[int, int]) -> Tensor:
    """ReLU(sum_c a_c F_c), (N, H', W'), resized bilinearly, and from 0 to 1 in each image.

    a_c is the mean over positions of the derivative of the largest logit in F_c, at least 1e-10; it is a constant, so
    that a gradient reaches the network through F alone (SynQ, released code).

    Args:
        logits: (N, classes).
        features: F (N, C, H, W), from which the logits were computed.
        size: H' and W'.
    """
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), features, retain_graph=True)
    weights = to_float32(gradient).mean((2, 3), keepdim=True).clamp_min(SMALLEST_WEIGHT)
    cam = (weights * to_float32(features)).sum(1, keepdim=True).relu()
    cam = F.interpolate(cam, size, mode="bilinear", align_corners=False).squeeze(1)
    low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
    return (cam - low) / (high - low + NORMALISER_EPS)


def explained_layer(network: nn.Module, sizes: dict[str, int]) -> str:
    """Return the name of the last convolution, in order of definition, whose output has more than one position.

    Args:
        network: the network.
        sizes: positions of the convolutions' outputs by name.

    Raises:
        Unavailable: there is none.
    """
    names: list[str] = [name for name, _ in network.named_modules() if sizes.get(name, 0) > 1]
    if not names:
        raise Unavailable(
            "Grad-CAM needs a convolution whose output has more than one position",
            "choose another recipe, or --set distill.cam_weight=0",
        )
    return names[-1]
