"""What a network's BatchNorm layers remember, and what its current input shows them instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import MethodType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfqbench.api import Skip
from dfqbench.native import binding
from dfqbench.quant.trace import is_hooked
from dfqbench.synth.blocks import BlockGraph, Note, block_graph, facts_of
from dfqbench.synth.moments import Moments, batch_moments, positions, sample_moments
from dfqbench.synth.watched import can_watch, watched_batchnorm


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
    """What does not change from pass to pass, all layers side by side.

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
        """Collects the constants of these layers."""
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


def batchnorm_layers(network: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """The BatchNorm layers that keep running statistics, in order of definition (timm's fused layers included)."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    ]


@dataclass
class BatchNormStatistics:
    """Watches the inputs of a network's BatchNorm layers while it is entered, and leaves no hook behind.

    Watching the input of BatchNorm, rather than the output of the n-th convolution as the released ZeroQ does, equals
    the latter where its pairing is valid and is right everywhere else (methods.md 0.5). Moments are computed inside
    the hook, while the map is still in cache.

    Example::

        with BatchNormStatistics(teacher) as watch:
            logits = teacher(images)
            loss = bns_loss(watch.last)

    Attributes:
        network: the network to watch, in eval mode; its running statistics must not change from pass to pass.
        fused: whether plain frozen BatchNorm layers are computed together with their statistics, and where the
            compiled passes are in use with the residual and the ReLU that follow (equal up to rounding, less work);
            the layers' and the network's `forward` are replaced while entered.
    """

    network: nn.Module
    fused: bool = False
    _handles: list[Any] = field(default_factory=list, init=False, repr=False)
    _seen: list[LayerStatistics] = field(default_factory=list, init=False, repr=False)
    _constants: dict[tuple[tuple[str, int], ...], LayerConstants] = field(default_factory=dict, init=False, repr=False)
    _paused: bool = field(default=False, init=False, repr=False)
    _blocks: BlockGraph | None = field(default=None, init=False, repr=False)
    _facts: list[Any] | None = field(default=None, init=False, repr=False)
    _agreed: bool = field(default=False, init=False, repr=False)
    _no_blocks: bool = field(default=False, init=False, repr=False)

    def __enter__(self) -> Self:
        """Places the hooks.

        Raises:
            Skip: the network has no BatchNorm with running statistics.
        """
        layers = batchnorm_layers(self.network)
        if not layers:
            raise Skip("the network has no BatchNorm with running statistics")
        self._look_for_blocks()
        self._handles.append(self.network.register_forward_pre_hook(self._restart))
        for name, layer in layers:
            note = self._noter(name, layer)
            if self.fused and type(layer) is nn.BatchNorm2d and "forward" not in vars(layer):
                self._handles.append(_Replacement(layer, self._fused(layer, note)))
            else:
                self._handles.append(layer.register_forward_pre_hook(_recorder(note)))
        if self._blocks is not None:
            self._handles.append(_Replacement(self.network, self._by_blocks(self._blocks)))
        return self

    def _look_for_blocks(self) -> None:
        """Finds the network's blocks where they are of use, anew where it is not the network that it was."""
        wanted = self.fused and self._compiled() and "forward" not in vars(self.network)
        facts = facts_of(self.network) if wanted and not any(map(is_hooked, self._inner())) else None
        if facts is None:
            self._blocks = None
        elif facts != self._facts and not self._no_blocks:
            self._blocks, self._agreed = block_graph(self.network, self._noter), False
            self._no_blocks = self._blocks is None
        self._facts = facts

    def _compiled(self) -> bool:
        parameter = next(self.network.parameters(), None)
        return parameter is not None and binding.takes(parameter.device.type)

    def _inner(self) -> list[nn.Module]:
        return [module for module in self.network.modules() if module is not self.network]

    def _by_blocks(self, blocks: BlockGraph) -> Callable[..., Any]:
        plain, inner = self.network.forward, self._inner()

        def forward(*args: Any, **kwargs: Any) -> Any:
            # A hook inside would miss the modules that a block stands for.
            if self._paused or self._blocks is None or any(map(is_hooked, inner)):
                return plain(*args, **kwargs)
            if not self._agreed:
                self._agreed = self._agree(plain, blocks.network, args, kwargs)
                if not self._agreed:
                    self._blocks, self._no_blocks = None, True
                    return plain(*args, **kwargs)
            return blocks.network(*args, **kwargs)

        return forward

    def _agree(self, plain: Any, graph: Any, args: Any, kwargs: Any) -> bool:
        """Whether network and graph give the same for the first images; only then is the graph believed."""
        with self.paused(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            expected, found = plain(*args, **kwargs), graph(*args, **kwargs)
        if not isinstance(expected, Tensor) or not isinstance(found, Tensor) or expected.shape != found.shape:
            return False
        tolerance = 0.1 if torch.is_autocast_enabled(expected.device.type) else 1e-3
        return float((found - expected).float().norm()) <= tolerance * float(expected.float().norm())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen = []

    def _restart(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002 - torch's signature
        if not self._paused:
            self._seen = []  # a new list: the old one belongs to whoever took `last`

    def _noter(self, name: str, layer: _BatchNorm) -> Note:
        """Notes an input of a layer, with its moments where somebody has them already; nothing while paused."""
        running = Moments(_present(layer.running_mean), _present(layer.running_var))

        def note(x: Tensor, moments: Moments | None = None) -> None:
            if not self._paused:
                found = sample_moments(x) if moments is None else moments
                self._seen.append(LayerStatistics(name, found, positions(x), running, layer.eps))

        return note

    def _fused(self, layer: nn.BatchNorm2d, note: Note) -> Callable[[Tensor], Tensor]:
        plain = layer.forward

        def forward(x: Tensor) -> Tensor:
            if self._paused or not can_watch(layer, x):
                note(x)
                return plain(x)
            out, moments = watched_batchnorm(x, layer)
            note(x, moments)
            return out

        return forward

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Passes inside are not watched."""
        self._paused, before = True, self._paused
        try:
            yield
        finally:
            self._paused = before

    @property
    def last(self) -> PassStatistics:
        """Statistics of the last watched pass."""
        if self._blocks is not None:
            # A block is computed where its ReLU stood, later than its BatchNorm.
            order = self._blocks.order
            self._seen.sort(key=lambda layer: order[layer.name])
        key = tuple((layer.name, layer.positions) for layer in self._seen)
        if key not in self._constants:
            self._constants[key] = LayerConstants.of(self._seen)
        return PassStatistics(self._seen, self._constants[key])


def _recorder(note: Note) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """As a hook before a layer's call."""

    def record(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        note(args[0])

    return record


class _Replacement:
    """A module's `forward`, replaced until `remove`; a copy of the module has its own."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._module = module
        module.forward = _Forward(module, forward)

    def remove(self) -> None:
        """Gives the module its own `forward` back."""
        del self._module.forward


class _Forward:
    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._module = module
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return MethodType(type(self._module).forward, memo.get(id(self._module), self._module))


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise Skip("a BatchNorm layer lost its running statistics")
    return tensor
