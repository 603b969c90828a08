"""Attention maps of a network, and losses (0-d) on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dfqbench.api import Skip
from dfqbench.api.precision import to_float32
from dfqbench.synth.statistics import PassRecorder, batchnorm_layers

NORMALISER_EPS = 1e-8
"""Added to normalisers (methods.md 0.5)."""


def attention_map(features: Tensor) -> Tensor:
    """A = mean_c F_c^2, (N, H, W), at least float32, of feature maps F (N, C, H, W)."""
    return to_float32(features).square().mean(1)


def attention_centre(attention: Tensor) -> Tensor:
    """Centre of mass m = sum_p A_p / (sum A + 1e-8) * p, (N, 2) as (x, y), of attention A (N, H, W).

    Positions p are evenly spaced from -1 to 1 along each side; a side of one position has coordinate 0.
    """
    height, width = attention.shape[1:]
    share = attention / (attention.sum((1, 2), keepdim=True) + NORMALISER_EPS)
    return torch.stack((share.sum(1) @ _axis(width, share), share.sum(2) @ _axis(height, share)), 1)


def _axis(length: int, like: Tensor) -> Tensor:
    if length == 1:
        return torch.zeros(1, device=like.device, dtype=like.dtype)
    return torch.linspace(-1, 1, length, device=like.device, dtype=like.dtype)


def centre_matching_loss(attention: Tensor, centre: Tensor, tolerance: float) -> Tensor:
    """L_ac = mean_i max(0, ||m(A_i) - c_i|| - r)^2 of attention A (N, H, W) and centres c (N, 2).

    Centres and the tolerance r are in half image sides (ACQ; methods.md 4, inferred).
    """
    # torch's norm has gradient 0 at 0.
    distance: Tensor = torch.linalg.vector_norm(attention_centre(attention) - centre, dim=1)
    return (distance - tolerance).clamp_min(0).square().mean()


def attention_consistency_loss(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """L_cons = mean_l mean_i || A_l / ||A_l|| - A'_l / ||A'_l|| ||^2, between 0 and 2 (ACQ; methods.md 4, inferred).

    The attention maps A_l (N, H_l, W_l) of stage l are with BatchNorm in eval mode, A'_l in training mode.
    """
    gaps = [(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in zip(first, second, strict=True)]
    return torch.stack(gaps).mean()


def _unit(attention: Tensor) -> Tensor:
    flat = attention.flatten(1)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / (length + NORMALISER_EPS)


def pair_similarity_loss(first: Tensor, second: Tensor, margin: float) -> Tensor:
    """L_pair = mean_i max(0, cos(A_i, A'_i) - margin) of attention (P, H, W) of P pairs; 0 if P = 0.

    (ACQ; methods.md 4, inferred.)
    """
    if len(first) == 0:
        return first.sum()
    cosine = (_unit(first) * _unit(second)).sum(1)
    return (cosine - margin).clamp_min(0).mean()


@dataclass(frozen=True)
class PassMaps:
    """Feature maps of a forward pass.

    Attributes:
        stages: the last map (N, C, H, W) of each resolution, in order of execution.
        penultimate: input (N, features) of the last linear layer, or without one the last stage's mean over positions.
    """

    stages: list[Tensor]
    penultimate: Tensor

    @cached_property
    def attention(self) -> list[Tensor]:
        """Attention maps (N, H, W) of the stages."""
        return [attention_map(features) for features in self.stages]


class FeatureMaps(PassRecorder):
    """Records the last feature map at each spatial resolution of a network's pass while it is entered.

    A *stage* is the last map of its resolution (methods.md 0.5): in a residual network the output of its last block.
    Maps of a single position (squeeze-and-excitation, pooled features) are left out.
    """

    def _restart(self) -> None:
        self._maps: dict[tuple[int, int], Tensor] = {}
        self._penultimate: Tensor | None = None

    def _hooks(self) -> list[RemovableHandle]:
        modules = [module for module in self.network.modules() if module is not self.network]
        linear = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        return [module.register_forward_hook(self._keep_map) for module in modules] + [
            module.register_forward_pre_hook(self._keep_penultimate) for module in linear
        ]

    def _keep_map(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            size = (output.shape[2], output.shape[3])
            self._maps.pop(size, None)  # so that the order of the stages is that of their last maps
            self._maps[size] = output

    def _keep_penultimate(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._penultimate = args[0]

    @property
    def last(self) -> PassMaps:
        """Maps of the last pass; `Skip` if no feature map has more than one position."""
        if not self._maps:
            raise Skip("the network has no feature map of more than one position, so no attention map")
        stages = list(self._maps.values())
        if self._penultimate is None or self._penultimate.ndim != 2:
            return PassMaps(stages, to_float32(stages[-1]).mean((2, 3)))
        return PassMaps(stages, to_float32(self._penultimate))


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Use the batch's statistics in the BatchNorm layers of a network in eval mode, without changing the running ones.

    Everything else (dropout, stochastic depth) stays in eval mode.
    """
    layers = [module for _, module in batchnorm_layers(network)]
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    for layer in layers:
        layer.training, layer.track_running_stats = True, False
    try:
        yield
    finally:
        for layer, (training, tracking) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, tracking
