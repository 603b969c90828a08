"""Attention maps of a network: where it looks, and how far that depends on BatchNorm's mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import Skip
from dfqbench.api.precision import to_float32
from dfqbench.synth.statistics import batchnorm_layers

NORMALISER_EPS = 1e-8
"""Added to normalisers (methods.md 0.5)."""


def attention_map(features: Tensor) -> Tensor:
    """A = mean_c F_c^2.

    Args:
        features: F (N, C, H, W).

    Returns:
        (N, H, W), not negative, at least float32.
    """
    return to_float32(features).square().mean(1)


def attention_centre(attention: Tensor) -> Tensor:
    """Centre of mass m = sum_p A_p / (sum A + 1e-8) * p, positions p evenly spaced from -1 to 1 along each side.

    Args:
        attention: A (N, H, W).

    Returns:
        (N, 2) as (x, y); a side of one position has coordinate 0.
    """
    height, width = attention.shape[1:]
    share = attention / (attention.sum((1, 2), keepdim=True) + NORMALISER_EPS)
    return torch.stack((share.sum(1) @ _axis(width, share), share.sum(2) @ _axis(height, share)), 1)


def _axis(length: int, like: Tensor) -> Tensor:
    if length == 1:
        return torch.zeros(1, device=like.device, dtype=like.dtype)
    return torch.linspace(-1, 1, length, device=like.device, dtype=like.dtype)


def centre_matching_loss(attention: Tensor, centre: Tensor) -> Tensor:
    """L_ac = mean_i ||m(x_i) - c_i||^2 (ACQ; methods.md 4, inferred).

    Args:
        attention: A (N, H, W) of the last stage.
        centre: c (N, 2), the condition.

    Returns:
        0-d loss.
    """
    return (attention_centre(attention) - centre).square().sum(1).mean()


def attention_consistency_loss(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """L_cons = mean_l mean_i || A_l / ||A_l|| - A'_l / ||A'_l|| ||^2 (ACQ; methods.md 4, inferred).

    Args:
        first: attention maps (N, H_l, W_l), one for each stage l; BatchNorm in eval mode.
        second: the same, BatchNorm in training mode.

    Returns:
        0-d loss, between 0 and 2 (attention is not negative).
    """
    gaps = [(_unit(one) - _unit(other)).square().sum(1).mean() for one, other in zip(first, second, strict=True)]
    return torch.stack(gaps).mean()


def _unit(attention: Tensor) -> Tensor:
    flat = attention.flatten(1)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / (length + NORMALISER_EPS)


def pair_similarity_loss(first: Tensor, second: Tensor) -> Tensor:
    """L_pair = mean_i cos(phi(x_i), phi(x'_i)) of pairs under one condition (ACQ; methods.md 4, inferred).

    Args:
        first: phi (P, features).
        second: phi of the partners, same shape.

    Returns:
        0-d loss; 0 where there is no pair.
    """
    if len(first) == 0:
        return first.sum()
    return F.cosine_similarity(first, second, dim=1, eps=NORMALISER_EPS).mean()


def mode_seeking_loss(first: Tensor, second: Tensor, noise: Tensor, other_noise: Tensor) -> Tensor:
    """- mean_i mean|x_i - x'_i| / mean|z_i - z'_i|: images of a pair shall differ as their noise does.

    Args:
        first: images (P, C, H, W).
        second: their partners.
        noise: z (P, latent).
        other_noise: z' (P, latent).

    Returns:
        0-d loss, not positive; 0 where there is no pair.
    """
    if len(first) == 0:
        return first.sum()
    moved = (first - second).abs().flatten(1).mean(1)
    return -(moved / ((noise - other_noise).abs().mean(1) + NORMALISER_EPS)).mean()


@dataclass(frozen=True)
class PassMaps:
    """Feature maps of one forward pass.

    Attributes:
        stages: the last map (N, C, H, W) of each resolution, in order of execution.
        penultimate: input (N, features) of the last linear layer; where there is none, the last stage's mean over
            positions.
    """

    stages: list[Tensor]
    penultimate: Tensor

    @cached_property
    def attention(self) -> list[Tensor]:
        """Attention maps (N, H, W) of the stages."""
        return [attention_map(features) for features in self.stages]


@dataclass
class FeatureMaps:
    """Keeps the last feature map at each spatial resolution of a network's pass, while it is entered.

    A *stage* is the last map of its resolution (methods.md 0.5): in a residual network the output of its last block.
    Maps of a single position (squeeze-and-excitation, pooled features) are left out. No hook stays behind.

    Attributes:
        network: the network to watch.
    """

    network: nn.Module
    _handles: list[Any] = field(default_factory=list, init=False, repr=False)
    _maps: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False)
    _penultimate: Tensor | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Self:
        self._handles.append(self.network.register_forward_pre_hook(self._restart))
        for module in self.network.modules():
            if module is not self.network:
                self._handles.append(module.register_forward_hook(self._keep))
            if isinstance(module, nn.Linear):
                self._handles.append(module.register_forward_pre_hook(self._keep_penultimate))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._maps = {}
        self._penultimate = None

    def _restart(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002 - torch's signature
        self._maps = {}
        self._penultimate = None

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002 - torch's signature
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            size = (output.shape[2], output.shape[3])
            self._maps.pop(size, None)  # so that the order of the stages is that of their last maps
            self._maps[size] = output

    def _keep_penultimate(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        self._penultimate = args[0]

    @property
    def last(self) -> PassMaps:
        """Maps of the last pass.

        Raises:
            Skip: the network has no feature map of more than one position.
        """
        if not self._maps:
            raise Skip("the network has no feature map of more than one position, so no attention map")
        stages = list(self._maps.values())
        if self._penultimate is None or self._penultimate.ndim != 2:
            return PassMaps(stages, to_float32(stages[-1]).mean((2, 3)))
        return PassMaps(stages, to_float32(self._penultimate))


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Within it, BatchNorm layers use the batch's statistics and leave their running ones alone.

    Everything else (dropout, stochastic depth) stays in eval mode.

    Args:
        network: in eval mode; as before afterwards.
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
