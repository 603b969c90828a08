"""Statistics of BatchNorm inputs: the running ones that a network remembers, and those of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from dfqbench.api import Skip
from dfqbench.synth.moments import Moments, batch_moments, positions, sample_moments

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """One BatchNorm call in one forward pass.

    Attributes:
        name: dotted name of the layer.
        moments: biased moments (N, C) of the layer's *input*, for each sample.
        positions: spatial positions behind each of them.
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
    """Running statistics and weights, the same for every pass, all layers side by side.

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
        sizes = [layer.running.mean.shape[0] for layer in layers]
        unbias = [layer.positions / (layer.positions - 1) if layer.positions > 1 else 1.0 for layer in layers]
        share = [1 / (len(layers) * size) for size in sizes]
        running = Moments(
            torch.cat([layer.running.mean for layer in layers]), torch.cat([layer.running.var for layer in layers])
        )
        repeats = torch.tensor(sizes)
        unbias_all, share_all = (
            torch.tensor(values, dtype=running.mean.dtype).repeat_interleave(repeats).to(running.mean.device)
            for values in (unbias, share)
        )
        return cls(running, unbias_all, share_all)


@dataclass(frozen=True)
class PassStatistics:
    """The BatchNorm inputs' statistics of one forward pass.

    All layers lie side by side along the last dimension, of size S = sum of the layers' channels: few large
    operations instead of many small ones.

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
        return Moments(
            torch.cat([layer.moments.mean for layer in self.layers], 1),
            torch.cat([layer.moments.var for layer in self.layers], 1),
        )

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


@dataclass
class BatchNormStatistics:
    """Records the moments of a network's BatchNorm inputs while it is entered; no hook stays behind.

    The input of BatchNorm, rather than the output of the n-th convolution as in the released ZeroQ: the two are equal
    where the latter's pairing is valid, and the former is right everywhere else (methods.md 0.5).

    Example::

        with BatchNormStatistics(teacher) as watch:
            logits = teacher(images)
            loss = bns_loss(watch.last)

    Attributes:
        network: the network, in eval mode; its running statistics must not change from pass to pass.
    """

    network: nn.Module
    _handles: list[Any] = field(default_factory=list, init=False, repr=False)
    _seen: list[LayerStatistics] = field(default_factory=list, init=False, repr=False)
    _constants: dict[tuple[tuple[str, int], ...], LayerConstants] = field(default_factory=dict, init=False, repr=False)
    _paused: bool = field(default=False, init=False, repr=False)

    def __enter__(self) -> Self:
        """Register the hooks.

        Raises:
            Skip: the network has no BatchNorm with running statistics.
        """
        layers = batchnorm_layers(self.network)
        if not layers:
            raise Skip("the network has no BatchNorm with running statistics")
        self._handles.append(self.network.register_forward_pre_hook(self._restart))
        for name, layer in layers:
            self._handles.append(layer.register_forward_pre_hook(self._recorder(name, layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen = []

    def _restart(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002 - torch's signature
        if not self._paused:
            self._seen = []  # a new list: the old one is part of the statistics already returned

    def _recorder(self, name: str, layer: BatchNorm) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """Return the hook that records a BatchNorm layer's input statistics."""
        running = Moments(_present(layer.running_mean), _present(layer.running_var))

        def record(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if not self._paused:
                moments = sample_moments(args[0])
                self._seen.append(LayerStatistics(name, moments, positions(args[0]), running, layer.eps))

        return record

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the passes inside unrecorded."""
        self._paused, before = True, self._paused
        try:
            yield
        finally:
            self._paused = before

    @property
    def last(self) -> PassStatistics:
        """Statistics of the last recorded pass."""
        key = tuple((layer.name, layer.positions) for layer in self._seen)
        if key not in self._constants:
            self._constants[key] = LayerConstants.of(self._seen)
        return PassStatistics(self._seen, self._constants[key])


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise Skip("a BatchNorm layer lost its running statistics")
    return tensor
