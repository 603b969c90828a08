"""Statistics of BatchNorm inputs: the running ones of a network, and those of a forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dfqbench.api import Skip
from dfqbench.synth.moments import Moments, batch_moments, positions, sample_moments

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """A BatchNorm call in a forward pass.

    Attributes:
        name: dotted name of the layer.
        moments: biased moments (N, C) of the layer's *input*, for each sample.
        positions: number of spatial positions.
        running: the layer's running mean and variance (C,).
        eps: the layer's own epsilon.
    """

    name: str
    moments: Moments
    positions: int
    running: Moments
    eps: float


@dataclass(frozen=True, slots=True)
class LayerConstants:
    """Running statistics and weights, constant from pass to pass, concatenated over layers.

    Attributes:
        running: running mean and variance (S,), S = sum of the layers' channels.
        unbias: (S,), factors that make the per-sample variances unbiased; 1 where a map has one position.
        share: (S,), 1 / (L C_l) in layer l: a weighted sum with it is the mean over layers of the mean over channels.
    """

    running: Moments
    unbias: Tensor
    share: Tensor

    @classmethod
    def of(cls, layers: list[LayerStatistics]) -> LayerConstants:
        """Collect the constants of these layers."""
        running = concatenate([layer.running for layer in layers], 0)
        sizes = [layer.running.mean.shape[0] for layer in layers]
        unbias = [layer.positions / (layer.positions - 1) if layer.positions > 1 else 1.0 for layer in layers]
        share = [1 / (len(layers) * size) for size in sizes]
        by_channel = [
            torch.tensor(values, dtype=running.mean.dtype).repeat_interleave(torch.tensor(sizes))
            for values in (unbias, share)
        ]
        return cls(running, *(values.to(running.mean.device) for values in by_channel))


def concatenate(moments: list[Moments], dim: int) -> Moments:
    """Concatenate moments along a dimension."""
    return Moments(torch.cat([m.mean for m in moments], dim), torch.cat([m.var for m in moments], dim))


@dataclass(frozen=True)
class PassStatistics:
    """The BatchNorm inputs' statistics of a forward pass.

    Layers are concatenated along the last dimension, of size S = sum of the layers' channels, so that losses take few
    large operations.

    Attributes:
        layers: the BatchNorm calls in order of execution.
        constants: running statistics and weights in the same order.
    """

    layers: list[LayerStatistics]
    constants: LayerConstants

    @property
    def running(self) -> Moments:
        """Running mean and variance (S,)."""
        return self.constants.running

    @cached_property
    def per_sample(self) -> Moments:
        """Moments over positions (N, S), variance biased."""
        return concatenate([layer.moments for layer in self.layers], 1)

    @cached_property
    def per_sample_unbiased(self) -> Moments:
        """As `per_sample`, variance unbiased; biased where a map has one position (methods.md 0.5)."""
        return Moments(self.per_sample.mean, self.per_sample.var * self.constants.unbias)

    @cached_property
    def batch(self) -> Moments:
        """Moments over samples and positions (S,), variance biased."""
        return batch_moments(self.per_sample)


def batchnorm_layers(network: nn.Module) -> list[tuple[str, BatchNorm]]:
    """Return the BatchNorm layers with running statistics, in order of definition (timm's fused layers included)."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None and module.running_var is not None
    ]


class PassRecorder(ABC):
    """Records data of a network's last forward pass while it is entered; no hook remains afterwards.

    Attributes:
        network: the network, in eval mode.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __enter__(self) -> Self:
        """Register the hooks."""
        self._restart()
        with ExitStack() as handles:
            handles.enter_context(self.network.register_forward_pre_hook(lambda *_: self._restart()))
            for handle in self._hooks():
                handles.enter_context(handle)
            self._handles = handles.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._handles.close()
        self._restart()

    @abstractmethod
    def _restart(self) -> None:
        """Forget the last pass."""

    @abstractmethod
    def _hooks(self) -> list[RemovableHandle]:
        """Register the hooks that record."""


class BatchNormStatistics(PassRecorder):
    """Records the moments of a network's BatchNorm inputs while it is entered.

    The input of BatchNorm, not the output of the n-th convolution as in the released ZeroQ: they are equal where the
    released pairing is valid (methods.md 0.5). The running statistics must not change from pass to pass.

    Example::

        with BatchNormStatistics(teacher) as recorder:
            logits = teacher(images)
            loss = bns_loss(recorder.last)

    Raises:
        Skip: on entering, where the network has no BatchNorm with running statistics.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._layers: list[LayerStatistics] = []
        self._constants: dict[tuple[tuple[str, int], ...], LayerConstants] = {}

    def _restart(self) -> None:
        self._layers = []  # a new list: the old one is part of the statistics already returned

    def _hooks(self) -> list[RemovableHandle]:
        layers = batchnorm_layers(self.network)
        if not layers:
            raise Skip("the network has no BatchNorm with running statistics")
        return [layer.register_forward_pre_hook(self._recorder(name, layer)) for name, layer in layers]

    def _recorder(self, name: str, layer: BatchNorm) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """Return the hook that records a BatchNorm layer's input statistics."""
        running = Moments(layer.get_buffer("running_mean"), layer.get_buffer("running_var"))

        def record(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            moments = sample_moments(args[0])
            self._layers.append(LayerStatistics(name, moments, positions(args[0]), running, layer.eps))

        return record

    @property
    def last(self) -> PassStatistics:
        """Statistics of the last recorded pass."""
        key = tuple((layer.name, layer.positions) for layer in self._layers)
        if key not in self._constants:
            self._constants[key] = LayerConstants.of(self._layers)
        return PassStatistics(self._layers, self._constants[key])
